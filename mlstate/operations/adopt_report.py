"""The report of an adoption, with its request and its counter of bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from mlstate.digests import Digest
from mlstate.fetch.progress import OnProgress, Progress
from mlstate.fetch.said import Said
from mlstate.format.state_object import StateObject
from mlstate.locations import SAFETENSORS, Mirror
from mlstate.manifests import StateEntry
from mlstate.models import AVERAGED
from mlstate.objects import FolderObjectStore
from mlstate.operations.weight_source import WeightSource
from mlstate.pickled.select import Selected
from mlstate.states import StateKey
from mlstate.stores.save_request import SaveRequest

__all__ = [
    "AdoptReport",
    "Adoption",
    "ByteCounter",
    "added_of",
    "digests_in",
    "spared_of",
    "wrapper_prefix",
]

_WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class AdoptReport:
    """What an adoption did.

    Attributes:
        key: The key of the state.
        digest: Its state digest.
        size: The bytes of its tensors, every name counted.
        fetched: The bytes of it that were read from the source.
        spared: The bytes of its tensors that were where they belong already, each counted once
            (small ones, below 16 KiB, only if all of the state was there under some key); all, if
            the state was there.
        added: The bytes of its tensors that were not, each counted once.
        existed: Whether the same state was there under this key, and nothing was done.
        files: The names of its files.
        taken: The names of the files of the source that its tensors and files are from; without
            those that the caller gave.
        skipped: The names of what else lies beside them, in a folder or a repository, and was not
            taken. Names that begin with a dot are not listed.
        select: The dotted path of the state dict inside of a torch checkpoint, if it was the only
            one and none was asked for.
        passed_over: The names of its entries that are no tensors, by ``tensors_only``; and the
            count of an AveragedModel (``n_averaged``) whose prefix was stripped.
        prefix: What all names of tensors begin with, if it is what wrappers put there: ``module.``
            (DataParallel, AveragedModel), ``_orig_mod.`` (torch.compile), and in a torch checkpoint
            ``model.`` (Lightning). Such a state does not fit the model without the wrapper. Else
            None.
    """

    key: StateKey
    digest: Digest
    size: int
    fetched: int
    spared: int
    added: int
    existed: bool
    files: tuple[str, ...]
    taken: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    select: str | None = None
    passed_over: tuple[str, ...] = ()
    prefix: str | None = None


def wrapper_prefix(names: Collection[str], *, lightning: bool) -> str | None:
    """The words of wrappers that all names begin with, each with its dot; None if there are none.

    That of Lightning, ``model.``, is common in models, too: it counts alone if ``lightning`` says.
    """
    prefix = ""
    names = [name for name in names if name != AVERAGED]
    while names:
        words = [*_WRAPPERS, "model."] if lightning and not prefix else _WRAPPERS
        fitting = (w for w in words if all(name.startswith(prefix + w) for name in names))
        word = next(fitting, None)
        if word is None:
            break
        prefix += word
    return prefix or None


def digests_in(folder: FolderObjectStore | None) -> set[Digest]:
    """The objects of a folder, listed before anything is added to it."""
    return set() if folder is None else {*folder.digests(), *folder.encoded_digests()}


def spared_of(state: StateObject, digest: Digest, present: Collection[Digest]) -> int:
    """The bytes of a state's tensors that were there already, each object counted once."""
    return sum(size for object_, size in _sizes(state, digest).items() if object_ in present)


def added_of(state: StateObject, digest: Digest, present: Collection[Digest]) -> int:
    """The bytes of a state's tensors that were not there, each object counted once."""
    return sum(_sizes(state, digest).values()) - spared_of(state, digest, present)


def _sizes(state: StateObject, digest: Digest) -> dict[Digest, int]:
    """The objects with tensors of a state; the state object has the small ones."""
    refs = {ref.digest: ref.spec.nbytes for ref in state.refs.values()}
    return {**refs, digest: state.inline_nbytes}


class ByteCounter:
    """Counts the bytes that all progress tells of (`nbytes`), and passes the progress on."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress
        self.nbytes = 0

    def __call__(self, progress: Progress) -> None:
        """Count and pass on; see `OnProgress`."""
        if progress.ended:
            self.nbytes += progress.done
        if self._on_progress is not None:
            self._on_progress(progress)


@dataclass(frozen=True)
class Adoption:
    """A request to adopt weights under a key.

    Attributes:
        key: The key.
        source: Where they are.
        request: What is to be saved with them: its files are those of the source that are on this
            machine, and the caller's.
        bare: Whether the caller wants no files at all.
        counter: Counts what is read.
    """

    key: StateKey
    source: WeightSource
    request: SaveRequest
    bare: bool
    counter: ByteCounter

    @property
    def beside(self) -> Mapping[str, Mirror]:
        """The files of a source elsewhere that are to be brought: indexes of shards, too."""
        elsewhere = self.source.elsewhere
        if elsewhere is None:
            return {}
        return {**({} if self.bare else elsewhere.beside), **elsewhere.indexes}

    def with_layout(self, entry: StateEntry, said: Mapping[str, Said]) -> StateEntry:
        """An entry of a source elsewhere, with its layout, now that the files were read.

        Indexes of shards that it does not name are no files of the state.
        """
        elsewhere = self.source.elsewhere
        if elsewhere is None:
            return entry
        layout = elsewhere.layout(said)
        unused = elsewhere.indexes.keys() - {file.index for file in layout.values()}
        files = {name: file for name, file in entry.files.items() if name not in unused}
        return replace(entry, layout=layout, files=files)

    def chosen(self, said: Mapping[str, Said]) -> Selected | None:
        """What was chosen in the torch checkpoints that were read; of several, in the first."""
        return next((one.chosen for one in said.values() if one.chosen is not None), None)

    def report(
        self,
        digest: Digest,
        size: int,
        files: Iterable[str],
        *,
        spared: int,
        added: int,
        existed: bool,
        tensors: Collection[str],
        chosen: Selected | None = None,
        counts: Collection[str] = (),
    ) -> AdoptReport:
        """The report, with these values.

        The names of the state's tensors are ``tensors``, and ``counts`` are those of tensors that
        were left with a wrapper's prefix.
        """
        source = self.source
        nbytes = self.counter.nbytes
        first = (*source.mirror.parts, source.mirror)[0]
        return AdoptReport(
            self.key,
            digest,
            size,
            nbytes,
            spared,
            added,
            existed,
            tuple(sorted(files)),
            source.taken,
            source.skipped,
            None if chosen is None else chosen.path,
            (*(() if chosen is None else chosen.passed_over), *sorted(counts)),
            wrapper_prefix(tensors, lightning=first.format != SAFETENSORS),
        )
