"""Files that are no weights, or of a container that is not read, told by their first bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlstate.errors import FormatError

__all__ = ["FRONT", "Foreign", "check_not_foreign", "file_kind", "foreign"]

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
            "give it a name: numpy.savez('weights.npz', weight=numpy.load('x.npy'))",
        ),
    ),
    (
        re.compile(rb"PK\x03\x04.{26}.{0,255}?\.npy", re.DOTALL),
        Foreign(
            "an archive of NumPy arrays (.npz)", "give its path on this machine, and no format"
        ),
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
