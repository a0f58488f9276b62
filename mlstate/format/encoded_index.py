"""The encoded index of a state: which of its objects are there encoded, and how large.

It is a small file beside the encoded objects, so that whoever fetches a state knows what each
object costs without a request for each. It is a hint: nobody trusts it, for whatever comes is held
against its digest. Equal indexes have one text: `parse` encodes again what it read and refuses what
differs in a single byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError
from mlstate.format.encoded_object import DEPTH_LIMIT, HEAD_SIZE
from mlstate.texts import load_json

__all__ = ["MAX_INDEX", "EncodedForm", "EncodedIndex"]

MAX_INDEX = 32 << 20
"""The longest index that is written or read: bytes, about 170 for each object."""

_VERSION = "1"
_WHAT = "an encoded index"
_MAX_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class EncodedForm:
    """The encoded form of an object, as an index says it.

    Attributes:
        size: Its bytes.
        base: The object that it is the difference to; None if it is encoded alone.
        depth: How many bases have to be decoded one after the other; 0 without a base.
        plain: Whether the plain object was there, too, when the index was written.

    Raises:
        FormatError: A size that no encoded form has, or a base and a depth that do not fit.
    """

    size: int
    base: Digest | None = None
    depth: int = 0
    plain: bool = False

    def __post_init__(self) -> None:
        if type(self.size) is not int or not HEAD_SIZE <= self.size <= _MAX_SIZE:
            raise FormatError(
                f"{_WHAT} gives a size that is not possible",
                expected=f"{HEAD_SIZE} bytes or more",
                found=repr(self.size)[:80],
            )
        deep = type(self.depth) is int and 0 <= self.depth <= DEPTH_LIMIT
        if not deep or (self.base is None) != (self.depth == 0):
            raise FormatError(
                f"{_WHAT} gives a depth that does not fit",
                expected=f"0 without a base, 1 to {DEPTH_LIMIT} with one",
                found=repr(self.depth)[:80],
            )


@dataclass(frozen=True)
class EncodedIndex:
    """The encoded forms of a state's objects, and of their bases.

    Attributes:
        state: The digest of the state.
        forms: The encoded form of each object that has one: of those of the state, and of the bases
            of these, theirs and so on.

    Raises:
        FormatError: An object that is built on itself, or on one of no lower depth.
    """

    state: Digest
    forms: Mapping[Digest, EncodedForm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for digest, form in self.forms.items():
            base = None if form.base is None else self.forms.get(form.base)
            if form.base == digest or (base is not None and base.depth >= form.depth):
                raise FormatError(
                    f"{_WHAT} has an object that is built on one of no lower depth",
                    expected=f"a base of a depth below {form.depth}",
                    found=f"{digest}, built on {form.base}",
                )

    def encode(self) -> bytes:
        """Its bytes; a FormatError if they are more than is read."""
        said = {
            "mlstate": _VERSION,
            "state": self.state,
            "encoded": {digest: _entry(form) for digest, form in self.forms.items()},
            "plain": sorted(digest for digest, form in self.forms.items() if form.plain),
        }
        data = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
        if len(data) > MAX_INDEX:
            raise FormatError(
                f"{_WHAT} is too long", expected=f"at most {MAX_INDEX} bytes", found=len(data)
            )
        return data

    @classmethod
    def parse(cls, data: Bytes, state: Digest) -> EncodedIndex:
        """Read the index of a state; the inverse of `encode`.

        Raises:
            FormatError: It is anything but what `encode` gives, the index of another state, or
                needs a newer mlstate.
        """
        said = load_json(bytes(data), _WHAT, most=MAX_INDEX)
        version = said.get("mlstate")
        if version != _VERSION:
            raise FormatError(
                f"{_WHAT} has a form that is not known",
                expected=f"version {_VERSION}",
                found=repr(version)[:80],
            )
        if said.get("state") != state:
            raise FormatError(
                f"{_WHAT} is of another state", expected=state, found=repr(said.get("state"))[:80]
            )
        encoded, plain = said.get("encoded"), said.get("plain")
        if not isinstance(encoded, dict) or not isinstance(plain, list):
            raise FormatError(f"{_WHAT} has no list of objects", expected="encoded, plain")
        also_plain = {one for one in plain if isinstance(one, str)}
        index = cls(
            state,
            {
                Digest(digest): _form(entry, digest in also_plain)
                for digest, entry in encoded.items()
            },
        )
        if index.encode() != data:
            raise FormatError(f"{_WHAT} is not written as it must be")
        return index


def _entry(form: EncodedForm) -> dict[str, Any]:
    if form.base is None:
        return {"size": form.size}
    return {"base": form.base, "depth": form.depth, "size": form.size}


def _form(entry: Any, plain: bool) -> EncodedForm:
    if not isinstance(entry, dict):
        raise FormatError(f"{_WHAT} has an entry that is malformed", found=repr(entry)[:80])
    base = entry.get("base")
    # What is missing or of another kind is refused by the form, or is not written so.
    return EncodedForm(
        entry.get("size"),  # type: ignore[arg-type]
        None if base is None else Digest(base),
        entry.get("depth", 0),
        plain,
    )
