"""`verify` of mirrors: each mirror of each state is asked whether it has what the state needs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from mlstate.errors import MlstateError
from mlstate.fetch import Fetcher
from mlstate.fetch.attempts import Context, name_of, read_at_most, shown
from mlstate.fetch.progress import Meter
from mlstate.fetch.reader import Reader
from mlstate.format.state_object import StateObject
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import StateEntry
from mlstate.objects import FolderObjectStore, MemoryObjectStore
from mlstate.objects.cache import Cache
from mlstate.objects.receiving import Receiver
from mlstate.operations.verify.collect import collect
from mlstate.operations.verify.mirror_questions import (
    FAULTS,
    Answer,
    Questions,
    reason_of,
    sizes_of,
)
from mlstate.operations.verify.mirror_weights import ask_weights
from mlstate.operations.verify.report import Finding, MirrorCheck, VerifyReport, in_order
from mlstate.operations.verify.servers import Servers
from mlstate.operations.verify.unchecked import all_without_digest
from mlstate.parallel import for_each
from mlstate.reading import read_state
from mlstate.states import StateKey
from mlstate.stores.cache import make_fetcher
from mlstate.stores.read import StateStore
from mlstate.transport import Transports
from mlstate.transport.reach import Reach

__all__ = ["verify_mirrors"]

STATES_AT_ONCE = 4


def verify_mirrors(
    store: StateStore,
    keys: Iterable[StateKey] | None,
    meter: Meter,
    *,
    strict: bool | None,
    deep: bool,
) -> VerifyReport:
    """Ask the mirrors of states; arguments and errors as of `verify`."""
    is_strict = keys is not None if strict is None else strict
    collected = collect(store, keys, store.threads)
    findings = collected.findings
    entries = sorted([*collected.entries, *collected.without_digest], key=lambda entry: entry.key)
    checks: list[MirrorCheck] = []
    with _Asking.begun(store, meter, deep=deep) as asking:
        for_each(lambda entry: checks.extend(asking.ask(entry)), entries, STATES_AT_ONCE)
    order = {entry.key: number for number, entry in enumerate(entries)}
    checks.sort(key=lambda check: order[check.key])  # those of a state stay in their order
    asked = {check.key for check in checks}
    unmirrored = tuple(entry.key for entry in entries if entry.key not in asked)
    findings += [_faulty(check) for check in checks if check.reason is not None]
    if is_strict:
        findings += map(_without_mirrors, unmirrored)
        findings += all_without_digest(collected)
    return VerifyReport(
        tuple(sorted(asked)),
        sum(check.files for check in checks),
        sum(check.nbytes for check in checks),
        in_order(findings),
        unpinned=tuple(entry.key for entry in collected.without_digest),
        unverifiable=tuple(collected.unverifiable),
        mirrors=tuple(checks),
        unmirrored=unmirrored,
    )


class _Asking:
    """Asks the mirrors of one state after the other."""

    def __init__(
        self,
        store: StateStore,
        fetcher: Fetcher,
        transports: Transports,
        receiver: Receiver,
        meter: Meter,
        *,
        deep: bool,
    ) -> None:
        self._store = store
        self._fetcher = fetcher
        self._transports = transports
        self._receiver = receiver
        self._meter = meter
        self._servers = Servers()
        self._deep = fetcher if deep else None
        self._questions = Questions(self._servers, deep=deep)

    @classmethod
    @contextmanager
    def begun(cls, store: StateStore, meter: Meter, *, deep: bool) -> Iterator[_Asking]:
        """With connections, and a folder for what must be read whole; both end with it."""
        fetcher = store.fetcher
        if fetcher is None:
            fetcher = make_fetcher(Cache([MemoryObjectStore()]), offline=None, progress=None)
        with (
            tempfile.TemporaryDirectory(prefix="mlstate-verify-") as folder,
            fetcher.transports() as transports,
        ):
            receiver = Receiver(FolderObjectStore(folder), durable=False)
            yield cls(store, fetcher, transports, receiver, meter, deep=deep)

    def ask(self, entry: StateEntry) -> list[MirrorCheck]:
        """Ask every mirror of a state."""
        context = self._context(entry)
        checks: list[MirrorCheck] = []

        def check(mirror: str, what: str, question: Callable[[], Answer]) -> None:
            try:
                answer = question()
            except FAULTS as error:
                answer = Answer(reason=reason_of(error))
            checks.append(
                MirrorCheck(
                    entry.key, shown(mirror), what, answer.files, answer.nbytes, answer.reason
                )
            )
            self._meter.add(answer.nbytes)

        state, questions = self._state_at_hand(entry, context), self._questions
        for address in entry.objects if entry.digest is not None else ():
            check(address, "objects", partial(self._ask_objects, entry, address, state, context))
        for mirror in entry.mirrors:
            if isinstance(mirror, UnusableMirror):
                check(_place_of(mirror), "tensors", partial(Answer, reason=mirror.reason))
                continue
            ask = partial(
                ask_weights, entry, mirror, state, context, servers=self._servers, deep=self._deep
            )
            check(name_of(mirror), "tensors", ask)
            if mirror.state is not None and entry.digest is not None:
                ask = partial(self._ask_state_object, entry, mirror.state, context)
                check(mirror.state, "state object", ask)
        for name, file in sorted(entry.files.items()):
            size = self._store.objects.size(file.digest)
            for mirror in file.mirrors:
                if isinstance(mirror, UnusableMirror):
                    check(_place_of(mirror), name, partial(Answer, reason=mirror.reason))
                    continue
                address = mirror.urls[0]
                check(address, name, partial(questions.file, address, context, file.digest, size))
        return checks

    def _ask_objects(
        self, entry: StateEntry, address: str, state: StateObject | None, context: Context
    ) -> Answer:
        state = state or self._questions.stored_state_object(entry, address, context)
        if state is None:
            return Answer(1, 0, "it does not have this state")
        here = {name: self._store.objects.size(file.digest) for name, file in entry.files.items()}
        return self._questions.objects(address, context, *sizes_of(entry, state, here))

    def _ask_state_object(self, entry: StateEntry, address: str, context: Context) -> Answer:
        return Answer(1, len(self._questions.state_object(entry, address, context).encode()))

    def _state_at_hand(self, entry: StateEntry, context: Context) -> StateObject | None:
        """The state object, from here or from the first mirror that gives it alone."""
        if entry.digest is None:
            return None
        with suppress(MlstateError, OSError):
            return read_state(entry, self._store.objects)
        mirrors = [m for m in entry.mirrors if isinstance(m, Mirror)]
        for address in entry.objects:
            with suppress(*FAULTS):
                if found := self._questions.stored_state_object(entry, address, context):
                    return found
        for address in [m.state for m in mirrors if m.state is not None]:
            with suppress(*FAULTS):
                return self._questions.state_object(entry, address, context)
        return None

    def _context(self, entry: StateEntry) -> Context:
        base = Path(entry.origin).absolute().parent if entry.origin else None
        fetcher = self._fetcher
        patience = self._transports.patience()
        reader = Reader(fetcher.retries, self._meter, fetcher.connections, patience)
        most = read_at_most(entry.size or 0)
        reach = Reach(entry.source)
        return Context(self._transports, reader, self._receiver, base, most, reach)


def _place_of(mirror: UnusableMirror) -> str:
    toml = mirror.toml
    return str(toml if isinstance(toml, str) else toml.get("url", toml.get("urls", "a mirror")))


def _faulty(check: MirrorCheck) -> Finding:
    """A finding of a mirror that does not do."""
    return Finding(
        (check.key,),
        "faulty",
        f"a mirror ({check.what})",
        path=check.mirror,
        found=check.reason,
        remedy="mend what is there, or take the mirror out of where the state is listed",
    )


def _without_mirrors(key: StateKey) -> Finding:
    """A finding of a state that no mirror is listed for."""
    return Finding(
        (key,), "unchecked", "all", expected="a mirror", found="none is listed for this state"
    )
