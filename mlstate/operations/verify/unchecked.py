"""States that were to be checked and were not, or in part: what is missing, said or fetched."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from mlstate.errors import FetchError, MlstateError
from mlstate.fetch import Fetcher
from mlstate.fetch.fetcher import has_mirrors
from mlstate.manifests import StateEntry
from mlstate.objects import ObjectStore
from mlstate.operations.verify.collect import Collected
from mlstate.operations.verify.dependents import Dependents, find_dependents
from mlstate.operations.verify.inspect import Inspection
from mlstate.operations.verify.report import Finding
from mlstate.phrases import Phrase, flag
from mlstate.states import StateKey

__all__ = ["Unchecked", "all_without_digest"]

_NO_MIRRORS = "add mirrors to the manifest, or bring the state by mlstate unbundle"
_OLDER = Phrase(
    "copy it into a store of this layout: mlstate.copy(store, other, [key])",
    "copy it into a store of this layout: mlstate copy",
)


class Unchecked:
    """The states of a view of which its cache lacks something, with what became of each."""

    def __init__(self, inspection: Inspection, place: ObjectStore) -> None:
        self._inspection = inspection
        self._place = place
        self._found: dict[StateKey, Finding] = {}

    def note(self, entries: Sequence[StateEntry], *, absent: Collection[StateKey]) -> None:
        """Note states that are not here, or in part, before anything of them is fetched."""
        missing = self._inspection.missing
        for entry in entries:
            lacking = find_dependents(self._inspection, [entry], missing)
            self._found[entry.key] = self._finding(entry, lacking.values(), entry.key in absent)

    def fetch(self, entries: Iterable[StateEntry], fetcher: Fetcher) -> None:
        """Fetch what is missing of these states, each whatever happens to the others."""
        for entry in entries:
            finding = self._found[entry.key]
            try:
                fetcher.fetch(entry)
            except (MlstateError, OSError) as error:
                self._found[entry.key] = replace(finding, remedy=_failure(error))

    def findings(self, left: Collection[StateKey]) -> Iterator[Finding]:
        """A finding of each state; of those that are not ``left`` all is here now, and checked."""
        for key, finding in self._found.items():
            if key in left:
                yield finding
            else:
                yield replace(finding, repaired=True, remedy="it was fetched")

    def _finding(
        self, entry: StateEntry, lacking: Iterable[Dependents], is_absent: bool
    ) -> Finding:
        joined = Dependents()
        for one in lacking:
            joined.states |= one.states
            joined.refs.update(one.refs)
            joined.files.update(one.files)
        remedy = flag("repair") + " fetches it"
        if not has_mirrors(entry):
            remedy = Phrase(_NO_MIRRORS, _NO_MIRRORS)
        return Finding(
            (entry.key,),
            "unchecked",
            "all" if is_absent else joined.in_words(),
            joined.tensor_names(),
            entry.digest,
            self._place.locate(entry.pinned_digest),
            expected="all of it in the cache",
            found="nothing of it" if is_absent else "a part of it, which was checked",
            remedy=remedy,
        )


def all_without_digest(collected: Collected) -> Iterator[Finding]:
    """A finding of each state that nothing can be compared with."""
    for entry in collected.without_digest:
        yield _without_digest(entry.key, entry.origin, "none", "pin it: " + entry.how_to_lock())
    for key in collected.unverifiable:
        yield _without_digest(key, None, "a checkpoint of an older layout, without one", _OLDER)


def _without_digest(key: StateKey, origin: str | None, found: str, remedy: str) -> Finding:
    return Finding(
        (key,),
        "unchecked",
        "all",
        path=origin,
        expected="a state digest",
        found=found,
        remedy=remedy,
    )


def _failure(error: MlstateError | OSError) -> str:
    if not isinstance(error, MlstateError):
        return f"fetch it when that is possible; now: {error}"
    tried = error.attempts if isinstance(error, FetchError) else ()
    why = "; ".join(f"{place}: {reason}" for place, reason in tried)
    said = f"fetch it when that is possible; now: {error.message}" + (f" ({why})" if why else "")
    return said if tried or error.remedy is None else said + "; " + error.remedy
