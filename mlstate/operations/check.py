"""`check_manifests`: whether manifests can be read, are pinned, and name mirrors that answer."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlstate.errors import ManifestError, ManifestNotFoundError, MlstateError
from mlstate.locations import local_path
from mlstate.manifests import Manifest, StateEntry, content_of, manifest_files
from mlstate.manifests.folder import is_manifest_text, toml_files
from mlstate.operations.git.staged import StagedFile, staged_files
from mlstate.phrases import locking
from mlstate.states import StateKey

__all__ = ["CheckReport", "ManifestFinding", "check_manifests", "check_staged"]

_CONFLICT = re.compile(rb"^(<{7,}|>{7,}) ", re.MULTILINE)


@dataclass(frozen=True)
class ManifestFinding:
    """What is wrong in a manifest.

    Attributes:
        path: The manifest.
        line: The line, if it is known.
        key: The state, or the value in the file; None if it is about all of it.
        message: What is wrong.
        expected: What was to be there.
        found: What is there instead.
        remedy: What to do.
    """

    path: str
    line: int | None
    key: str | None
    message: str
    expected: str | None = None
    found: str | None = None
    remedy: str | None = None

    def text(self, say: Callable[[object], str] = str) -> str:
        """The finding in lines, as an error is told."""
        fields = {name: value for name, value in vars(self).items() if name != "message"}
        return MlstateError(self.message, **fields).text(say)


@dataclass(frozen=True)
class CheckReport:
    """What was checked, and what is wrong.

    Attributes:
        manifests: The manifests that were read.
        states: How many states they list; of staged ones how many are new or changed.
        asked: How many files mirrors were asked for; None if they were not asked.
        unmirrored: The states without any mirror, if mirrors were asked.
        passed_over: The files that are no manifests: TOML files in the folders, and others where
            these are passed over.
        findings: What is wrong.
    """

    manifests: tuple[str, ...]
    states: int
    asked: int | None
    unmirrored: tuple[StateKey, ...]
    passed_over: tuple[str, ...]
    findings: tuple[ManifestFinding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def check_manifests(
    paths: Iterable[str | os.PathLike[str]],
    *,
    mirrors: bool = False,
    allow_unpinned: bool = False,
    pass_over: bool = False,
    offline: bool | None = None,
) -> CheckReport:
    """Check manifests, as a hook or a CI job does before others get them.

    Args:
        paths: Manifests, or folders of them.
        mirrors: Ask every mirror whether it has what the manifest names, and how large that is.
        allow_unpinned: Let states without a digest pass.
        pass_over: Pass over files that are no manifests; otherwise they are findings.
        offline: Ask mirrors on this machine alone; by default as MLSTATE_OFFLINE says.

    Returns:
        What was checked, and what is wrong.

    Raises:
        ManifestNotFoundError: There is no such file or folder, or the folder has no manifest.
    """
    checking = _Checking(allow_unpinned)
    for path in paths:
        place = local_path(path)
        files = manifest_files(place)
        if files and place.is_dir():
            checking.passed_over += map(str, toml_files(place).others)
        if not files:
            raise ManifestNotFoundError(
                "there is no manifest in this folder", path=path, remedy="check the path"
            )
        for file in files:
            data = content_of(file)
            if pass_over and not is_manifest_text(data):
                checking.passed_over.append(str(file))
            else:
                checking.look(str(file), data)
    return checking.report(mirrors=mirrors, offline=offline)


def check_staged(
    folder: str | os.PathLike[str] | None = None,
    *,
    mirrors: bool = False,
    allow_unpinned: bool = False,
    offline: bool | None = None,
) -> CheckReport:
    """Check the manifests that the next commit of a repository changes, as they are staged.

    Of a manifest that was there before, only states that are new or changed are checked further
    than that they can be read. Which files are manifests is as `.gitattributes` says
    (`mlstate git-setup`); of others, TOML files that are like one.

    Args:
        folder: A folder of the repository; the current one by default.
        mirrors: As for `check_manifests`, and likewise the others.
        allow_unpinned: Let states without a digest pass.
        offline: Ask mirrors on this machine alone.

    Raises:
        GitError: This is no work tree of git.
    """
    checking = _Checking(allow_unpinned)
    for file in staged_files(folder):
        if file.is_named or (file.path.suffix == ".toml" and is_manifest_text(file.data)):
            checking.look(str(file.path), file.data, _before(file))
    return checking.report(mirrors=mirrors, offline=offline)


def _before(file: StagedFile) -> Mapping[StateKey, StateEntry]:
    """The states of the last commit; none if it had no such manifest."""
    if file.committed is None:
        return {}
    try:
        return Manifest.parse(file.committed, str(file.path)).states
    except ManifestError:
        return {}


class _Checking:
    """One check of several manifests."""

    def __init__(self, allow_unpinned: bool) -> None:
        self._allow_unpinned = allow_unpinned
        self._manifests: list[str] = []
        self._entries: list[StateEntry] = []
        self._findings: list[ManifestFinding] = []
        self.passed_over: list[str] = []

    def look(
        self, path: str, data: bytes, before: Mapping[StateKey, StateEntry] | None = None
    ) -> None:
        """Read a manifest; of what it had before nothing is said again."""
        self._manifests.append(path)
        try:
            manifest = Manifest.parse(data, path)
        except ManifestError as error:
            self._findings.append(_damaged(path, data, error))
            return
        old = {} if before is None else before
        new = [entry for key, entry in manifest.states.items() if old.get(key) != entry]
        self._entries += new
        for entry in new:
            for name, meant in entry.misspelt.items():
                self._find(entry, f"{name} is no name of a manifest", remedy=f"call it {meant}")
            if entry.digest is None and not self._allow_unpinned and not entry.misspelt:
                self._find(entry, "this state has no digest", remedy=_how_to_pin(entry))

    def report(self, *, mirrors: bool, offline: bool | None) -> CheckReport:
        """Ask mirrors, if that is wanted, and say what was found."""
        asked, unmirrored = None, list[StateKey]()
        if mirrors:
            from mlstate.operations.mirror_check import ask_mirrors  # all that reaches mirrors

            asked, problems = ask_mirrors(self._entries, offline=offline)
            unmirrored = [e.key for e in self._entries if not e.mirrors and not e.objects]
            origins = {entry.key: entry for entry in self._entries}
            for problem in problems:
                self._find(origins[problem.key], problem.message, problem.error)
        return CheckReport(
            tuple(self._manifests),
            len(self._entries),
            asked,
            tuple(unmirrored),
            tuple(self.passed_over),
            tuple(self._findings),
        )

    def _find(
        self,
        entry: StateEntry,
        message: str,
        error: MlstateError | None = None,
        *,
        remedy: str | None = None,
    ) -> None:
        found = None
        if error is not None:
            said = (error.path, None if error.found is None else str(error.found))
            found, remedy = ": ".join(filter(None, said)) or None, error.remedy
        expected = None if error is None or error.expected is None else str(error.expected)
        finding = ManifestFinding(
            str(entry.origin), None, str(entry.key), message, expected, found, remedy
        )
        self._findings.append(finding)


def _how_to_pin(entry: StateEntry) -> str:
    call = locking(entry.key, entry.origin)
    if entry.mirrors:
        return "pin it: " + call
    return "write its digest (blake3 = ...), or give it a mirror, and pin it: " + call


def _damaged(path: str, data: bytes, error: ManifestError) -> ManifestFinding:
    """The finding for a manifest that cannot be read."""
    finding = ManifestFinding(
        path,
        error.line,
        None if error.key is None else str(error.key),
        error.message,
        None if error.expected is None else str(error.expected),
        None if error.found is None else str(error.found),
        error.remedy,
    )
    if mark := _CONFLICT.search(data):
        return replace(
            finding,
            line=data.count(b"\n", 0, mark.start()) + 1,
            message="this manifest has the marks of a conflict in it",
            found=None,
            remedy="choose between its sides, remove the marks, and add it: git add "
            + os.fspath(Path(path)),
        )
    return finding
