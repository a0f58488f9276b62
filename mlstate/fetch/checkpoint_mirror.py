"""Torch checkpoints as mirrors: by ranges where the file and the server allow it, else whole.

No torch is needed, and nothing that a checkpoint contains is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from mlstate.errors import FormatError, IntegrityError, NoRangesError, concerning
from mlstate.fetch.archive import RemoteCheckpoint, fetch_archive
from mlstate.fetch.attempts import Context
from mlstate.fetch.checkpoint_runs import ONE_COPY, CheckpointRuns
from mlstate.fetch.download import MAX_SIZE, check_sha256, download, too_large
from mlstate.fetch.gather import Gathering
from mlstate.fetch.header import HeaderRoom
from mlstate.fetch.names import Naming
from mlstate.fetch.plan import DamagedPartialError
from mlstate.locations import Mirror
from mlstate.parallel import for_each
from mlstate.pickled import (
    CheckpointTensor,
    FileSource,
    is_contiguous,
    read_checkpoint,
    spec_of,
    tensor_pieces,
)
from mlstate.pickled.gzipped import plain_file
from mlstate.pickled.select import Selected, choose_tensors
from mlstate.transport import Resource

__all__ = ["CheckpointMirror"]


_USUAL = 24 << 10
"""What is asked for of a pickle, where nothing is known of the state: that of 200 tensors."""


class CheckpointMirror:
    """Brings tensors from the checkpoints of one mirror; arguments as of `FileMirror`."""

    def __init__(
        self,
        context: Context,
        *,
        header: int | None,
        room: HeaderRoom,
        beside: int,
        check_sums: bool,
        naming: Naming,
    ) -> None:
        self._context = context
        self._header = _USUAL if header is None else header
        self._room = room
        self._beside = beside
        self._check_sums = check_sums
        self._naming = naming
        self.chosen: dict[int, Selected] = {}  # by the file's place in the list, without tensors

    def gather(self, gathering: Gathering, resources: Sequence[tuple[Mirror, Resource]]) -> None:
        """Bring what the gathering wants of these files.

        Raises:
            FormatError: One is no checkpoint, or not of this state.
            IntegrityError: One is damaged, or has another SHA-256.
            TransportError: One cannot be read.
        """
        found: dict[int, RemoteCheckpoint] = {}
        whole: dict[int, bool | None] = {}

        def look(index: int, part: Mirror, resource: Resource) -> None:
            summed = self._check_sums and part.sha256 is not None
            if summed or part.format != "torch":
                whole[index] = None
                return
            try:
                checkpoint = self._structure(gathering, index, part, resource)
            except NoRangesError:
                whole[index] = False
                return
            if checkpoint is None:
                whole[index] = True
            else:
                found[index] = checkpoint

        reader = self._context.reader
        reader.all(partial(look, index, *item) for index, item in enumerate(resources))
        self._bring(gathering, [checkpoint for _, checkpoint in sorted(found.items())], bool(whole))
        for index, ranges in sorted(whole.items()):
            self._gather_whole(gathering, index, *resources[index], ranges=ranges)

    def _structure(
        self, gathering: Gathering, index: int, part: Mirror, resource: Resource
    ) -> RemoteCheckpoint | None:
        read = fetch_archive(resource, self._header, self._room)
        if read is None:
            return None
        archive, source = read
        with concerning(path=resource.address):
            found = choose_tensors(archive.root, source.size, part.select, part.tensors_only)
            self.chosen[index] = replace(found, tensors={})
            tensors = self._named(gathering, part, found.tensors)
            specs = {name: spec_of(name, tensor) for name, tensor in tensors.items()}
        return RemoteCheckpoint(resource, source, archive, tensors, specs)

    def _bring(self, gathering: Gathering, checkpoints: list[RemoteCheckpoint], more: bool) -> None:
        reader = self._context.reader
        all_runs: list[CheckpointRuns] = []
        for checkpoint in checkpoints:
            runs = CheckpointRuns(checkpoint, gathering, reader)
            runs.choose(gathering.expect(checkpoint.specs, checkpoint.resource.address))
            if runs.nbytes > self._context.max_bytes:  # storages, of which tensors need a part
                most = self._context.max_bytes
                raise too_large(checkpoint.resource, most, f"{runs.nbytes} bytes")
            all_runs.append(runs)
        reader.meter.expect(None if more else sum(runs.nbytes for runs in all_runs))
        reader.all(request for runs in all_runs for request in runs.locating())
        reader.all(request for runs in all_runs for request in runs.bringing(self._beside))

    def _named(
        self, gathering: Gathering, part: Mirror, tensors: dict[str, CheckpointTensor]
    ) -> dict[str, CheckpointTensor]:
        """The tensors that may be wanted, under the names of the state."""
        names = self._naming(part, tensors)
        return {name: tensors[old] for name, old in names.items() if gathering.knows(name)}

    def _gather_whole(
        self,
        gathering: Gathering,
        index: int,
        part: Mirror,
        resource: Resource,
        *,
        ranges: bool | None,
    ) -> None:
        context = self._context
        file, resumed = download(
            resource,
            context.receiver,
            context.reader,
            max_bytes=context.max_bytes,
            resume=part.sha256 is not None or not self._check_sums,
            ranges=ranges,
        )
        try:
            if part.sha256 is not None:
                context.sums[part] = check_sha256(file.path, part.sha256, resource.address)
            if resumed:
                gathering.distrust()
            gzip = part.format == "torch-gzip"
            most = None if context.max_bytes >= MAX_SIZE else context.max_bytes
            with plain_file(file.path, gzip, resource.address, most) as opened:
                self._take_all(gathering, index, part, resource, FileSource(opened))
        except (IntegrityError, FormatError):
            if resumed:  # an earlier run may be the cause
                raise DamagedPartialError from None
            raise
        finally:
            file.discard()

    def _take_all(
        self,
        gathering: Gathering,
        index: int,
        part: Mirror,
        resource: Resource,
        source: FileSource,
    ) -> None:
        with concerning(path=resource.address):
            checkpoint = read_checkpoint(source)
            found = choose_tensors(checkpoint.root, source.size, part.select, part.tensors_only)
            self.chosen[index] = replace(found, tensors={})
            tensors = self._named(gathering, part, found.tensors)
            specs = {name: spec_of(name, tensor) for name, tensor in tensors.items()}

            def take(name: str) -> None:
                tensor = tensors[name]
                with nullcontext() if is_contiguous(tensor) else ONE_COPY:
                    pieces = tensor_pieces(checkpoint, source, tensor)
                    gathering.take(name, specs[name], pieces)

            names = gathering.expect(specs, resource.address)
            for_each(take, sorted(names, key=lambda name: -specs[name].nbytes))
