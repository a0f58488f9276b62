"""The layout of a state in TOML: the golden text, what is refused, where each tensor belongs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate import Manifest, StateKey
from mlstate.errors import FormatError, ManifestError
from mlstate.layouts import WeightsFile, place_tensors

ROOT = Path(__file__).parents[2]
GOLDEN = (ROOT / "tests/golden/layout.toml").read_text()
KEY = StateKey.parse("pytorch.pipeline.tiny")
PT = {"format": "pt"}
INDEX = "text_encoder/model.safetensors.index.json"
SHARDS = [f"text_encoder/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
LAYOUT = {
    **{shard: WeightsFile("text_encoder/", INDEX, PT) for shard in SHARDS},
    "unet/diffusion_pytorch_model.fp16.safetensors": WeightsFile("unet/", None, PT),
    "vae/diffusion_pytorch_model.safetensors": WeightsFile("vae/"),
}


def with_layout(table):
    """The golden manifest with another layout, as TOML."""
    return re.sub(r"(?s)(\.layout\]\n).*", lambda found: found[1] + table, GOLDEN).encode()


def test_the_golden_text_is_read_and_written():
    manifest = Manifest.parse(GOLDEN.encode(), "golden")
    assert manifest.states[KEY].layout == LAYOUT
    assert manifest.format() == GOLDEN


def test_the_documentation_shows_a_part_of_it():
    page = (ROOT / "docs/format.md").read_text()
    block = page.partition('    [states."pytorch.pipeline.tiny".layout]\n')[2].partition("\n\n")[0]
    lines = [line.strip() for line in block.splitlines()]
    assert lines
    assert set(lines) <= set(GOLDEN.splitlines())


def test_keys_of_a_later_version_are_kept(tmp_path):
    table = '"x.safetensors" = {encoding = "later", metadata = {format = "pt"}}\n'
    path = tmp_path / "m.toml"
    path.write_bytes(with_layout(table))
    manifest = Manifest.read(path)
    assert manifest.states[KEY].layout["x.safetensors"].unknown == {"encoding": "later"}
    assert table in manifest.format()


@pytest.mark.parametrize(
    "table",
    [
        '"../x.safetensors" = {}',
        '"/x.safetensors" = {}',
        '"a\\\\b.safetensors" = {}',
        '"C:x.safetensors" = {}',
        '"a//b.safetensors" = {}',
        '"x.bin" = {}',
        '"x.safetensors" = 1',
        '"x.safetensors" = {prefix = 1}',
        '"x.safetensors" = {index = 1}',
        f'"x.safetensors" = {{prefix = "{"a" * 1001}"}}',
        '"x.safetensors" = {metadata = {format = 1}}',
        '"x.safetensors" = {metadata = "pt"}',
        '"a/x.safetensors" = {index = "x.safetensors.index.json"}',
        '"a/x.safetensors" = {index = "a/../../x.json"}',
        '"x.safetensors" = {index = "x.safetensors"}',
        '"x.safetensors" = {}\n"x.safetensors/y.safetensors" = {}',
        "\n".join(f'"{n}.safetensors" = {{prefix = "{n}"}}' for n in range(10_001)),
    ],
)
def test_a_layout_that_no_folder_could_have_is_refused_with_its_place(table):
    with pytest.raises(ManifestError) as caught:
        Manifest.parse(with_layout(table), "m.toml")
    assert caught.value.path == "m.toml"
    assert "layout" in str(caught.value.key)


def test_a_layout_is_a_table():
    text = GOLDEN.partition('\n[states."pytorch.pipeline.tiny".files]')[0] + "layout = []\n"
    with pytest.raises(ManifestError, match="layout is a table"):
        Manifest.parse(text.encode(), "m.toml")


@pytest.mark.parametrize(
    ("layout", "names", "places"),
    [
        ({"a.safetensors": WeightsFile("a/")}, ["b/x"], {}),
        ({"a.safetensors": WeightsFile(), "b.safetensors": WeightsFile()}, ["x"], {}),
        ({"a.safetensors": WeightsFile(index="i")}, ["x"], {"i": {}}),
        ({"a.safetensors": WeightsFile(index="i")}, ["x"], {"i": {"x": "b.safetensors"}}),
        ({"a.safetensors": WeightsFile(index="i")}, ["x"], {"i": {"x": "../a.safetensors"}}),
        (
            {"a.safetensors": WeightsFile("", "i"), "b.safetensors": WeightsFile("b", "i")},
            ["x"],
            {"i": {"x": "a.safetensors"}},
        ),
        (
            {"a.safetensors": WeightsFile("", "i"), "b.safetensors": WeightsFile("x")},
            ["y"],
            {"i": {"y": "b.safetensors"}},
        ),
    ],
)
def test_a_tensor_in_no_file_or_in_two_is_refused(layout, names, places):
    with pytest.raises(FormatError, match="does not fit"):
        place_tensors(layout, dict.fromkeys(names), places)


PREFIXES = st.lists(st.text("ab/", max_size=3), unique=True, max_size=5).map(lambda p: ["", *p])


@given(PREFIXES, st.lists(st.text("ab/", max_size=6), unique=True))
def test_every_tensor_is_in_exactly_one_file(prefixes, names):
    layout = {f"{n}.safetensors": WeightsFile(p) for n, p in enumerate(dict.fromkeys(prefixes))}
    placed = place_tensors(layout, dict.fromkeys(names), {})
    found = [name for held in placed.values() for name in held.values()]
    assert sorted(found) == sorted(names)
    for path, held in placed.items():
        assert all(layout[path].prefix + inner == name for inner, name in held.items())
