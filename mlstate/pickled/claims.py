"""The storages that a pickle refers to: what it says of each, without contradiction."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlstate.errors import FormatError
from mlstate.pickled.dtypes import STORAGES
from mlstate.pickled.tensor import StorageClaim, itemsize_of, whole_number
from mlstate.pickled.values import Call, Global, Value, kind_of

__all__ = ["Claims", "storage_dtype"]

_MODULES = ("torch", "torch.cuda", "torch.storage")


def storage_dtype(value: Value) -> str:
    """The dtype of a class of storages; a FormatError if the value names none."""
    if isinstance(value, Global) and value.module in _MODULES and value.name in STORAGES:
        return STORAGES[value.name]
    raise FormatError("a storage is of a class that is not read", found=kind_of(value))


@dataclass
class Claims:
    """What is said of storages, by their keys.

    Attributes:
        views: Whether old files are read, in which a storage can be a part of another.
        storages: Key -> the whole storage, as it was first described.
    """

    views: bool = False
    storages: dict[str, StorageClaim] = field(default_factory=dict)
    _views: dict[str, StorageClaim] = field(default_factory=dict)

    def persistent_load(self, key: Value) -> Value:
        """The storage that a persistent id of ``torch.save`` describes.

        Raises:
            FormatError: Something else, or a storage that was described otherwise before.
        """
        if not isinstance(key, tuple) or not key:
            raise FormatError("a pickle refers to what is no storage", found=kind_of(key))
        if key[0] == "module" and len(key) == 4 and self.views:
            # A class of a whole model, with the text of its source; it is not looked at.
            return key[1] if isinstance(key[1], Global) else Call(key[1], ())
        if key[0] != "storage" or len(key) != 5 + self.views:
            raise FormatError("a pickle refers to what is no storage", found=str(key[0])[:60])
        dtype, name = storage_dtype(key[1]), key[2]
        if type(name) is not str:
            raise FormatError("the key of a storage is no text", found=kind_of(name))
        itemsize = itemsize_of(dtype)
        nbytes = itemsize * whole_number(key[4], "the size of a storage")
        claim = self._agreed(StorageClaim(name, dtype, nbytes, 0, nbytes))
        if self.views and key[5] is not None:
            return self._view(claim, key[5], itemsize)
        return claim

    def _agreed(self, claim: StorageClaim) -> StorageClaim:
        first = self.storages.setdefault(claim.key, claim)
        if claim != first and (claim.nbytes or first.nbytes):  # an empty one is of any type
            raise FormatError(
                "a storage is described in two ways",
                expected=f"{first.dtype}, {first.nbytes} bytes",
                found=f"{claim.dtype}, {claim.nbytes} bytes",
            )
        return claim

    def _view(self, claim: StorageClaim, view: Value, itemsize: int) -> StorageClaim:
        if not isinstance(view, tuple) or len(view) != 3 or type(view[0]) is not str:
            raise FormatError("a part of a storage is described in a way that no torch writes")
        start = itemsize * whole_number(view[1], "the offset of a part of a storage")
        nbytes = itemsize * whole_number(view[2], "the size of a part of a storage")
        if start + nbytes > claim.total:
            raise FormatError("a part of a storage is larger than the storage")
        part = StorageClaim(claim.key, claim.dtype, claim.total, start, nbytes)
        if self._views.setdefault(view[0], part) != part or view[0] in self.storages:
            raise FormatError("a part of a storage is described in two ways")
        return part
