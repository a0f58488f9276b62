"""The shipped manifest of torchvision's ResNets and DenseNets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mlstate import Manifest, StateKey, StateType, Store, with_state_type
from mlstate.errors import UnpinnedStateError
from mlstate.fetch.names import translate_all
from mlstate.locations import Mirror
from tests.support.models import same, values

PATH = Path(__file__).parents[2] / "manifests" / "torchvision.toml"
RESNETS = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
FIRST_ONLY = {"resnet18", "resnet34", "resnext101_64x4d"}  # torchvision has one set of weights
DENSENETS = {
    "densenet121": (6, 12, 24, 16),
    "densenet161": (6, 12, 36, 24),
    "densenet169": (6, 12, 32, 32),
    "densenet201": (6, 12, 48, 32),
}
# Which names torchvision's own loading of DenseNets changes: it joins the two groups.
THEIRS = re.compile(
    r"(.*denselayer\d+\.(?:norm|relu|conv))\."
    r"((?:[12])\.(?:weight|bias|running_mean|running_var))"
)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return Manifest.read(PATH)


def mirror_of(manifest: Manifest, key: str) -> Mirror:
    [mirror] = manifest.states[StateKey.parse(key)].mirrors
    assert isinstance(mirror, Mirror)
    return mirror


def test_it_has_both_families_and_nothing_else(manifest):
    first = {f"pytorch.{name}.cls1000.imagenet" for name in [*RESNETS, *DENSENETS]}
    second = {f"pytorch.{name}.cls1000.imagenet-v2" for name in RESNETS if name not in FIRST_ONLY}
    assert {str(key) for key in manifest.states} == first | second


def test_each_mirror_names_its_model_and_carries_its_sum(manifest):
    for key, entry in manifest.states.items():
        mirror = mirror_of(manifest, str(key))
        named = re.fullmatch(
            r"https://download\.pytorch\.org/models/(\w+)-([0-9a-f]{8})\.pth", mirror.urls[0]
        )
        assert named, mirror.urls
        assert named[1] == key.state_type.architecture
        assert named[2] == mirror.sha256
        assert mirror.format == "torch"
        assert entry.digest is None
        assert entry.meta["license"] == "BSD-3-Clause"
        assert entry.meta["source"].startswith("https://github.com/pytorch/vision/")
        version = {"imagenet": "V1", "imagenet-v2": "V2"}[key.training_id]
        assert entry.meta["weights"].endswith(f"_Weights.IMAGENET1K_{version}")
        weights = entry.meta["weights"].partition("_Weights")[0]
        assert weights.lower() == key.state_type.architecture
    urls = [mirror_of(manifest, str(key)).urls[0] for key in manifest.states]
    assert len(set(urls)) == len(urls)


def test_the_file_is_what_mlstate_writes(manifest):
    assert manifest.format() == PATH.read_text()


def test_each_can_be_pinned_by_its_first_use(manifest):
    store = Store()
    for key, entry in manifest.states.items():
        assert store.first_use.allows(entry), key


def test_the_default_store_lists_them_and_strictly_refuses_to_load_them_unpinned():
    model = with_state_type(torch.nn.Linear(2, 2), StateType("pytorch", "resnet50", ("cls1000",)))
    before = values(model)
    keys = Store().get_state_keys(model.state_type)
    assert [key.training_id for key in keys] == ["imagenet", "imagenet-v2"]
    for key in keys:
        with pytest.raises(UnpinnedStateError, match="pin it") as caught:
            Store(pins="strict").load(model, key)
        assert caught.value.path == str(PATH)
    assert same(values(model), before)


@pytest.mark.parametrize("name", DENSENETS)
def test_the_literal_renames_do_what_the_pattern_of_torchvision_does(manifest, name):
    mirror = mirror_of(manifest, f"pytorch.{name}.cls1000.imagenet")
    published = list(densenet_names(DENSENETS[name], old=True))
    expected = {"".join(m.groups()) if (m := THEIRS.fullmatch(n)) else n: n for n in published}
    assert translate_all(mirror, published) == expected
    today = set(densenet_names(DENSENETS[name], old=False))
    assert expected.keys() == today
    assert translate_all(mirror, today) == {n: n for n in today}  # a newer file fits too


def test_resnets_are_published_under_their_own_names(manifest):
    for name in RESNETS:
        mirror = mirror_of(manifest, f"pytorch.{name}.cls1000.imagenet")
        assert (mirror.strip_prefix, mirror.add_prefix, mirror.rename) == ("", "", ())


def densenet_names(blocks: tuple[int, ...], *, old: bool) -> Iterator[str]:
    """The names in a DenseNet's state, as the published files have them or as a model has."""
    dot = "." if old else ""

    def norm(name: str) -> Iterator[str]:
        for entry in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{entry}"

    yield "features.conv0.weight"
    yield from norm("features.norm0")
    for block, layers in enumerate(blocks, 1):
        for layer in range(1, layers + 1):
            prefix = f"features.denseblock{block}.denselayer{layer}"
            for number in (1, 2):
                yield from norm(f"{prefix}.norm{dot}{number}")
                yield f"{prefix}.conv{dot}{number}.weight"
        if block < len(blocks):
            yield from norm(f"features.transition{block}.norm")
            yield f"features.transition{block}.conv.weight"
    yield from norm("features.norm5")
    yield "classifier.weight"
    yield "classifier.bias"
