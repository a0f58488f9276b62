"""Tensors as they arrive from a file: published one by one, or staged until all are there.

`DirectGathering` knows the digest of every tensor, and publishes each as soon as it is whole and
right. `StagedGathering` knows none: it stages what comes, makes the state object of it, and only if
that has the right digest is anything published.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Lock

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, IntegrityError, concerning
from mlstate.fetch.header import FileTensor
from mlstate.fetch.plan import LARGE, DamagedPartialError, Piece, Segments, Take
from mlstate.format import tensor_object
from mlstate.format.state_object import (
    INLINE_LIMIT,
    InlineTensor,
    StateObject,
    TensorRef,
    check_name,
)
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects.partial import SEGMENT, Partial
from mlstate.objects.receiving import Receiver, Staged
from mlstate.parallel import for_each
from mlstate.units import LARGER

__all__ = ["DirectGathering", "Gathering", "StagedGathering", "values"]

_BOOLS = bytes([0, *[1] * 255])


class Gathering(abc.ABC):
    """Takes tensors by name, from files and from memory. Used by several threads.

    Attributes:
        knows_digests: Whether every tensor is compared with a digest of its own as it comes.
    """

    knows_digests: bool

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._segments = Segments(receiver)
        self._large: set[Digest] = set()  # the names of what came in segments, or in part
        self._reused = False
        self._lock = Lock()

    @abc.abstractmethod
    def expect(self, specs: Mapping[str, TensorSpec], where: str) -> list[str]:
        """Look at what a file holds, before its data comes, and say which names are wanted.

        If it cannot be the state, a `FormatError` says ``where`` it is from.
        """

    @abc.abstractmethod
    def knows(self, name: str) -> bool:
        """Whether something of this name may be wanted; other entries may be anything."""

    def pieces(
        self, name: str, tensor: FileTensor, span: Callable[[], int] = lambda: SEGMENT
    ) -> Iterator[Piece[Take]]:
        """The pieces of a tensor that are wanted, of a file that can be read in any order.

        A large tensor is opened when the first of its pieces is asked for; ``span`` as of
        `Segments.pieces`.
        """
        if tensor.spec.nbytes < LARGE:
            yield from self.whole(name, tensor)
            return
        identity = self._identity_of(name, tensor.spec)
        self._large.add(identity)
        yield from self._segments.pieces(
            identity,
            tensor_object.object_size(tensor.spec),
            lambda partial: self._take_checked(name, tensor, partial),
            head=tensor_object.header(tensor.spec),
            start=tensor.start,
            convert=lambda chunks: values(tensor.spec, chunks),
            span=span,
        )

    def whole(self, name: str, tensor: FileTensor) -> Iterator[Piece[Take]]:
        """The one piece that is a tensor, of a file that is read from front to back."""
        yield Piece(
            tensor.start,
            tensor.start + tensor.spec.nbytes,
            lambda chunks: self._take_whole(name, tensor.spec, chunks),
        )

    def take(self, name: str, spec: TensorSpec, chunks: Iterator[Bytes]) -> None:
        """Take a tensor whose bytes these are; an error of theirs leaves nothing of it."""
        self._take_whole(name, spec, chunks)

    def spool(
        self,
        names: Mapping[str, TensorSpec],
        where: str,
        size: int,
        start: int,
        complete: Callable[[Partial], None],
    ) -> Iterator[Piece[Take]]:
        """The pieces of a range of a file that hold tensors, but not as they are stored.

        A later run goes on with what has come of it, if it wants the same tensors from there.

        Args:
            names: The tensors.
            where: What tells this range from others.
            size: The size of the range in bytes.
            start: Where it begins.
            complete: Takes the tensors from what came, which is removed afterwards.
        """
        identities = sorted(self._identity_of(name, spec) for name, spec in names.items())

        def finish(partial: Partial) -> None:
            if partial.resumed:
                self.distrust()
            try:
                complete(partial)
            except (IntegrityError, FormatError):
                if partial.resumed:
                    raise DamagedPartialError from None
                raise
            finally:
                partial.discard()

        identity = self._named("\n".join([f"a part of {where}", *identities]))
        self._large.add(identity)
        yield from self._segments.pieces(identity, size, finish, start=start)

    def restart(self) -> None:
        """Forget which files were looked at: all of them are looked at anew."""
        self._reused = False

    @abc.abstractmethod
    def complete(self) -> None:
        """Publish what is not published yet, once all files of a mirror were read.

        If what came is not the state, an `IntegrityError` is raised and nothing of it is kept.
        """

    def discard(self) -> None:
        """Remove what was kept without a digest, to begin anew."""
        self.restart()

    def remove_parts(self) -> None:
        """Remove what is here of tensors that came in parts, which may be of another version."""
        for name in self._large:
            self.receiver.remove_partial(name)

    def distrust(self) -> None:
        """Note that something of an earlier run goes in, to which damage may be due."""
        self._reused = True

    def close(self) -> None:
        """Close unfinished objects; a later run may go on with them."""
        self._segments.close()
        self.receiver.claims.give_all()

    def _take_checked(self, name: str, tensor: FileTensor, partial: Partial) -> None:
        if tensor.crc is not None:
            with concerning(tensor=name):
                self._segments.check_crc(partial, tensor_object.DATA_OFFSET, tensor.crc)
        self._take_partial(name, tensor.spec, partial)

    @abc.abstractmethod
    def _take_whole(self, name: str, spec: TensorSpec, chunks: Iterator[Bytes]) -> None: ...

    @abc.abstractmethod
    def _take_partial(self, name: str, spec: TensorSpec, partial: Partial) -> None: ...

    @abc.abstractmethod
    def _identity_of(self, name: str, spec: TensorSpec) -> Digest:
        """The name under which a later run finds what has come of a tensor."""

    def _named(self, text: str) -> Digest:
        """The name under which a later run finds what a text stands for."""
        return Digest.of(text.encode())


class DirectGathering(Gathering):
    """Takes tensors whose digests are known: ``refs``, those of the state that are missing."""

    knows_digests = True

    def __init__(self, receiver: Receiver, refs: Mapping[str, TensorRef]) -> None:
        super().__init__(receiver)
        self._refs = refs
        self.missing: set[Digest] = {ref.digest for ref in refs.values()}

    def expect(self, specs: Mapping[str, TensorSpec], where: str) -> list[str]:
        """The first name of each missing tensor that the file has; see `Gathering.expect`."""
        wanted: dict[Digest, str] = {}
        for name, ref in self._refs.items():
            if name in specs and ref.digest in self.missing and ref.digest not in wanted:
                if specs[name] != ref.spec:
                    raise FormatError(
                        "this file has another tensor under a name of the state",
                        path=where,
                        tensor=name,
                        expected=ref.spec,
                        found=specs[name],
                    )
                if self.receiver.claim(ref.digest, tensor_object.object_size(ref.spec)):
                    wanted[ref.digest] = name
        return list(wanted.values())

    def knows(self, name: str) -> bool:
        """Whether a missing tensor has this name."""
        return name in self._refs

    def complete(self) -> None:
        """Nothing to decide: each tensor was published when it was right."""

    def _take_whole(self, name: str, spec: TensorSpec, chunks: Iterator[Bytes]) -> None:
        digest = self._refs[name].digest
        with concerning(tensor=name), self.receiver.arriving() as arriving:
            arriving.write(tensor_object.header(spec))
            arriving.fill(values(spec, chunks))
            arriving.publish(digest)
        self._came(digest)

    def _take_partial(self, name: str, spec: TensorSpec, partial: Partial) -> None:
        digest = self._refs[name].digest
        with concerning(tensor=name):
            self._segments.publish(partial, digest)
        self._came(digest)

    def _identity_of(self, name: str, spec: TensorSpec) -> Digest:
        return self._refs[name].digest

    def _came(self, digest: Digest) -> None:
        self.receiver.claims.give(digest)
        with self._lock:
            self.missing.discard(digest)


class StagedGathering(Gathering):
    """Takes the tensors of a state whose state object is not at hand.

    ``identity`` is the state's digest or, of an unpinned state, where it is from: what an earlier
    run staged for the same is used again. It is None where nobody could tell whether that is
    right: then the next run removes it. ``expected`` is the state digest, None if any will do.
    ``size`` is the bytes of tensor data that the state has; if unknown, at most ``max_size`` are
    taken.
    """

    knows_digests = False

    def __init__(
        self,
        receiver: Receiver,
        identity: str | None,
        expected: Digest | None,
        size: int | None,
        max_size: int,
    ) -> None:
        super().__init__(receiver)
        self._identity = identity
        self._expected = expected
        self._most = max_size if size is None else size
        self._exactly = size
        self._specs: dict[str, TensorSpec] = {}
        self._inline: dict[str, InlineTensor] = {}
        self._staged: dict[str, Staged] = {}
        self.state: StateObject | None = None
        self.digest: Digest | None = None

    def expect(self, specs: Mapping[str, TensorSpec], where: str) -> list[str]:
        """All that the file holds, but for what an earlier run has staged."""
        with concerning(path=where):
            for name in specs:
                check_name(name)
            if both := self._specs.keys() & specs.keys():
                raise FormatError("two files have a tensor of the same name", tensor=min(both))
            self._specs.update(specs)
            total = sum(spec.nbytes for spec in self._specs.values())
            if total > self._most:
                raise FormatError(
                    "this is more than the state",
                    expected=f"at most {self._most} bytes of tensors",
                    found=f"{total} bytes",
                    remedy=None if self._exactly else "if that is right, " + LARGER,
                )
        return [name for name in specs if not self._have(name, specs[name])]

    def _have(self, name: str, spec: TensorSpec) -> bool:
        if spec.nbytes < INLINE_LIMIT:
            return False
        staged = self.receiver.staged(
            self._identity_of(name, spec), tensor_object.object_size(spec)
        )
        if staged is None:
            return False
        self._staged[name] = staged
        self._reused = True
        return True

    def knows(self, name: str) -> bool:
        """True: every tensor that comes must be one of the state."""
        return True

    def complete(self) -> None:
        """Make the state object of what came, and publish all if it is the right one."""
        try:
            refs = {n: TensorRef(self._specs[n], s.digest) for n, s in self._staged.items()}
            state = StateObject(self._inline, refs)
            data = state.encode()
            digest = Digest.of(data)
            if self._expected is not None and digest != self._expected:
                raise IntegrityError(
                    "what came is another state; nothing of it was stored",
                    expected=self._expected,
                    found=digest,
                )
            for_each(self.receiver.sync_staged, self._staged.values())
        except (IntegrityError, FormatError):
            reused = self._reused
            self.discard()
            if reused:
                raise DamagedPartialError from None
            raise
        # First: a run that is killed in between leaves what tells the next one what is there.
        with self.receiver.arriving() as arriving:
            arriving.write(data)
            arriving.publish(digest)
        for_each(self.receiver.publish_staged, self._staged.values())
        self.state, self.digest = state, digest

    def restart(self) -> None:
        """See `Gathering.restart`: what was staged is found again."""
        for known in (self._specs, self._inline, self._staged):
            known.clear()
        super().restart()

    def discard(self) -> None:
        """See `Gathering.discard`: what was staged is removed, and what is incomplete."""
        self._segments.forget()
        for staged in self._staged.values():
            staged.discard()
        super().discard()

    def _take_whole(self, name: str, spec: TensorSpec, chunks: Iterator[Bytes]) -> None:
        if spec.nbytes < INLINE_LIMIT:
            data = b"".join(bytes(chunk) for chunk in values(spec, chunks))
            with self._lock:
                self._inline[name] = InlineTensor(spec, data)
            return
        with self.receiver.arriving() as arriving:
            arriving.write(tensor_object.header(spec))
            arriving.fill(values(spec, chunks))
            self._keep(name, arriving.stage(self._identity_of(name, spec)))

    def _take_partial(self, name: str, spec: TensorSpec, partial: Partial) -> None:
        self._reused = self._reused or partial.resumed
        identity = self._identity_of(name, spec)
        self._keep(name, self.receiver.stage_partial(partial, identity, partial.digest()))

    def _keep(self, name: str, staged: Staged) -> None:
        with self._lock:
            self._staged[name] = staged

    def _identity_of(self, name: str, spec: TensorSpec) -> Digest:
        return self._named(f"{self._identity}\n{spec}\n{name}")

    def _named(self, text: str) -> Digest:
        return super()._named(text) if self._identity else self.receiver.unsure_name(text)


def values(spec: TensorSpec, chunks: Iterable[Bytes]) -> Iterator[Bytes]:
    """The bytes that stand for the values: of BOOL, 1 for whatever is not 0."""
    if spec.dtype != "BOOL":
        yield from chunks
    else:
        for chunk in chunks:
            yield bytes(chunk).translate(_BOOLS)
