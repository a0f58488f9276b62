"""Mirrors are asked whether they have what a manifest names: one request for each file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mlstate import settings
from mlstate.errors import MlstateError, TransportError
from mlstate.fetch.addresses import addresses_of
from mlstate.format import layout
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import StateEntry
from mlstate.parallel import for_each
from mlstate.states import StateKey
from mlstate.transport import Resource, Retries, Transports, retrying
from mlstate.transport.hub import HubListing

__all__ = ["MirrorProblem", "ask_mirrors"]

_THREADS = 16
_CONNECT, _READ = 5.0, 20.0
_RETRIES = Retries(2, first=0.2, most=1.0)
_MISSING = frozenset({404, 410})


@dataclass(frozen=True)
class MirrorProblem:
    """A mirror that lacks what a manifest names, with the error that says so.

    Attributes:
        key: The state.
        name: The file of the state; None if it is about its tensors.
        error: What the mirror, or the way to it, said.
    """

    key: StateKey
    name: str | None
    error: MlstateError

    @property
    def message(self) -> str:
        """What is wrong, in a sentence."""
        about = "" if self.name is None else f" {self.name} of"
        if _is_missing(self.error):
            return f"a mirror does not have{about} this state"
        return f"{self.error.message}{about and f': a mirror of{about} this state'}"


class _Opener(NamedTuple):
    """Opens the addresses of an entry, briefly tried again."""

    transports: Transports
    base: Path | None

    def open(self, address: str) -> Resource:
        return retrying(self.transports.open(address, base=self.base), _RETRIES)

    def hub_files(self, address: str) -> HubListing:
        return self.transports.hub_files(address)


def ask_mirrors(
    entries: Iterable[StateEntry], *, offline: bool | None = None
) -> tuple[int, list[MirrorProblem]]:
    """Ask the mirrors of states for the sizes of what they are to have.

    Each mirror that a state or a file lists has to have it, a safetensors file with at least as
    many bytes as the state's tensors. Of the object mirrors of a manifest one has to have the
    state object, unless the state has a mirror of its own.

    Args:
        entries: The states.
        offline: Ask those on this machine alone; by default as the settings say.

    Returns:
        How many files were asked for, and what is wrong, in the order of the entries.
    """
    forbidden = settings.offline() if offline is None else offline
    with Transports(connect_timeout=_CONNECT, read_timeout=_READ, offline=forbidden) as transports:
        asking = [_Entry(entry, transports) for entry in entries]
        jobs = [job for each in asking for job in each.jobs()]
        for_each(_asked, jobs, min(_THREADS, len(jobs) or 1))
    found = [problem for each in asking for problem in each.problems()]
    return sum(each.asked for each in asking), found


_Question = Callable[[], object]


class _Entry:
    """The questions about one state, and their answers."""

    def __init__(self, entry: StateEntry, transports: Transports) -> None:
        self._entry = entry
        base = Path(entry.origin).parent if entry.origin else None
        self._opener = _Opener(transports, base)
        self._found: dict[tuple[int, str | None, str], MlstateError | None] = {}
        self._sizes: dict[int, list[int | None]] = {}

    def jobs(self) -> Iterable[_Question]:
        """The questions: functions that may be called at the same time."""
        for number, mirror in enumerate(self._entry.mirrors):
            yield partial(self._ask_mirror, number, None, mirror)
        for name, file in self._entry.files.items():
            for number, mirror in enumerate(file.mirrors):
                yield partial(self._ask_mirror, number, name, mirror)
        if self._entry.digest is not None:
            path = layout.object_path(self._entry.digest)
            for number, address in enumerate(self._entry.objects):
                yield partial(self._ask, -1 - number, None, f"{address.rstrip('/')}/{path}")

    @property
    def asked(self) -> int:
        """How many files were asked for."""
        return len(self._found)

    def problems(self) -> list[MirrorProblem]:
        """What is wrong."""
        lacking, wrong, has = [], [], False
        for (number, name, _), error in sorted(self._found.items(), key=_in_order):
            if error is None:
                has = has or name is None
            elif number < 0 and _is_missing(error):
                lacking.append(MirrorProblem(self._entry.key, name, error))
            else:
                wrong.append(MirrorProblem(self._entry.key, name, error))
        return wrong if has else lacking + wrong

    def _ask_mirror(self, number: int, name: str | None, mirror: Mirror | UnusableMirror) -> None:
        if isinstance(mirror, UnusableMirror):
            error = TransportError("this version cannot use a mirror", found=mirror.reason)
            self._found[number, name, ""] = error
            return
        try:
            parts = mirror.parts or (mirror,)
            addresses = {each: part for part in parts for each in addresses_of(part, self._opener)}
        except (MlstateError, OSError) as error:
            self._found[number, name, ", ".join(mirror.urls)] = _typed(error)
            return
        sizes = {address: self._ask(number, name, address) for address in addresses}
        if name is None and all(part.format == "safetensors" for part in addresses.values()):
            self._compare(number, sizes)

    def _ask(self, number: int, name: str | None, address: str) -> int | None:
        """The size of a file; None if nobody says it."""
        try:
            size = self._opener.open(address).size()
            error = None
            if size is None:
                with self._opener.open(address).read() as stream:
                    stream.read(1)
        except (MlstateError, OSError) as raised:
            size, error = None, _typed(raised)
        self._found[number, name, address] = error
        return size

    def _compare(self, number: int, sizes: Mapping[str, int | None]) -> None:
        """See that files have room for the tensors of the state."""
        known = [size for size in sizes.values() if size is not None]
        least = self._entry.size
        if least is not None and len(known) == len(sizes) and sum(known) < least:
            address = next(iter(sizes))
            self._found[number, None, address] = TransportError(
                "a mirror has less than the state's tensors",
                path=self._opener.open(address).address,
                expected=f"at least {least} bytes",
                found=f"{sum(known)} bytes",
            )


def _asked(question: _Question) -> None:
    question()


def _is_missing(error: MlstateError) -> bool:
    return isinstance(error, TransportError) and error.status in _MISSING


def _in_order(item: tuple[tuple[int, str | None, str], object]) -> tuple[bool, str, int, str]:
    number, name, address = item[0]
    return name is not None, name or "", number, address


def _typed(error: MlstateError | OSError) -> MlstateError:
    """An error of the system as one of ours."""
    if isinstance(error, MlstateError):
        return error
    status = 404 if isinstance(error, FileNotFoundError) else None
    reason = error.strerror or str(error)
    return TransportError("a file cannot be read", path=error.filename, found=reason, status=status)
