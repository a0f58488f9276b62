"""State files in a folder and in memory obey the same laws."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlstate.format import layout
from mlstate.objects import FolderObjectStore
from mlstate.states import StateKey, StateType
from mlstate.stores.memory_statefiles import MemoryStateFiles
from mlstate.stores.statefiles import FolderStateFiles

LAW = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KEY = StateKey.parse("pytorch.resnet18.cls1000.imagenet")
OTHER = StateKey.parse("pytorch.resnet18.imagenet")
ELSEWHERE = StateKey.parse("jax.resnet18.imagenet")

part = st.from_regex(r"x[A-Za-z0-9_-]{0,9}", fullmatch=True)  # no name of a device begins with x
all_keys = st.builds(
    StateKey, st.builds(StateType, part, part, st.lists(part, max_size=3).map(tuple)), part
)
# Few keys, so that the operations meet.
few_keys = st.sampled_from([KEY, OTHER, ELSEWHERE, StateKey.parse("pytorch.vit.imagenet")])
operations = st.tuples(st.sampled_from(["create", "replace", "remove"]), few_keys, st.binary())

STATE_FILES = {
    "folder": lambda path: FolderStateFiles(path),
    "memory": lambda _: MemoryStateFiles(),
}


@pytest.fixture(params=list(STATE_FILES.values()), ids=list(STATE_FILES))
def state_files(request, tmp_path):
    return request.param(tmp_path / "store")


def test_at_first_there_is_nothing(state_files):
    assert list(state_files.keys()) == []
    assert list(state_files.keys(KEY.state_type)) == []
    assert state_files.read(KEY) is None
    assert state_files.case_variant(KEY) is None
    assert state_files.remove(KEY) is False


@pytest.mark.parametrize("data", [b"", b"x = 1\n", bytes(range(256)) * 9])
def test_what_was_created_is_read(state_files, data):
    assert state_files.create(KEY, data) is True
    assert state_files.read(KEY) == data
    assert list(state_files.keys()) == [KEY]


@pytest.mark.parametrize("again", ["the same object", "its equal", "others"])
def test_of_two_creators_the_first_wins(state_files, again):
    data = b"first"
    assert state_files.create(KEY, data) is True
    second = {"the same object": data, "its equal": bytes(bytearray(data)), "others": b"second"}
    assert state_files.create(KEY, second[again]) is False
    assert state_files.read(KEY) == data


@pytest.mark.parametrize("alike", [True, False], ids=["the same", "others"])
def test_of_racing_creators_exactly_one_wins(state_files, alike):
    racers = 8
    contents = [b"the same" if alike else bytes([n]) * 5_000 for n in range(racers)]
    barrier = Barrier(racers)

    def create(data):
        barrier.wait(20)
        return state_files.create(KEY, data)

    with ThreadPoolExecutor(racers) as pool:
        won = list(pool.map(create, contents))
    assert won.count(True) == 1
    assert won.count(False) == racers - 1
    assert state_files.read(KEY) == contents[won.index(True)]


def test_of_racing_removers_exactly_one_wins(state_files):
    state_files.create(KEY, b"x")
    barrier = Barrier(8)

    def remove(_):
        barrier.wait(20)
        return state_files.remove(KEY)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(remove, range(8))).count(True) == 1
    assert state_files.read(KEY) is None


def test_replace_needs_no_predecessor_and_leaves_none(state_files):
    for data in (b"first", b"second", b""):
        state_files.replace(KEY, data)
        assert state_files.read(KEY) == data
    assert list(state_files.keys()) == [KEY]
    assert state_files.create(KEY, b"third") is False


def test_what_was_removed_is_gone_and_the_name_is_free(state_files):
    state_files.create(KEY, b"1")
    state_files.create(OTHER, b"2")
    assert state_files.remove(KEY) is True
    assert state_files.remove(KEY) is False
    assert state_files.read(KEY) is None
    assert list(state_files.keys()) == [OTHER]
    assert state_files.create(KEY, b"3") is True
    assert state_files.read(KEY) == b"3"
    assert state_files.remove(KEY) is True


def test_the_keys_of_a_type_are_those_compatible_with_it(state_files):
    keys = [
        StateKey.parse(text)
        for text in (
            "pytorch.resnet18.a",
            "pytorch.resnet18.b.a",
            "pytorch.resnet18.b.c.a",
            "pytorch.resnet180.a",
            "pytorch.ResNet18.a",
            "jax.resnet18.a",
        )
    ]
    for key in keys:
        state_files.create(key, b"")
    assert sorted(state_files.keys()) == sorted(keys)
    for extra in ((), ("b",), ("z",)):
        found = state_files.keys(StateType("pytorch", "resnet18", extra))
        assert sorted(found) == sorted(keys[:3])
    assert list(state_files.keys(StateType("jax", "vit"))) == []


@LAW
@given(wanted=st.sets(all_keys, min_size=1, max_size=4))
def test_every_key_is_found_by_itself(state_files, wanted):
    for key in wanted:
        state_files.replace(key, str(key).encode())
    assert wanted <= set(state_files.keys())
    for key in wanted:
        assert state_files.read(key) == str(key).encode()
        assert key in set(state_files.keys(key.state_type))
        assert state_files.remove(key)
        assert key not in set(state_files.keys())


@LAW
@given(steps=st.lists(operations, max_size=12))
def test_they_behave_as_a_dictionary_does(state_files, steps):
    for key in list(state_files.keys()):
        state_files.remove(key)
    expected: dict[StateKey, bytes] = {}
    for operation, key, data in steps:
        if operation == "create":
            assert state_files.create(key, data) is (key not in expected)
            expected.setdefault(key, data)
        elif operation == "replace":
            state_files.replace(key, data)
            expected[key] = data
        else:
            assert state_files.remove(key) is (expected.pop(key, None) is not None)
        assert sorted(state_files.keys()) == sorted(expected)
    assert {key: state_files.read(key) for key in state_files.keys(None)} == expected


@pytest.mark.parametrize(
    "variant",
    [
        "PyTorch.resnet18.cls1000.imagenet",
        "pytorch.ResNet18.cls1000.imagenet",
        "pytorch.resnet18.CLS1000.imagenet",
        "pytorch.resnet18.cls1000.ImageNet",
        "PYTORCH.RESNET18.CLS1000.IMAGENET",
    ],
)
def test_a_key_that_differs_in_case_only_is_found(state_files, variant):
    there = StateKey.parse(variant)
    state_files.create(there, b"")
    assert state_files.case_variant(KEY) == there
    assert state_files.case_variant(there) is None
    state_files.create(KEY, b"")
    assert state_files.case_variant(KEY) == there
    assert state_files.case_variant(there) == KEY


def test_a_key_that_differs_otherwise_is_no_variant(state_files):
    for text in ("pytorch.resnet18.cls1000.imagenet2", "pytorch.resnet18.cls1000.x.imagenet"):
        state_files.create(StateKey.parse(text), b"")
    for key in (OTHER, ELSEWHERE, KEY):
        state_files.create(key, b"")
    assert state_files.case_variant(KEY) is None


def test_where_a_state_file_is_tells_the_keys_apart(state_files):
    places = {state_files.locate(key) for key in (KEY, OTHER, ELSEWHERE)}
    assert len(places) == 3
    assert all("imagenet" in place for place in places)


# In a folder.


@pytest.fixture
def folder(tmp_path) -> FolderStateFiles:
    return FolderStateFiles(tmp_path / "store")


def test_a_state_file_lies_where_the_format_says_and_is_read_only(folder):
    folder.create(KEY, b"x")
    path = folder.root / "states" / "pytorch" / "resnet18" / "cls1000.imagenet.toml"
    assert folder.locate(KEY) == str(path)
    assert path.read_bytes() == b"x"
    assert path.stat().st_mode & 0o222 == 0
    folder.replace(KEY, b"y")
    assert path.stat().st_mode & 0o222 == 0


def test_the_first_state_file_makes_the_folder_a_store(tmp_path):
    for n, write in enumerate((FolderStateFiles.create, FolderStateFiles.replace)):
        files = FolderStateFiles(tmp_path / str(n))
        write(files, KEY, b"")
        assert (files.root / "mlstate.toml").read_bytes() == layout.NEW_SETTINGS
        FolderObjectStore(files.root)


def test_looking_makes_nothing(folder):
    list(folder.keys())
    folder.read(KEY)
    folder.case_variant(KEY)
    folder.remove(KEY)
    assert not folder.root.exists()


@LAW
@given(key=all_keys)
def test_a_path_and_its_key_are_inverse(key):
    assert layout.key_of_state_path(layout.state_path(key)) == key


FOREIGN = [
    "states/README.md",
    "states/pytorch/README.toml",
    "states/pytorch/resnet18/imagenet",
    "states/pytorch/resnet18/imagenet.toml~",
    "states/pytorch/resnet18/.imagenet.toml.swp",
    "states/pytorch/resnet18/imagenet.TOML",
    "states/pytorch/resnet18/image net.toml",
    "states/pytorch/resnet18/größe.toml",
    "states/pytorch/resnet18/٣.toml",
    "states/pytorch/resnet18/.toml",
    "states/pytorch/resnet18/a..b.toml",
    "states/pytorch/resnet18/nul.toml",
    "states/pytorch/resnet18/imagenet\n.toml",
    "states/pytorch/resnet18/" + "x" * 65 + ".toml",
    "states/pytorch/resnet18/deeper/imagenet.toml",
    "states/py.torch/resnet18/imagenet.toml",
    "states/pytorch/.git/imagenet.toml",
    "roots/pytorch/resnet18/imagenet.toml",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_names_are_ignored_and_kept(folder, name):
    folder.create(KEY, b"x")
    path = folder.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    assert list(folder.keys()) == [KEY]
    assert list(folder.keys(KEY.state_type)) == [KEY]
    folder.replace(KEY, b"y")
    folder.remove(KEY)
    assert path.read_bytes() == b"mine"


def test_a_name_that_is_not_utf8_is_ignored(folder):
    folder.create(KEY, b"x")
    try:
        Path(os.fsdecode(os.fsencode(folder.locate(KEY)) + b"\xff.toml")).touch()
    except OSError as error:
        pytest.skip(f"no such names here: {error}")
    assert list(folder.keys()) == [KEY]
    assert folder.case_variant(OTHER) is None


def test_foreign_names_do_not_hide_a_variant_in_case(folder):
    there = StateKey.parse("pytorch.resnet18.ImageNet")
    folder.create(there, b"")
    for ending in ("TOML", "Toml", "tOML", "toML", "tomL", "TOMl", "TOml", "ToMl"):
        Path(folder.locate(OTHER)).with_name(f"imagenet.{ending}").touch()
    for name in ("STATES", "States", "sTates", "stAtes"):
        path = folder.root / name / "pytorch" / "resnet18" / "imagenet.toml"
        path.parent.mkdir(parents=True)
        path.touch()
    assert folder.case_variant(OTHER) == there


def test_listing_opens_no_state_file(folder, monkeypatch):
    folder.create(KEY, b"\0 this is no TOML")
    Path(folder.locate(OTHER)).symlink_to("nowhere")  # could not be opened at all
    assert sorted(folder.keys()) == sorted([KEY, OTHER])


def test_what_is_removed_lies_in_the_trash_with_its_content_and_a_new_age(folder):
    for data in (b"first", b"second"):
        folder.create(KEY, data)
        os.utime(folder.locate(KEY), (1, 1))
        assert folder.remove(KEY)
    trash = list((folder.root / "trash").iterdir())
    assert sorted(path.read_bytes() for path in trash) == [b"first", b"second"]
    assert all(str(KEY) in path.name for path in trash)
    assert all(abs(time.time() - path.stat().st_mtime) < 60 for path in trash)
    assert list((folder.root / "tmp").iterdir()) == []


def test_the_longest_key_can_be_removed(folder):
    key = StateKey(StateType("b" * 64, "a" * 64, ("e" * 34,)), "t" * 35)
    assert len(str(key)) == 200
    folder.create(key, b"x")
    assert folder.remove(key)


def test_a_removal_is_durable_and_never_loses_the_file(folder, monkeypatch):
    """The trash is flushed before the folder that the file was in, and its own name is too."""
    root = Path(os.path.realpath(folder.root))
    folder = FolderStateFiles(root)
    folder.create(KEY, b"x")
    really_fsync, flushed = os.fsync, []

    def fsync(descriptor):
        really_fsync(descriptor)
        here, there = Path(folder.locate(KEY)).exists(), list(root.glob("trash/*"))
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        flushed.append((path, "before" if here else "moved" if there else "lost"))

    monkeypatch.setattr(os, "fsync", fsync)
    assert folder.remove(KEY)
    trash = (str(root / "trash"), "moved")
    states = (str(root / "states" / "pytorch" / "resnet18"), "moved")
    assert trash in flushed
    assert states in flushed
    assert flushed.index(trash) < flushed.index(states)
    assert str(root) in [path for path, _ in flushed], "trash/ is new: the root holds its name"
