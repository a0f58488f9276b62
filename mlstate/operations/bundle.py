"""`bundle` and `unbundle`: states and all that they need as one tar, for where no network is.

A bundle is a store's folder in an order that can be read from front to back: the settings, the
state files, the state objects, then every other object, each once. ``tar xf`` makes a store of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from mlstate import settings
from mlstate.digests import Digest, Hasher
from mlstate.errors import FormatError, IntegrityError, ReadOnlyStoreError, concerning
from mlstate.fetch.progress import Meter, OnProgress, listener
from mlstate.files import UnfitFileError, open_input
from mlstate.foreign import file_kind
from mlstate.format import layout, tensor_object
from mlstate.format.tensor_object import TensorSpec
from mlstate.locations import local_path
from mlstate.manifests.parse import parse_state_file
from mlstate.manifests.required import RequiredSignature, places_of, state_signatures
from mlstate.objects import ObjectStore
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import sync_path
from mlstate.objects.verified import check_digest, check_size, open_object
from mlstate.operations.bundle_reader import BundleReader
from mlstate.operations.export import publish, refuse_existing
from mlstate.operations.tar_reader import PIECE, TarReader, read_fully
from mlstate.phrases import Phrase
from mlstate.reading import read_state
from mlstate.states import StateKey, check_keys
from mlstate.stores.abstract import AnyStore, Found
from mlstate.stores.cache import PathLike
from mlstate.stores.custom import state_store
from mlstate.stores.local import LocalStateStore
from mlstate.stores.read import StateStore
from mlstate.stores.save_request import is_same
from mlstate.stores.state_saver import StateSaver
from mlstate.stores.statefiles import format_state_file
from mlstate.units import parse_limit

if TYPE_CHECKING:
    from mlstate.manifests.state_signatures import StateSignatures

__all__ = ["bundle", "unbundle"]


def bundle(
    store: AnyStore,
    keys: Iterable[StateKey],
    path: PathLike | BinaryIO,
    *,
    overwrite: bool = False,
    progress: OnProgress | bool | None = None,
    signing_key: PathLike | None = None,
) -> None:
    """Write states, with all their tensors and files, into one uncompressed tar.

    Every object is verified as it is read; what a view over mirrors lacks is fetched first. The
    same states make the same bytes, unless they are signed here. States that are signed in a
    folder, a bucket or a release stay so.

    Args:
        store: Where the states are.
        keys: Which ones.
        path: The tar to write; its folders are made if they are missing. ``"-"`` is the standard
            output; that, and an open binary file, is written from front to back. If something
            turns out to be damaged meanwhile, the tar lacks its end, and `unbundle` refuses it.
        overwrite: Replace a file that is there, once the new one is whole.
        progress: Told how many bytes are written; True: a bar on the terminal.
        signing_key: The path of an SSH key, or of the public key of one that ssh-agent holds: it
            signs each state of the bundle.

    Raises:
        SignatureError: A state is not signed, in a store that requires it; or cannot be signed.
        StateNotFoundError: There is no such state.
        IntegrityError: An object is damaged or missing; nothing was written under this name.
        UnpinnedStateError: The manifest gives no digest for a state.
        FormatError: No keys; or the name is that of another file than a tar.
        StateExistsError: The file is there already; nothing was changed.
    """
    keys = check_keys(keys)
    if not keys:
        raise FormatError("a bundle of nothing", expected="at least one state key")
    view = state_store(store)
    job = _Job(view, keys, listener(progress), state_signatures(False, signing_key or False))
    if not isinstance(path, str | os.PathLike):
        job.write_to(path, str(getattr(path, "name", "a stream")))
        return
    if path == "-":
        job.write_to(sys.stdout.buffer, "standard output")
        return
    target = local_path(path)
    refuse_existing(target, overwrite=overwrite)  # before anything is fetched for it
    _check_name(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(job, target, overwrite=overwrite)
    except IntegrityError:
        mended = [view.access.mend(view.get(key).entry) for key in keys]
        if not any(mended):
            raise
        _write(job, target, overwrite=overwrite)


def _check_name(target: Path) -> None:
    """Refuse the name of a file that tools would open as something else."""
    kind = file_kind(target.name)
    if kind not in (None, "a tar", "a text"):
        raise FormatError(
            "a bundle is a tar, and is not compressed: its name says something else",
            path=target,
            expected="a name that ends in .tar",
            found=kind,
            remedy=Phrase(
                "weights hardly compress; if it has to be, write into a file that compresses",
                "weights hardly compress; if it has to be: mlstate bundle -o - ... | gzip > FILE",
            ),
        )


def _write(job: _Job, target: Path, *, overwrite: bool) -> None:
    temporary = temporary_beside(target)
    try:
        # As the umask has it; and new, whatever is there.
        with temporary.open("xb") as file:
            job.write_to(file, target.name)
        sync_path(temporary)
        publish(temporary, target, overwrite=overwrite)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Job:
    """A bundle that is to be written."""

    store: StateStore
    keys: list[StateKey]
    progress: OnProgress | None
    signatures: StateSignatures | None

    def write_to(self, file: BinaryIO, name: str) -> None:
        """Write the tar into a file, which may be a pipe; ``name`` is for the progress."""
        texts, objects = _contents(self.store, self.keys, self.signatures)
        meter = Meter(f"bundle {name}", self.progress)
        meter.expect(sum(item.size for item in objects.values()))
        with _tar_writer(fileobj=cast("BinaryIO", _Appended(file))) as tar:
            for text_name, text in texts.items():
                tar.addfile(_member(text_name, len(text)), io.BytesIO(text))
            for digest, item in objects.items():
                _add_object(tar, digest, item, meter)
        file.flush()
        meter.end()


class _Appended:
    """A file that is only written to, at its end, as a pipe is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._written = 0

    def write(self, data: bytes, /) -> int:
        """Write all of it."""
        self._file.write(data)
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        """The bytes that were written."""
        return self._written


