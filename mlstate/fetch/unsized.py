"""Where tensors go whose digests nobody knows: staged, until the digest of their state is known.

`UnknownGathering` stages what comes, makes the state object of it, and only if that has the right
digest is anything published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlstate.digests import Bytes, Digest
from mlstate.errors import FormatError, IntegrityError, concerning
from mlstate.fetch.gather import Gathering, fill, values
from mlstate.fetch.segments import DamagedPartialError
from mlstate.format import tensor_object
from mlstate.format.state_object import (
    INLINE_LIMIT,
    InlineTensor,
    StateObject,
    TensorRef,
    check_name,
)
from mlstate.format.tensor_object import TensorSpec
from mlstate.objects.partial import Partial
from mlstate.objects.receiving import Receiver, Staged
from mlstate.parallel import for_each

__all__ = ["UnknownGathering"]


class UnknownGathering(Gathering):
    """Tensors of a state whose state object is not at hand.

    Args:
        receiver: Where they go.
        identity: What the state is: its digest; or, of an unpinned one, where it is from. What an
            earlier run staged for the same is used again.
        expected: The state digest; None if any will do.
        size: The bytes of tensor data that the state has; None if unknown.
        max_size: The most bytes of tensor data that are taken if `size` is unknown.
    """

    def __init__(
        self,
        receiver: Receiver,
        identity: str,
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
                    remedy=None if self._exactly else "if that is right, give a larger max_size",
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
        """Always: what comes must be exactly the state."""
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

    def discard(self) -> None:
        """Remove what was staged, and be ready to begin anew."""
        for staged in self._staged.values():
            staged.discard()
        for known in (self._specs, self._inline, self._staged):
            known.clear()
        self._reused = False

    def _take_whole(self, name: str, spec: TensorSpec, chunks: Iterator[Bytes]) -> None:
        if spec.nbytes < INLINE_LIMIT:
            data = b"".join(bytes(chunk) for chunk in values(spec, chunks))
            with self._lock:
                self._inline[name] = InlineTensor(spec, data)
            return
        with self.receiver.arriving() as arriving:
            fill(arriving, spec, chunks)
            self._keep(name, arriving.stage(self._identity_of(name, spec)))

    def _take_partial(self, name: str, spec: TensorSpec, partial: Partial) -> None:
        self._reused = self._reused or partial.resumed
        identity = self._identity_of(name, spec)
        self._keep(name, self.receiver.stage_partial(partial, identity, partial.digest()))

    def _keep(self, name: str, staged: Staged) -> None:
        with self._lock:
            self._staged[name] = staged

    def _identity_of(self, name: str, spec: TensorSpec) -> Digest:
        return Digest.of(f"{self._identity}\n{spec}\n{name}".encode())
