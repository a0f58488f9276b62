"""Makes the corpus: ``python -m tests.torture.fuzz.seeds``. Needs torch and ssh-keygen.

What stands there already stays, so that inputs found later are kept.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save

from mlstate import LocalStateStore, Manifest, bundle
from mlstate.digests import Digest
from mlstate.encoded import Base, encode
from mlstate.format import tensor_object
from mlstate.format.encoded_index import EncodedForm, EncodedIndex
from mlstate.format.plain_file import PlainFile
from mlstate.format.tensor_object import TensorSpec
from tests.torture.fuzz.mutate import CORPUS
from tests.torture.fuzz.targets import ENCODED_BASE, ENCODED_SPECS, KEY, SIGNED, STATE

DIGEST = "0" * 63 + "1"
MANIFEST = f"""version = 1
objects = ["s3://weights/models", "https://cdn.example.org/mlstate"]
[aliases]
stable = "{KEY}"

[states."{KEY}"]
blake3 = "{DIGEST}"
size = 46827520
mirrors = [
  "https://example.org/a.safetensors",
  {{ url = "a.pth", format = "torch", sha256 = "f37072fd", select = "model.ema" }},
  {{ urls = ["a-1.safetensors", "a-2.safetensors"], state = "a.state", strip_prefix = "x." }},
  {{ parts = [{{ url = "hf://org/repo@main/a.bin", rename = [["a", "b"]] }}] }},
]
[states."{KEY}".files]
"labels.json" = {{ blake3 = "{DIGEST}", mirrors = ["labels.json"] }}
[states."{KEY}".meta]
license = "MIT"
accuracy = 0.93
when = 2024-05-01T00:00:00Z
[states."{KEY}".layout]
"unet/model.safetensors" = {{ prefix = "unet/", metadata = {{ format = "pt" }} }}
"""
ADDRESSES = """https://example.org/a/b?x=1#y
http://[::1]:8080/a
hf://org/repo@refs%2Fpr%2F1/a/b.bin
s3://bucket/a/b
gs://bucket
file:///a/b
../a.safetensors
//example.org/x"""
NAMES = f"{KEY}\nstates/pytorch/torture/a.toml\nobjects/00/{DIGEST[2:]}\n5GB\na/b.json"


def _put(target: str, name: str, data: bytes | str) -> None:
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data.encode() if isinstance(data, str) else data)


def _texts() -> None:
    _put("manifest", "full", MANIFEST)
    _put("manifest", "empty", "version = 1\n")
    _put("settings_of_store", "plain", "version = 1\nrequires = []\n")
    _put("root_of_cache", "plain", f'key = "{KEY}"\nfiles = ["{DIGEST}"]\n')
    entry = Manifest.parse(MANIFEST.encode(), "m.toml").states[KEY]
    state = Manifest({KEY: entry})
    with tempfile.TemporaryDirectory() as folder:
        state.write(Path(folder) / "m.toml")
        _put("state_file", "full", (Path(folder) / "m.toml").read_bytes())
        _put("pointer", "full", (Path(folder) / "m.toml").read_bytes())
    _put("index", "plain", '{"metadata": {"total_size": 1}, "weight_map": {"a": "b.safetensors"}}')
    _put("config", "plain", '[tokens]\n"example.org" = "abc"\n"example.org:444" = "def"\n')
    _put("netrc", "plain", "machine example.org login a password b\ndefault login c password d\n")
    _put("environment", "plain", "https://example.org\n")
    for number, line in enumerate(ADDRESSES.splitlines()):
        _put("address", str(number), line)
    for number, line in enumerate(NAMES.splitlines()):
        _put("name", str(number), line)