@dataclass(frozen=True)
class _Item:
    """An object of a bundle: the store that has it, its size, and for errors what it is."""

    objects: ObjectStore
    size: int
    what: str
    key: StateKey
    tensor: str | None = None
    spec: TensorSpec | None = None


def _contents(
    store: StateStore, keys: list[StateKey], signatures: StateSignatures | None
) -> tuple[dict[str, bytes], dict[Digest, _Item]]:
    """The texts by path, then the objects in the order of the bundle: state objects first."""
    states: dict[StateKey, bytes] = {}
    heads: dict[Digest, _Item] = {}
    others: dict[Digest, _Item] = {}
    for key in keys:
        (entry, objects), signed = _signed(store, key)
        with concerning(key):
            store.access.bring(entry)
            state = read_state(entry, objects)
            whole = replace(entry, size=state.nbytes)
            if signatures is not None:
                states[key] = signatures.written(whole, str(key), signed)
            else:
                states[key] = format_state_file(whole) if signed is None else signed
            digest = entry.pinned_digest
            heads[digest] = _Item(objects, _size(objects, digest), "a state object", key)
            for name, ref in state.refs.items():
                size = tensor_object.object_size(ref.spec)
                others[ref.digest] = _Item(objects, size, "a tensor object", key, name, ref.spec)
            for name, file in entry.files.items():
                size = _size(objects, file.digest)
                others[file.digest] = _Item(objects, size, f"the file {name!r}", key)
    items = {digest: heads[digest] for digest in sorted(heads)}
    items |= {digest: others[digest] for digest in sorted(others.keys() - heads.keys())}
    texts = {layout.state_path(key): states[key] for key in sorted(states)}
    return {layout.SETTINGS: layout.NEW_SETTINGS, **texts}, items


def _signed(store: StateStore, key: StateKey) -> tuple[Found, bytes | None]:
    """A state, and its state file if that is signed: both of one moment."""
    while True:
        found = store.get_pinned(key)
        data = store.catalog.signed_file(key)
        if data is None:
            return found, None
        entry = found.entry
        if is_same(parse_state_file(data, key, str(entry.origin)), entry.pinned_digest, entry):
            return found, data  # else it was overwritten between the two looks


def _size(objects: ObjectStore, digest: Digest) -> int:
    with objects.open(digest) as file:  # says where it should be, if it is not there
        return file.seek(0, 2)


_tar_writer = partial(
    tarfile.TarFile,
    mode="w",
    format=tarfile.PAX_FORMAT,  # this and the next would differ from one machine to another
    encoding="utf-8",
    errors="strict",
    copybufsize=PIECE,
)


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A file without time and owner, read-only: equal content makes equal bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    return member


