"""The three-way merge of a manifest, state by state, as version control needs it.

Both sides are held against their common ancestor. A part of the text, a state with its comments
say, that one side left alone is as the other side has it; one that both changed alike stays; all
else is a conflict, with markers around that part alone. What is outside of states is joined name by
name, and lists of addresses item by item. Text that is not changed stays byte for byte.

Manifests that are read together are joined by `mlstate.manifests.merge`.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Any

from tomlkit.exceptions import TOMLKitError

from mlstate.errors import ManifestError, SignatureError
from mlstate.manifests.blocks import Block, blocks_of, exact, line_end, parsed_part, set_apart
from mlstate.manifests.edit import changed_block
from mlstate.manifests.joined import ABSENT, ClashError, joined_values, merged_lines
from mlstate.manifests.parse import parse_manifest
from mlstate.manifests.write import plain_state
from mlstate.signatures.inline import split_signature
from mlstate.states import StateKey

__all__ = ["Conflict", "Marks", "Merge", "NotMergeableError", "merge_manifests"]

_COMMENT = re.compile(
    r'"{3}(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}|\'{3}(?:[^\']|\'{1,2}(?!\'))*\'{3,5}'
    r'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[ \t]*([^\n]*)',
    re.DOTALL,
)
_TOP = "the top of the manifest"


class NotMergeableError(Exception):
    """A side is no manifest, or not written state by state: lines can be merged, entries cannot."""


@dataclass(frozen=True)
class Marks:
    """How a conflict is marked: with lines of so many characters, and a name for each side."""

    size: int = 7
    ours: str = "ours"
    base: str = "base"
    theirs: str = "theirs"
    with_base: bool = False


@dataclass(frozen=True)
class Conflict:
    """A part of a manifest that both sides changed, and not alike: its name, and what happened."""

    what: str
    why: str


@dataclass(frozen=True)
class Merge:
    """A merged manifest; with conflicts, these have markers in it, and it is no TOML.

    Attributes:
        data: The text.
        conflicts: What could not be merged, in the order of the text.
        unsigned: Whether a signature at the end of a side was left out, being of another text.
    """

    data: bytes
    conflicts: tuple[Conflict, ...] = ()
    unsigned: bool = False


def merge_manifests(base: bytes, ours: bytes, theirs: bytes, marks: Marks | None = None) -> Merge:
    """Merge two versions of a manifest.

    Args:
        base: The ancestor of both; empty if there is none.
        ours: One version, whose order, line ends and byte order mark the result has.
        theirs: The other.
        marks: How conflicts are marked.

    Raises:
        NotMergeableError: One of the three is no manifest, or has states that are no tables of
            their own.
    """
    if theirs in (ours, base):
        return Merge(ours)
    if base == ours:
        return Merge(theirs)
    try:
        signed = [split_signature(data, "")[0] for data in (base, ours, theirs)]
        sides = _Side(signed[0]), _Side(signed[1]), _Side(signed[2])
    except (ManifestError, SignatureError) as error:
        raise NotMergeableError(str(error)) from error
    merged = _Merging(*sides, Marks() if marks is None else marks)
    data = merged.text()
    for whole, part in ((ours, signed[1]), (theirs, signed[2])):
        if data == part:  # whose signature is good
            return Merge(whole)
    was_signed = signed[1] != ours or signed[2] != theirs
    return Merge(data, merged.conflicts, unsigned=was_signed)


@dataclass(frozen=True)
class _Unit:
    """A part that is merged as a whole: the text of a block, and what it says."""

    block: Block
    value: Any

    @property
    def text(self) -> str:
        return (self.block.lead + self.block.text).rstrip("\n")


class _Side:
    """A manifest in units, by name: the top, states, other tables. Line ends are those of Unix."""

    def __init__(self, data: bytes) -> None:
        self.mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        self.units: dict[str, _Unit] = {}
        self.end = "\n"
        if not data:  # the ancestor of two new files
            return
        states = parse_manifest(data, "").states
        text = data.removeprefix(self.mark).decode()
        self.end = line_end(text)
        found: set[StateKey] = set()
        for number, block in enumerate(blocks_of(text.replace("\r\n", "\n"))):
            name = _named(block, number == 0)
            value: dict[str, Any] | None
            if block.key is None:
                value = parsed_part(block.text)
            else:
                key = StateKey.parse(block.key)
                found.add(key)
                value = {str(key): plain_state(states[key])}
            if value is None or name in self.units or (block.key is None and "states" in value):
                raise NotMergeableError("a state is not written as a table of its own")
            self.units[name] = _Unit(block, value)
        if found != states.keys():
            raise NotMergeableError("a state is not written as a table of its own")


def _named(block: Block, first: bool) -> str:
    """The name of a unit. Keys that differ in case only are one: they cannot stand together."""
    if first:
        return _TOP
    header = block.text.partition("\n")[0].partition("#")[0].strip()
    return header if block.key is None else f"state {block.key.lower()}"


class _Merging:
    """One merge: what becomes of each unit, and the text of all."""

    def __init__(self, base: _Side, ours: _Side, theirs: _Side, marks: Marks) -> None:
        self._base, self._ours, self._theirs, self._marks = base, ours, theirs, marks
        self._conflicts: dict[str, Conflict] = {}
        self._pieces: dict[str, str] = {}

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """The conflicts, in the order of the text."""
        return tuple(self._conflicts[name] for name in self._pieces if name in self._conflicts)

    def text(self) -> bytes:
        """The text of the merged manifest."""
        mine, new = self._ours.units, dict[str, str]()
        for name in [*mine, *(name for name in self._theirs.units if name not in mine)]:
            text = self._merged(name)
            if text is None:
                continue
            if name not in mine:
                new[name] = text
            elif text.rstrip("\n") == mine[name].text:
                self._pieces[name] = mine[name].block.lead + mine[name].block.text
            else:
                self._pieces[name] = text
        self._place(new)
        joined = self._together()
        if not self._conflicts:
            _check(joined)
        return self._ours.mark + joined.replace("\n", self._ours.end).encode()

    def _place(self, new: dict[str, str]) -> None:
        """Put each new state before the first that sorts after it, and other tables at the end."""
        keys = {name: self._key(name) for name in new}
        waiting = sorted((key, name) for name, key in keys.items() if key is not None)
        waiting.reverse()
        placed: dict[str, str] = {}
        for name, text in self._pieces.items():
            key = self._key(name)
            while waiting and key is not None and key > waiting[-1][0]:
                _, earlier = waiting.pop()
                placed[earlier] = new[earlier]
            placed[name] = text
        rest = [
            *(name for _, name in reversed(waiting)),
            *(n for n, k in keys.items() if k is None),
        ]
        self._pieces = placed | {name: new[name] for name in rest}

    def _key(self, name: str) -> StateKey | None:
        unit = self._ours.units.get(name) or self._theirs.units[name]
        return None if unit.block.key is None else StateKey.parse(unit.block.key)

    def _together(self) -> str:
        """All pieces as one text: as ours has them where they follow each other there."""
        mine, names = list(self._ours.units), list(self._pieces)
        after = dict(zip(mine, [*mine[1:], None], strict=True))
        texts = []
        for name, following in zip(names, [*names[1:], None], strict=True):
            unit, piece = self._ours.units.get(name), self._pieces[name]
            kept = unit is not None and piece == unit.block.lead + unit.block.text
            if not kept or after[name] != following:
                piece = (
                    f"{piece.rstrip(chr(10))}\n" if following is None else set_apart(piece, "\n")
                )
            texts.append(piece)
        return "".join(texts)

    def _merged(self, name: str) -> str | None:
        """The text of a unit; None if it is not there any more."""
        base, ours, theirs = (s.units.get(name) for s in (self._base, self._ours, self._theirs))
        if _text(ours) == _text(theirs) or _text(base) == _text(theirs):
            return _text(ours)
        if _text(base) == _text(ours):
            return _text(theirs)
        if ours is None or theirs is None:
            return self._conflict(name, base, ours, theirs, "one side removes it, one changes it")
        try:
            wanted = _joined_values(base, ours, theirs)
        except ClashError:
            return self._conflict(name, base, ours, theirs, "the sides change it differently")
        mine, other = _comments(ours.text), _comments(theirs.text)
        needed = (mine | other) - (_comments(_text(base) or "") - (mine & other))
        for text in _candidates(base, ours, theirs, wanted):
            says = _value(ours.block, text)
            if needed <= _comments(text) and says is not None and exact(says) == exact(wanted):
                return text + "\n"
        return self._conflict(name, base, ours, theirs, "the sides change its comments differently")

    def _conflict(
        self, name: str, base: _Unit | None, ours: _Unit | None, theirs: _Unit | None, why: str
    ) -> str:
        marks, key = self._marks, next(u.block.key for u in (ours, theirs) if u is not None)
        self._conflicts[name] = Conflict(name if key is None else key, why)
        parts = [("<", marks.ours, ours)]
        parts += [("|", marks.base, base)] if marks.with_base else []
        parts += [("=", "", theirs)]
        lines = []
        for mark, label, unit in parts:
            lines += [f"{mark * marks.size} {label}".rstrip(), *filter(None, [_text(unit)])]
        return "\n".join([*lines, f"{'>' * marks.size} {marks.theirs}".rstrip()]) + "\n"


def _check(text: str) -> None:
    """See that a merged text can be read."""
    try:
        parse_manifest(text.encode(), "")
    except ManifestError as error:
        raise NotMergeableError(str(error)) from error


def _text(unit: _Unit | None) -> str | None:
    return None if unit is None else unit.text


def _comments(text: str) -> set[str]:
    return {match[1].strip() for match in _COMMENT.finditer(text) if match[1] is not None}


def _value(like: Block, text: str) -> Any:
    """What the text of a unit says; None if it cannot be read."""
    if like.key is None:
        return parsed_part(text)
    try:
        states = parse_manifest(f"version = 1\n{text}\n".encode(), "").states
    except ManifestError:
        return None
    return {str(key): plain_state(entry) for key, entry in states.items()}


def _joined_values(base: _Unit | None, ours: _Unit, theirs: _Unit) -> Any:
    """What a unit that both sides have is to say: of a state what one side says, as a whole."""
    old = ABSENT if base is None else base.value
    return joined_values(old, ours.value, theirs.value, inside=ours.block.key is None)


def _candidates(base: _Unit | None, ours: _Unit, theirs: _Unit, wanted: Any) -> list[str]:
    """Texts that may say what is wanted, with all comments: the best first."""
    found = [merged_lines(*(_text(unit) or "" for unit in (base, ours, theirs)))]
    found += [ours.text, theirs.text]
    if base is None or not base.block.lead:  # what both put above it goes together
        found.append(f"{theirs.block.lead}{ours.text}")
    if ours.block.key is None:
        try:
            edited = changed_block(ours.block, ours.value, wanted)
            found.append((edited.lead + edited.text).rstrip("\n"))
        except (TOMLKitError, LookupError, TypeError, AttributeError):
            pass  # it is written in a style that cannot be edited
    return [text for text in found if text is not None]
