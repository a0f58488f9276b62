"""Arrays of NumPy go in and come out as tensors do."""

from __future__ import annotations

import numpy
import pytest
import torch

from mlstate import MemoryStateStore, StateKey, state_digest
from mlstate.errors import FormatError

KEY = StateKey.parse("pytorch.t.one")
ARRAYS = {
    "plain": numpy.arange(6.0, dtype="float32").reshape(2, 3),
    "large": numpy.arange(40_000, dtype="int64"),
    "transposed": numpy.arange(6.0).reshape(2, 3).T,
    "reversed": numpy.arange(4, dtype="int16")[::-1],
    "big-endian": numpy.arange(3, dtype=">i4"),
    "flags": numpy.array([True, False]),
    "half": numpy.ones(2, "float16"),
    "unsigned": numpy.ones(2, "uint32"),
    "scalar": numpy.array(3.5),
    "empty": numpy.zeros((0, 2), "float32"),
}


def test_arrays_are_saved_and_come_back_as_arrays():
    fixed = ARRAYS["plain"].copy()
    fixed.flags.writeable = False
    arrays = {**ARRAYS, "read-only": fixed}
    store = MemoryStateStore()
    store.save_state_dict(arrays, KEY)
    native = {
        name: torch.from_numpy(numpy.array(value, dtype=value.dtype.newbyteorder("=")))
        for name, value in arrays.items()
    }
    assert store.digest(KEY) == state_digest(native) == state_digest(arrays)
    loaded = store.load_state_dict(KEY, framework="numpy")
    assert loaded.keys() == arrays.keys()
    for name, value in loaded.items():
        assert value.dtype == arrays[name].dtype.newbyteorder("=")
        assert value.shape == arrays[name].shape
        numpy.testing.assert_array_equal(value, arrays[name])


@pytest.mark.parametrize("value", [numpy.array(["a"]), numpy.array([object()], dtype=object)])
def test_arrays_of_anything_else_are_refused_by_name(value):
    with pytest.raises(FormatError, match="element type") as caught:
        MemoryStateStore().save_state_dict({"w": value}, KEY)
    assert caught.value.tensor == "w"


def test_what_numpy_has_not_is_refused_by_name():
    store = MemoryStateStore()
    store.save_state_dict({"w": torch.ones(2, dtype=torch.bfloat16)}, KEY)
    with pytest.raises(FormatError, match="no such element type") as caught:
        store.load_state_dict(KEY, framework="numpy")
    assert caught.value.tensor == "w"
    for options in ({"framework": "jax"}, {"framework": "numpy", "device": "cuda"}):
        with pytest.raises(FormatError, match="cannot be had so"):
            store.load_state_dict(KEY, **options)
