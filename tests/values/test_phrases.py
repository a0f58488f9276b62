"""A phrase is the text of Python, and carries that of the command line."""

from __future__ import annotations

import copy
import pickle

import pytest

from mlstate import LocalStateStore, ManifestStore, Store
from mlstate.errors import MlstateError
from mlstate.phrases import FOLDER_OR_BUCKET, OVERWRITE, Phrase, in_shell
from mlstate.stores.s3 import S3StateStore

REMEDY = "choose another name, or " + OVERWRITE + "; once"


def test_it_is_the_text_of_python():
    assert REMEDY == "choose another name, or overwrite=True; once"
    assert isinstance(REMEDY, str)
    assert (type(str(REMEDY)), type(f"{REMEDY}")) == (str, str)


def test_added_to_texts_it_keeps_both_wordings():
    assert in_shell(REMEDY) == "choose another name, or --overwrite; once"
    assert in_shell("save into " + FOLDER_OR_BUCKET) == "save into a folder or a bucket"
    assert FOLDER_OR_BUCKET == "a LocalStateStore or an S3StateStore"


@pytest.mark.parametrize("value", ["plain prose", 3, None, 1.5])
def test_what_is_no_phrase_is_the_same_in_both(value):
    assert in_shell(value) == str(value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_survives_pickling(protocol):
    again = pickle.loads(pickle.dumps(REMEDY, protocol))
    assert (type(again), again, again.shell) == (Phrase, REMEDY, REMEDY.shell)


def test_it_survives_copying():
    for again in (copy.copy(REMEDY), copy.deepcopy(REMEDY)):
        assert (again, in_shell(again)) == (REMEDY, REMEDY.shell)


def test_an_error_says_it_either_way():
    error = MlstateError("taken", expected=OVERWRITE, found=2, remedy=REMEDY)
    again = pickle.loads(pickle.dumps(error))
    for either in (error, again):
        assert str(either).splitlines()[-1] == f"  what to do: {REMEDY}"
        assert either.text(in_shell).splitlines() == [
            "taken",
            "  expected: --overwrite",
            "  found: 2",
            "  what to do: choose another name, or --overwrite; once",
        ]


def test_a_store_in_an_error_is_what_one_gives_as_store(tmp_path):
    (tmp_path / "m.toml").write_text("version = 1\n")
    stores = {
        LocalStateStore(tmp_path): str(tmp_path),
        ManifestStore(tmp_path / "m.toml"): str(tmp_path / "m.toml"),
        Store(): "the default store",
        S3StateStore("bucket"): "s3://bucket",
    }
    for store, place in stores.items():
        error = MlstateError("no", path=store, line=3)
        assert str(error) == f"no\n  where: {store!r}, line 3"
        assert error.text(in_shell) == f"no\n  where: {place}, line 3"
