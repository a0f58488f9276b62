"""Which objects of a state travel encoded: whatever makes the fewest bytes with what is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mlstate.digests import Digest
from mlstate.format.encoded_index import EncodedForm

__all__ = ["EncodedChoice", "choose"]


@dataclass(frozen=True)
class EncodedChoice:
    """How the objects that are missing of a state travel from one mirror.

    Attributes:
        encoded: Those that come encoded, each after its base; some may be bases alone.
        bases: The bases that come as they are for the sake of others, with their sizes in bytes.
        plain: What comes as it is: the objects that are missing and not in `encoded`, with sizes.
    """

    encoded: Mapping[Digest, EncodedForm] = field(default_factory=dict)
    bases: Mapping[Digest, int] = field(default_factory=dict)
    plain: Mapping[Digest, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes that travel."""
        forms = (form.size for form in self.encoded.values())
        return sum(forms) + sum(self.bases.values()) + sum(self.plain.values())


def choose(
    wanted: Mapping[Digest, int],
    forms: Mapping[Digest, EncodedForm],
    here: Callable[[Digest, int], bool],
) -> EncodedChoice:
    """Choose for each object that is missing whether it comes encoded.

    A base that is here costs nothing, nor does one that comes anyway. One that does not is brought
    if that and the differences to it are fewer bytes than the objects themselves; or if a mirror
    has these in no other form.

    Args:
        wanted: The objects that are missing, with the sizes of the plain ones, in bytes.
        forms: The encoded forms that the mirror's index lists.
        here: Whether an object of this size is in the cache. A base has the size of its dependants.
    """
    return _Choosing(wanted, forms, here).choice()


class _Choosing:
    def __init__(
        self,
        wanted: Mapping[Digest, int],
        forms: Mapping[Digest, EncodedForm],
        here: Callable[[Digest, int], bool],
    ) -> None:
        self._wanted = wanted
        self._forms = forms
        self._here = here
        self._costs: dict[Digest, int] = {}
        self._encoded: dict[Digest, EncodedForm] = {}
        self._bases: dict[Digest, int] = {}

    def choice(self) -> EncodedChoice:
        by_base: dict[Digest, list[Digest]] = {}
        for digest, size in self._wanted.items():
            form = self._forms.get(digest)
            if form is None:
                continue
            if form.base is None or self._cost(form.base, size) == 0:
                if form.size < size or not form.plain:
                    self._take(digest, size)
            else:
                by_base.setdefault(form.base, []).append(digest)
        for base, digests in by_base.items():
            sizes = {digest: self._wanted[digest] for digest in digests}
            spared = sum(size - self._forms[digest].size for digest, size in sizes.items())
            needed = not all(self._forms[digest].plain for digest in digests)
            if needed or spared > self._cost(base, min(sizes.values())):
                for digest, size in sizes.items():
                    self._take(digest, size)
        plain = {d: size for d, size in self._wanted.items() if d not in self._encoded}
        return EncodedChoice(self._encoded, self._bases, plain)

    def _cost(self, digest: Digest, size: int) -> int:
        """The bytes that it takes to have an object that another one is built on."""
        if digest in self._wanted:
            return 0
        if digest not in self._costs:
            form = self._forms.get(digest)
            if self._here(digest, size):
                cost = 0
            elif form is None:
                cost = size
            else:  # the depth falls from base to base
                cost = form.size + (0 if form.base is None else self._cost(form.base, size))
                cost = min(cost, size) if form.plain else cost
            self._costs[digest] = cost
        return self._costs[digest]

    def _take(self, digest: Digest, size: int) -> None:
        """Let an object come encoded, and what it is built on before it."""
        form = self._forms[digest]
        base = form.base
        if base is not None and base not in self._wanted and self._cost(base, size):
            of_base = self._forms.get(base)
            if of_base is None or (of_base.plain and self._cost(base, size) == size):
                self._bases[base] = size
            elif base not in self._encoded:
                self._take(base, size)
        self._encoded[digest] = form