def _tensors() -> None:
    tensors = {"a.weight": torch.ones(3, 2), "b": torch.tensor(1, dtype=torch.int64)}
    plain = save(tensors, {"format": "pt"})
    _put("safetensors_file", "plain", plain)
    header = plain[8 : 8 + int.from_bytes(plain[:8], "little")]
    _put("remote_header", "plain", header)
    spec = TensorSpec("F32", (3, 2))
    specs = {"a.weight": spec, "b": TensorSpec("I64", (512,))}
    _put("plain_header", "plain", PlainFile.lay_out(specs).header)
    _put("tensor_header", "plain", tensor_object.header(spec)[8:].rstrip())
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStateStore(Path(folder) / "store")
        store.save_state_dict({**tensors, "big": torch.zeros(64, 64)}, KEY, files={"f": b"x"})
        digest = store.digest(KEY)
        _put("state_object", "plain", store.objects.open(Digest(digest)).read())
        bundle(store, [KEY], Path(folder) / "b.tar")
        _put("bundle", "plain", (Path(folder) / "b.tar").read_bytes())
    for legacy in (False, True):
        buffer = io.BytesIO()
        state = {"model": tensors, "epoch": 3} if legacy else tensors
        torch.save(state, buffer, _use_new_zipfile_serialization=not legacy)
        name = "legacy" if legacy else "zip"
        for target in ("checkpoint", "checkpoint_file"):
            _put(target, name, buffer.getvalue())
        _put("gzipped_file", name, gzip.compress(buffer.getvalue(), mtime=0))
        if not legacy:
            _put("zip_directory", name, buffer.getvalue())


def _encoded() -> None:
    for number, spec in enumerate(ENCODED_SPECS):
        data = (ENCODED_BASE * (spec.nbytes // len(ENCODED_BASE) + 1))[: spec.nbytes]
        near = bytearray(data)
        for place in range(0, len(near), 8 * 13):
            near[place] = (near[place] + place) % 256
        base = Base(Digest.of(tensor_object.header(spec), data), data)
        # What a block of megabytes has raw is not for a corpus.
        alone = bytes(spec.nbytes) if spec.nbytes > 1 << 20 else data
        for name, given, of in (("alone", alone, None), ("near", bytes(near), base)):
            file = b"".join(encode(given, spec, of))
            _put("encoded_object", f"{name}-{spec.dtype}", bytes([number]) + file)
    digest = Digest(DIGEST)
    forms = {digest: EncodedForm(700), STATE: EncodedForm(650, digest, 1, plain=True)}
    _put("encoded_index", "plain", EncodedIndex(STATE, forms).encode())
    _put("encoded_index", "empty", EncodedIndex(STATE).encode())


def _chains() -> None:
    """An object that is the difference to one that is encoded alone; and one that needs no base."""
    for number, spec in enumerate(ENCODED_SPECS):
        if spec.nbytes > 1 << 20:
            continue
        data = (ENCODED_BASE * (spec.nbytes // len(ENCODED_BASE) + 1))[: spec.nbytes]
        other = bytes(spec.nbytes)
        base = Base(Digest.of(tensor_object.header(spec), other), other)
        for name, form in (("near", encode(data, spec, base)), ("alone", encode(data, spec))):
            first, second = b"".join(form), b"".join(encode(other, spec))
            length = len(first).to_bytes(3, "little")
            _put("encoded_chain", f"{name}-{spec.dtype}", bytes([number]) + length + first + second)


def _keys() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m").write_bytes(SIGNED)
        lines = ["# a comment"]
        for kind in ("ed25519", "ecdsa"):
            key = folder / kind
            subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key], check=True)
            public = key.with_suffix(".pub").read_text().split()[:2]
            options = 'namespaces="mlstate",valid-before="20990101" ' if kind == "ecdsa" else ""
            lines.append(f"a@example.org,*@example.net {options}{' '.join(public)}")
            command = ["ssh-keygen", "-q", "-Y", "sign", "-n", "mlstate", "-f", key, folder / "m"]
            subprocess.run(command, check=True, capture_output=True)
            _put("signature", kind, (folder / "m.sig").read_bytes())
            (folder / "m.sig").unlink()
            _put("public_key", kind, " ".join(public))
            _put("revoked_keys", kind, " ".join(public) + "\n")
        if not (CORPUS / "allowed_signers" / "plain").exists():
            _put("allowed_signers", "plain", "\n".join(lines) + "\n")


if __name__ == "__main__":
    _texts()
    _tensors()
    _encoded()
    _chains()
    _keys()
