"""What a safetensors file says of itself is kept, and written back."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mlstate import Manifest, StateKey, adopt, export
from tests.support.models import same

KEY = StateKey.parse("pytorch.t.one")
STATE = {"w": torch.arange(3.0)}


def metadata_in(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("mirror", [False, True])
def test_metadata_is_kept_and_comes_back(tmp_path, store, mirror):
    said = {"format": "pt", "tensor_names": '["a \u00e4"]', "lora.rank": "8"}
    save_file(STATE, tmp_path / "x.safetensors", metadata=said)
    if mirror:
        adopt(tmp_path / "x.safetensors", KEY, tmp_path / "m.toml", mirror=True, meta={"by": "me"})
        entry = Manifest.read(tmp_path / "m.toml").states[KEY]
        assert entry.meta == {"by": "me"}
        assert [file.metadata for file in entry.layout.values()] == [said]
        return
    adopt(tmp_path / "x.safetensors", KEY, store)
    assert store.meta(KEY) == {}
    assert adopt(tmp_path / "x.safetensors", KEY, store).existed
    written = export(store, KEY, tmp_path / "y.safetensors")
    assert metadata_in(written) == said
    assert same(load_file(written), STATE)


@pytest.mark.parametrize("said", [None, {"format": "pt"}])
def test_what_every_file_says_is_not_kept(tmp_path, store, said):
    save_file(STATE, tmp_path / "x.safetensors", metadata=said)
    adopt(tmp_path / "x.safetensors", KEY, store)
    assert metadata_in(export(store, KEY, tmp_path / "y.safetensors")) == {"format": "pt"}


def test_much_metadata_comes_back_too(tmp_path, store):
    said = {"format": "pt", "tags": "x" * (1 << 17)}
    save_file(STATE, tmp_path / "x.safetensors", metadata=said)
    adopt(tmp_path / "x.safetensors", KEY, store)
    assert metadata_in(export(store, KEY, tmp_path / "y.safetensors")) == said
