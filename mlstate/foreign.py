"""What a file is, told by its first bytes: a container of weights, another one, or no weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlstate.errors import FormatError
from mlstate.locations import ARRAYS, LOCAL_ONLY, SAFETENSORS, TORCH, TORCH_GZIP
from mlstate.phrases import Phrase

__all__ = [
    "FRONT",
    "Foreign",
    "check_not_foreign",
    "check_same_container",
    "container_by_front",
    "file_kind",
    "foreign",
]

FRONT = 512
"""So many first bytes of a file tell what it is."""

_OURS = "a safetensors file, or a checkpoint that torch.save wrote"
_ARRAYS = "open it with its own library and give its arrays to save_state_dict"


@dataclass(frozen=True)
class Foreign:
    """What a file is, in a few words, and what to do with it."""

    name: str
    remedy: str


_EMPTY = Foreign("an empty file", "bring it again: a download or a copy of it failed")
_PAGE = Foreign(
    "a web page (HTML)",
    "take the address of the file itself; if the site asks for a login, give its token",
)
_KNOWN = (
    (
        re.compile(rb"version https://git-lfs\.github\.com/"),
        Foreign("a pointer of Git LFS", "get the file itself: git lfs pull"),
    ),
    (re.compile(rb"\s*<(!doctype html|html|head)\b", re.IGNORECASE), _PAGE),
    (
        re.compile(rb"GGUF"),
        Foreign(
            "a GGUF file, whose tensors are quantised in blocks",
            "adopt the safetensors files that it was made from; or keep it whole, as a file of a "
            "state",
        ),
    ),
    (re.compile(rb"\x89HDF\r\n\x1a\n"), Foreign("an HDF5 file, as Keras writes", _ARRAYS)),
    (
        re.compile(rb"\x08[\x01-\x20]\x12.[ -~]", re.DOTALL),
        Foreign(
            "an ONNX model, which is a program",
            "adopt the weights that it was made from; or keep it whole, as a file of a state",
        ),
    ),
    (
        re.compile(rb"([\x81-\x8f]|\xde..|\xdf....)[\xa1-\xbf\xd9][ -~]", re.DOTALL),
        Foreign("a msgpack file, as Flax writes", _ARRAYS),
    ),
    (
        re.compile(rb"\x93NUMPY"),
        Foreign(
            "one array of NumPy, without a name",
            "give it a name, by saving it with numpy.savez into a .npz",
        ),
    ),
    (
        re.compile(rb"PK\x03\x04.{26}.{0,482}?\.npy", re.DOTALL),
        Foreign(LOCAL_ONLY[ARRAYS], "give its path on this machine, and no format"),
    ),
    (
        re.compile(rb"(BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf)"),
        Foreign("a compressed file or archive", "unpack it, and give what is in it"),
    ),
)


_ENDINGS = {
    "safetensors": "a safetensors file",
    "safetensor": "a safetensors file, were it .safetensors",
    "pt pth ckpt": "a torch checkpoint",
    "gguf ggml": "a GGUF file",
    "onnx": "an ONNX model",
    "h5 hdf5 keras": "an HDF5 file",
    "npz npy": "arrays of NumPy",
    "msgpack": "a msgpack file",
    "pkl pickle": "a pickle",
    "tflite": "a TensorFlow Lite model",
    "gz tgz bz2 tbz tbz2 xz txz zst tzst lz4 br": "a compressed file",
    "zip 7z rar": "an archive that is no tar",
    "tar": "a tar",
    "toml json yaml yml txt md csv": "a text",
}
_KINDS = {ending: kind for endings, kind in _ENDINGS.items() for ending in endings.split()}


def file_kind(name: str) -> str | None:
    """What a file with this name is, by its ending, for those who write files; None: unknown.

    Example:
        >>> file_kind("model.gguf"), file_kind("bert-v1.5")
        ('a GGUF file', None)
    """
    return _KINDS.get(name.rpartition(".")[2].lower()) if "." in name[1:] else None


def foreign(front: bytes) -> Foreign | None:
    """What a file with these first bytes is, if it is none of ours."""
    if not front:
        return _EMPTY
    return next((kind for pattern, kind in _KNOWN if pattern.match(front)), None)


def check_not_foreign(front: bytes, name: str | None = None) -> None:
    """Refuse a file that is no file of weights, by what it is.

    Args:
        front: Its first bytes, `FRONT` of them if it has so many.
        name: Its path or address, for the error.

    Raises:
        FormatError: It is none; the remedy says what to do.
    """
    kind = foreign(front)
    if kind is not None:
        raise FormatError(
            "this is no file of weights that can be read",
            path=name,
            expected=_OURS,
            found=kind.name,
            remedy=kind.remedy,
        )


_NAMES = {
    SAFETENSORS: "a safetensors file",
    TORCH: "a checkpoint that torch.save wrote",
    TORCH_GZIP: "a file that gzip compressed",
}


def container_by_front(front: bytes) -> str | None:
    """The container of weights that a file with these first bytes is, or None."""
    # First: the length of a header may look like the beginning of the others.
    if front[4:9] == b"\0\0\0\0{":
        return SAFETENSORS
    if front.startswith(b"\x1f\x8b"):
        return TORCH_GZIP
    if front.startswith(b"PK\x03\x04") and _first_entry(front).endswith(b".npy"):
        return ARRAYS
    if front.startswith(b"PK\x03\x04") or re.match(rb"\x80[\x02-\x05]", front):
        return TORCH  # a zip; or the older format, which is a pickle
    if front[257:262] == b"ustar":
        return TORCH  # the oldest, which is a tar
    return None


def _first_entry(front: bytes) -> bytes:
    """The name of the first entry of a zip archive."""
    return front[30 : 30 + int.from_bytes(front[26:28], "little")]


def check_same_container(front: bytes, form: str, name: str | None = None) -> None:
    """Refuse a file that is not in the container that it is said to be in, by what it is.

    Of a file that tells nothing, nothing is said.

    Args:
        front: Its first bytes; see `check_not_foreign`.
        form: The container that its name, or somebody, says.
        name: Its path or address, for the error.

    Raises:
        FormatError: It is something else; the remedy says what to do.
    """
    found = container_by_front(front)
    if found != SAFETENSORS:
        check_not_foreign(front, name)
    if found not in (None, form):
        raise FormatError(
            "this file is in another container than its name says",
            path=name,
            expected=_NAMES[form],
            found=_NAMES[found],
            remedy="say what it is: " + Phrase(f"format={found!r}", f"--format {found}"),
        )
