"""The readers of foreign bytes, one function each: it takes bytes, and raises what it raises."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path

from mlstate import LocalStateStore, Manifest, StateKey, file_digest, unbundle
from mlstate.buckets.open import parse_bucket_address
from mlstate.digests import Digest
from mlstate.encoded import decode, read_head  # torch comes with it, in more than one input's time
from mlstate.errors import FormatError
from mlstate.fetch.addresses import parse_index
from mlstate.fetch.header import parse_header
from mlstate.format import layout, tensor_object
from mlstate.format.encoded_index import EncodedIndex
from mlstate.format.encoded_object import HEAD_SIZE, Head
from mlstate.format.plain_file import PlainFile
from mlstate.format.state_object import StateObject, TensorRef
from mlstate.format.tensor_object import TensorSpec
from mlstate.locations import check_file_names, check_url, parse_mirror
from mlstate.manifests.write import format_manifest
from mlstate.objects import MemoryObjectStore
from mlstate.objects.cache import read_roots
from mlstate.objects.verified import open_tensor
from mlstate.pickled.distributed import read_distributed
from mlstate.pickled.read import read_checkpoint
from mlstate.pickled.select import select_tensors
from mlstate.pickled.source import BytesSource
from mlstate.pickled.zip_directory import read_directory
from mlstate.settings import value_of
from mlstate.shown import printable
from mlstate.signatures.allowed import parse_allowed_signers
from mlstate.signatures.check import Signers
from mlstate.signatures.keys import parse_public_key
from mlstate.signatures.patterns import matches
from mlstate.signatures.revoked import parse_revoked_keys
from mlstate.signatures.sshsig import parse_signature
from mlstate.stores.github.assets import key_of as key_of_asset
from mlstate.stores.github.assets import parse_pointer
from mlstate.stores.statefiles import parse_state_file
from mlstate.transport.credentials import Credentials
from mlstate.transport.hub import parse_hub_address
from mlstate.transport.local import LocalResource
from mlstate.transport.urls import Url
from mlstate.units import parse_size

__all__ = ["ENCODED_BASE", "ENCODED_SPECS", "KEY", "SIGNED", "STATE", "TARGETS"]

KEY = StateKey.parse("pytorch.torture.a")
STATE = Digest("0" * 63 + "2")
"""The state that encoded indexes of the corpus are of."""
SIGNED = b"version = 1\n"
"""What the signatures of the corpus are over."""
ENCODED_SPECS = (
    TensorSpec("BF16", (10_000,)),
    TensorSpec("F32", (5000,)),
    TensorSpec("F64", (131_072 + 100,)),
    TensorSpec("U8", (20_001,)),
)
"""The tensors that encoded objects of the corpus are of: the first byte says which."""
ENCODED_BASE = bytes(range(251))
"""The data of the base of each of them, when repeated."""
_CORPUS = Path(__file__).parents[1] / "corpus"
_FOLDER = Path(tempfile.gettempdir()) / f"torture-{os.getpid()}"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _each(data: bytes, *parsers: Callable[[str], object]) -> None:
    """Give a text to each of several readers; the first error is told once all had it."""
    first = None
    for parse in parsers:
        try:
            parse(_text(data))
        except FormatError as error:
            first = first or error
    if first is not None:
        raise first


def _in_file(name: str, data: bytes) -> Path:
    _FOLDER.mkdir(exist_ok=True)
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def manifest(data: bytes) -> None:
    read = Manifest.parse(data, "fuzz.toml")
    again = Manifest.parse(format_manifest(read).encode(), "fuzz.toml")
    assert again.states.keys() == read.states.keys()
    for key, entry in read.states.items():
        assert again.states[key].digest == entry.digest


def state_file(data: bytes) -> None:
    parse_state_file(data, KEY, "fuzz.toml")


def pointer(data: bytes) -> None:
    key_of_asset("state.pytorch.torture", _text(data))
    parse_pointer(data, KEY, "https://example.org/pointer.toml")


def settings_of_store(data: bytes) -> None:
    layout.check_settings(data, "mlstate.toml")
    for wanted in (True, False):
        changed = layout.with_requirement(data, layout.ENCODED_OBJECTS, wanted=wanted)
        required = layout.check_settings(changed, "mlstate.toml")
        assert (layout.ENCODED_OBJECTS in required) is wanted


def root_of_cache(data: bytes) -> None:
    folder = _FOLDER / "cache"
    (folder / layout.ROOTS).mkdir(parents=True, exist_ok=True)
    (folder / layout.ROOTS / ("a" * 64)).write_bytes(data)
    list(read_roots(folder))


def state_object(data: bytes) -> None:
    assert StateObject.parse(data).encode() == data, "one state, two objects"


def encoded_object(data: bytes) -> None:
    spec = ENCODED_SPECS[data[0] % len(ENCODED_SPECS)] if data else ENCODED_SPECS[0]
    source = BytesSource(data[1:])
    base = None
    if read_head(source, spec).base is not None:
        base = _base_of(spec)
    decode(source, spec, memoryview(bytearray(spec.nbytes)), base)


def encoded_index(data: bytes) -> None:
    assert EncodedIndex.parse(data, STATE).encode() == data, "one index, two texts"


def encoded_chain(data: bytes) -> None:
    """An object and its base, both encoded: whatever base the first names is the second."""
    spec = ENCODED_SPECS[data[0] % len(ENCODED_SPECS)] if data else ENCODED_SPECS[0]
    length = int.from_bytes(data[1:4], "little")
    forms = [data[4 : 4 + length], data[4 + length :]]
    store, digest = MemoryObjectStore(), Digest.of(tensor_object.header(spec), _base_of(spec))
    store.put_encoded(digest, [forms[0]])
    with suppress(FormatError):
        base = Head.peek(forms[0][:HEAD_SIZE]).base
        if base not in (None, digest):
            store.put_encoded(base, [forms[1]])
    size = store.size(digest)
    with open_tensor(store, TensorRef(spec, digest)) as file:
        file.seek(0)
        assert len(file.read()) == size == tensor_object.object_size(spec)


def _base_of(spec: TensorSpec) -> bytes:
    return (ENCODED_BASE * (spec.nbytes // len(ENCODED_BASE) + 1))[: spec.nbytes]


def tensor_header(data: bytes) -> None:
    for name, entry in tensor_object.parse_json(data, "a header").items():
        spec = tensor_object.parse_spec(name, entry)
        assert tensor_object.header(spec)


def plain_header(data: bytes) -> None:
    PlainFile.parse(data)


def remote_header(data: bytes) -> None:
    resource = LocalResource(_in_file("remote", b""))
    parse_header(data, resource, None)


def safetensors_file(data: bytes) -> None:
    file_digest(_in_file("a.safetensors", data))


def index(data: bytes) -> None:
    parse_index(data, "https://example.org/model.safetensors.index.json")


def bundle(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=_in_file("x", b"").parent) as folder:
        store = LocalStateStore(Path(folder) / "store")
        unbundle(io.BytesIO(data), store)


def checkpoint(data: bytes) -> None:
    source = BytesSource(data)
    found = read_checkpoint(source)
    for tensor in select_tensors(found.root, len(data)).values():
        assert prod(tensor.shape) * tensor.itemsize <= 100 * len(data), "out of nothing"


def checkpoint_file(data: bytes) -> None:
    file_digest(_in_file("a.pth", data))


def gzipped_file(data: bytes) -> None:
    file_digest(_in_file("a.pth.gz", data))


def packed_archive(data: bytes) -> None:
    """A file on this machine that may be an archive with compressed entries."""
    file_digest(_in_file("weights.pth", data))


def arrays_file(data: bytes) -> None:
    """An archive of NumPy arrays."""
    file_digest(_in_file("weights.npz", data))


def distributed(data: bytes) -> None:
    """The ``.metadata`` of a distributed checkpoint, whose chunks are not there."""
    found = read_distributed(BytesSource(data))
    for tensor in select_tensors(found.root, len(data), tensors_only=True).values():
        assert found.tensors[tensor.storage.key].shape == tensor.shape


def zip_directory(data: bytes) -> None:
    source = BytesSource(data)
    for entry in read_directory(source).values():
        entry.start(source)


def allowed_signers(data: bytes) -> None:
    for signer in parse_allowed_signers(data, "allowed_signers"):
        signer.objection("mlstate", "a@example.org", 0.0)


def revoked_keys(data: bytes) -> None:
    parse_revoked_keys(data, "revoked_keys")


def signature(data: bytes) -> None:
    parsed = parse_signature(data, "fuzz.toml.sig")
    assert parsed.signed_bytes(SIGNED)
    allowed = parse_allowed_signers((_CORPUS / "allowed_signers" / "plain").read_bytes(), "allowed")
    Signers(allowed).check(SIGNED, data, "fuzz.toml.sig")


def public_key(data: bytes) -> None:
    parse_public_key(_text(data).split())
    one, _, other = _text(data).partition("\n")
    matches(one[:200], other[:200])


def config(data: bytes) -> None:
    os.environ["MLSTATE_CONFIG"] = str(_in_file("config.toml", data))
    os.environ["NETRC"] = str(_in_file("empty", b""))
    Credentials().find(Url.parse("https://example.org/x"))


def netrc(data: bytes) -> None:
    os.environ.pop("MLSTATE_CONFIG", None)
    os.environ["XDG_CONFIG_HOME"] = str(_FOLDER)
    path = _in_file("netrc", data)
    path.chmod(0o600)
    os.environ["NETRC"] = str(path)
    Credentials().find(Url.parse("https://example.org/x"))


def environment(data: bytes) -> None:
    text = _text(data).replace("\0", "")
    os.environ["MLSTATE_FUZZED"] = text
    printable(text)
    value_of("MLSTATE_FUZZED")


def address(data: bytes) -> None:
    _each(
        data,
        check_url,
        Url.parse,
        parse_hub_address,
        parse_bucket_address,
        parse_mirror,
        lambda text: Url.parse("https://example.org/a/b").join(text),
    )


def name(data: bytes) -> None:
    _each(
        data,
        StateKey.parse,
        parse_size,
        lambda text: check_file_names([text]),
        layout.key_of_state_path,
        layout.digest_of_object_path,
    )


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        *(manifest, state_file, pointer, settings_of_store, root_of_cache),
        *(
            state_object,
            encoded_object,
            encoded_index,
            encoded_chain,
            tensor_header,
            plain_header,
            remote_header,
            safetensors_file,
            index,
        ),
        *(bundle, checkpoint, checkpoint_file, gzipped_file, zip_directory),
        *(packed_archive, arrays_file, distributed),
        *(allowed_signers, revoked_keys, signature, public_key),
        *(config, netrc, environment, address, name),
    )
}