def _add_object(tar: tarfile.TarFile, digest: Digest, item: _Item, meter: Meter) -> None:
    opened = partial(open_object, item.objects, digest, item.spec)
    with concerning(item.key, tensor=item.tensor), opened() as file:
        check_size(item.objects, digest, item.size, file.seek(0, 2), what=item.what)
        file.seek(0)
        hashed = _HashedFile(file, meter, item.objects.locate(digest))
        tar.addfile(_member(layout.object_path(digest), item.size), hashed)
        check_digest(item.objects, digest, hashed.hasher.digest(), what=item.what)


class _HashedFile:
    """A file that is hashed as it is read."""

    def __init__(self, file: BinaryIO, meter: Meter, path: str) -> None:
        self._file = file
        self._meter = meter
        self._path = path
        self.hasher = Hasher()

    def read(self, size: int = PIECE, /) -> bytes:
        """Return exactly so many bytes."""
        data = read_fully(self._file, size)
        if len(data) < size:
            raise IntegrityError("a file became shorter while it was read", path=self._path)
        self.hasher.update(data)
        self._meter.add(len(data))
        return data


def unbundle(
    path: PathLike | BinaryIO,
    target: AnyStore | PathLike | None = None,
    *,
    overwrite: bool = False,
    max_size: int | str | None = None,
    progress: OnProgress | bool | None = None,
    require_signature: RequiredSignature = None,
) -> list[StateKey]:
    """Bring the states of a bundle into a store, all of them verified, or none.

    Every object is hashed once, as it is read; what the store has already is not written again.

    A tar of a whole store (``tar cf x.tar -C store .``) can be read too, if all its objects belong
    to its states. In a file its members may be in any order, in a pipe in a bundle's order only.

    Args:
        path: The bundle; ``"-"`` for the standard input, or an open binary file, which are read
            from front to back.
        target: Where to: a store, or its folder. By default the cache, where every
            `mlstate.ManifestStore` finds what it needs.
        overwrite: Replace other states that have the same keys.
        max_size: The most bytes that its members may have together: a number, or for instance
            ``"5GB"``. No limit by default.
        progress: Told how many bytes are read; True: a bar on the terminal.
        require_signature: The path of an allowed-signers file, or a
            `mlstate.signatures.SignaturePolicy`: each state needs a good signature of one of these
            signers, beside what the target requires. By default as the settings say; False: none.

    Returns:
        The keys, sorted.

    Raises:
        SignatureError: A state has no good signature where one is required; no state of the bundle
            is in the store.
        IntegrityError: The bundle is cut short, or its bytes are not those that it names; no state
            of it is in the store.
        FormatError: It is no bundle, or holds what does not belong there; likewise.
        StateExistsError: Another state has the key of one of them; likewise.
        ReadOnlyStoreError: The target keeps no objects.
    """
    most = parse_limit(max_size)
    if target is None or isinstance(target, str | os.PathLike):
        folder = settings.cache_folder() if target is None else target
        target = LocalStateStore(folder, require_signature=require_signature)
    saver = getattr(target, "saver", None)
    if not isinstance(saver, StateSaver):
        raise ReadOnlyStoreError(
            "nothing can be unbundled into this store",
            path=target,
            expected="a folder, or a bucket",
            remedy="leave "
            + Phrase("the target", "--store")
            + " out: the cache is what every manifest reads",
        )
    places = places_of(path) if isinstance(path, str | os.PathLike) and path != "-" else ()
    signatures = state_signatures(require_signature, False, *places)
    with contextlib.ExitStack() as stack:
        if not isinstance(path, str | os.PathLike):
            tar = TarReader(path, str(getattr(path, "name", "a stream")), seekable=False)
        elif path == "-":
            tar = TarReader(sys.stdin.buffer, "standard input", seekable=False)
        else:
            file = stack.enter_context(_opened(local_path(path)))
            tar = TarReader(file, str(path), seekable=file.seekable())
        meter = Meter(f"unbundle {Path(tar.origin).name}", listener(progress))
        reader = BundleReader(tar, saver, meter, signatures, overwrite=overwrite, max_size=most)
        keys = reader.run()
    meter.end()
    return keys


def _opened(path: Path) -> BinaryIO:
    try:
        return open_input(path)
    except UnfitFileError as unfit:
        raise FormatError(
            "this is no bundle",
            path=path,
            expected="a file",
            found=unfit.found,
            remedy='of a pipe give "-", and let the shell read it',
        ) from None
