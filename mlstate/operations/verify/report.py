"""The report of `verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mlstate.digests import Digest
from mlstate.errors import AccessError, IntegrityError, ManifestError, SignatureError
from mlstate.manifests import StateEntry
from mlstate.operations.tables import Table, Tabular, size_cell
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey

__all__ = [
    "Finding",
    "Kind",
    "MirrorCheck",
    "VerifyReport",
    "in_order",
    "other_weights",
    "unreadable_folder",
    "unreadable_state_file",
    "unsigned_state",
    "wrong_size",
]

Kind = Literal["damaged", "missing", "unreadable", "unsigned", "unchecked", "faulty"]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        keys: The states concerned, sorted; none if no state that was looked at needs the object.
        kind: "damaged": an object whose bytes are not those that its digest names. "missing": an
            object that is not there. "unreadable": a state file that cannot be read, bytes that a
            digest names but the format forbids, an object that may not be read. "unsigned": a state
            without a good signature, in a store that requires one. "unchecked": a state that was
            to be checked, of which something is not here. "faulty": a mirror that cannot be read,
            or does not have what it should.
        what: What it is, in words: "the state object", "tensor 'a.weight' and 3 more".
        tensors: The names of the tensors that need the object, sorted.
        digest: The object's digest; None if this is about no object.
        path: Where it is, or should be; of an object in several caches, which of them.
        expected: What should be there.
        found: What is there instead.
        repaired: Whether the right bytes are there now.
        remedy: What was done about it, or can be.
    """

    keys: tuple[StateKey, ...]
    kind: Kind
    what: str
    tensors: tuple[str, ...] = ()
    digest: Digest | None = None
    path: str | None = None
    expected: str | None = None
    found: str | None = None
    repaired: bool = False
    remedy: str | None = None

    def __str__(self) -> str:
        return self.text()

    def text(self, say: Callable[[object], str] = str) -> str:
        """The finding with all that is known of it, a line each; see `MlstateError.text`."""
        more = f" and {len(self.keys) - 1} more" if self.keys[1:] else ""
        of = f" of {self.keys[0]}{more}" if self.keys else ""
        state = "repaired" if self.repaired else self.kind
        details = [
            ("where", self.path),
            ("expected", self.expected),
            ("found", self.found),
            ("what was done" if self.repaired else "what to do", self.remedy),
        ]
        lines = [f"  {label}: {say(value)}" for label, value in details if value is not None]
        return "\n".join([say(f"{state}: {self.what}{of}"), *lines])


@dataclass(frozen=True)
class MirrorCheck:
    """What a mirror of a state was found to have.

    Attributes:
        key: The state.
        mirror: The mirror's address: of several files that of the first.
        what: What it should have: "objects", "tensors", "state object", or the name of a file.
        files: How many files were asked for, or read; an object is one.
        nbytes: Their bytes, as far as the mirror says.
        reason: What is wrong with it; None if nothing is.
    """

    key: StateKey
    mirror: str
    what: str
    files: int
    nbytes: int
    reason: str | None = None


@dataclass(frozen=True)
class VerifyReport(Tabular):
    """What a verification found.

    Attributes:
        states: The states that were looked at, sorted: those of `partial` among them, those of the
            other lists not, nor those whose state file cannot be read.
        objects: How many objects were read, each once, however many states need it.
        nbytes: Their bytes. Of mirrors, objects and files that were asked for, and what they have.
        findings: What is not as it should be.
        absent: States of which a cache has nothing.
        partial: States of which a cache has something, which was verified, and not all.
        unpinned: States without a digest, of which nothing can be verified.
        unverifiable: Checkpoints of MLModule: these carry no digest.
        mirrors: Each mirror of each state, where mirrors were asked.
        unmirrored: States that list no mirror, where mirrors were asked.
    """

    states: tuple[StateKey, ...]
    objects: int
    nbytes: int
    findings: tuple[Finding, ...] = ()
    absent: tuple[StateKey, ...] = ()
    partial: tuple[StateKey, ...] = ()
    unpinned: tuple[StateKey, ...] = ()
    unverifiable: tuple[StateKey, ...] = ()
    mirrors: tuple[MirrorCheck, ...] = ()
    unmirrored: tuple[StateKey, ...] = ()

    def _table(self) -> Table:
        rows = [
            (
                "repaired" if one.repaired else one.kind,
                one.what,
                ", ".join(map(str, one.keys)),
                one.path or "",
                one.found or "",
            )
            for one in self.findings
        ]
        rest = len(self.absent) + len(self.partial)
        summary = (
            f"{'all is well' if self.ok else 'not all is well'}: {len(self.checked)} states "
            f"checked, {rest} not here or in part; {self.objects} objects, {size_cell(self.nbytes)}"
        )
        return Table(("KIND", "WHAT", "STATES", "WHERE", "FOUND"), rows, summary)

    @property
    def checked(self) -> tuple[StateKey, ...]:
        """The states that were checked whole."""
        without = set(self.partial)
        return tuple(key for key in self.states if key not in without)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, or everything that was is repaired."""
        return all(finding.repaired for finding in self.findings)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings as a report lists them: by state, by what it is, by place."""
    return tuple(sorted(findings, key=lambda one: (one.keys, one.what, one.path or "")))


def unreadable_folder(error: AccessError) -> Finding:
    """A finding of a folder of states that may not be read."""
    path = None if error.path is None else str(error.path)
    found = None if error.found is None else str(error.found)
    remedy = error.remedy
    return Finding((), "unreadable", "a folder of states", path=path, found=found, remedy=remedy)


def unreadable_state_file(key: StateKey, error: ManifestError | OSError) -> Finding:
    """A finding of a state file that cannot be read, with the error that says why."""
    if isinstance(error, ManifestError):
        path = error.path if error.line is None else f"{error.path}, line {error.line}"
        expected, said, remedy = error.expected, error.message, error.remedy
        said = said if error.found is None else f"{said}: {error.found}"
    else:
        path = error.filename and str(error.filename)
        expected, said, remedy = None, error.strerror or str(error), None
    return Finding(
        (key,),
        "unreadable",
        "the state file",
        path=path,
        expected=None if expected is None else str(expected),
        found=said,
        remedy=remedy or "restore it from a copy, or bring the state again with " + OVERWRITE,
    )


def unsigned_state(key: StateKey, error: SignatureError) -> Finding:
    """A finding of a state without a good signature, with the error that says why."""
    return Finding(
        (key,),
        "unsigned",
        "the state file",
        path=None if error.path is None else str(error.path),
        expected=None if error.expected is None else str(error.expected),
        found=error.message if error.found is None else f"{error.message}: {error.found}",
        remedy=error.remedy,
    )


def wrong_size(entry: StateEntry, size: int) -> Finding:
    """A finding of a state that has another size, in bytes, than its entry says."""
    return Finding(
        (entry.key,),
        "unreadable",
        "the size of the state",
        digest=entry.digest,
        path=entry.origin,
        expected=f"{entry.size} bytes",
        found=f"{size} bytes",
        remedy="correct it where the state is listed",
    )


def other_weights(key: StateKey, error: IntegrityError) -> Finding:
    """A finding of a state that a user's own store gives with another digest than it says."""
    return Finding(
        (key,),
        "damaged",
        "the state",
        path=None if error.path is None else str(error.path),
        expected=str(error.expected),
        found=str(error.found),
        remedy="save it again, or correct the digest that the store gives",
    )
