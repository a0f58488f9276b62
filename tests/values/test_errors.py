"""Every error says what it knows, keeps it across processes, and is the Python class that fits."""

from __future__ import annotations

import contextlib
import copy
import importlib
import pickle
import pkgutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import mlstate
from mlstate import errors
from mlstate.errors import (
    FormatError,
    IncompatibleStateError,
    IntegrityError,
    ManifestError,
    MissingPackageError,
    MlstateError,
    ObjectNotFoundError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
    UnpinnedStateError,
    concerning,
)
from mlstate.files import UnfitFileError
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey
from mlstate.warn import warn

KEY = StateKey.parse("pytorch.resnet18.imagenet")
TYPES = [getattr(errors, name) for name in errors.__all__ if name != "concerning"]
FIELDS = {
    "key": KEY,
    "tensor": "layer.0.weight",
    "path": "weights/objects/ab",
    "line": 7,
    "expected": 64,
    "found": "63",
    "remedy": "fetch it again",
}

every_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)


def fail_elsewhere():
    raise ObjectNotFoundError("gone", **FIELDS)


def test_no_type_is_left_out():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {kind.__name__ for kind in TYPES} == {name for name in defined if name.endswith("Error")}
    assert len(TYPES) >= 10


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (FormatError, (ValueError,)),
        (ManifestError, (FormatError, ValueError)),
        (IntegrityError, ()),
        (ObjectNotFoundError, (IntegrityError, FileNotFoundError, OSError)),
        (StateNotFoundError, (KeyError, LookupError)),
        (StateExistsError, (FileExistsError, OSError)),
        (IncompatibleStateError, (RuntimeError,)),
        (UnpinnedStateError, ()),
        (ReadOnlyStoreError, (NotImplementedError,)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_is_also_the_python_error_that_fits(kind, bases):
    for base in (MlstateError, *bases):
        with pytest.raises(base):
            raise kind("x")


@every_type
def test_fields_are_kept_as_given(kind):
    error = kind("it broke", **FIELDS)
    assert error.message == "it broke"
    assert {name: getattr(error, name) for name in FIELDS} == FIELDS
    assert error.args == ("it broke",)


@every_type
def test_fields_that_were_not_given_are_none(kind):
    error = kind("it broke")
    assert {getattr(error, name) for name in FIELDS} == {None}


@every_type
def test_the_text_is_the_message_and_then_what_is_known(kind):
    assert str(kind("it broke")) == "it broke"
    assert str(kind("it broke", **FIELDS)).splitlines() == [
        "it broke",
        f"  {'key' if issubclass(kind, ManifestError) else 'state'}: pytorch.resnet18.imagenet",
        "  tensor: layer.0.weight",
        "  where: weights/objects/ab, line 7",
        "  expected: 64",
        "  found: 63",
        "  what to do: fetch it again",
    ]


@pytest.mark.parametrize("value", [0, "", False, [], 0.0])
def test_a_value_that_is_false_is_shown_all_the_same(value):
    assert f"  found: {value}" in str(MlstateError("x", found=value)).splitlines()
    assert f"  expected: {value}" in str(MlstateError("x", expected=value)).splitlines()


def test_a_path_becomes_text():
    error = MlstateError("x", path=Path("a") / "b")
    assert error.path == str(Path("a/b"))
    assert str(error).splitlines()[1] == f"  where: {Path('a/b')}"


def test_a_value_of_any_length_is_cut_in_the_text_and_whole_in_the_field():
    error = MlstateError("x", found="f" * 1_000_000, expected="e" * 500)
    assert len(str(error)) < 2000
    assert "1000000 characters" in str(error)
    assert "e" * 500 + "\n" in str(error)
    assert len(error.found) == 1_000_000


@every_type
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_everything(kind, protocol):
    error = kind("it broke", **FIELDS)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.args == error.args


@every_type
def test_copying_keeps_everything(kind):
    error = kind("it broke", **FIELDS)
    for again in (copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert vars(again) == vars(error)
        assert str(again) == str(error)


def every_exception() -> set[type[BaseException]]:
    """The exceptions of all modules, those that do not leave the package too."""
    for module in pkgutil.walk_packages(mlstate.__path__, "mlstate."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(MissingPackageError):  # of a framework that is not installed
                importlib.import_module(module.name)
    found, left = set(), [BaseException]
    while left:
        left += set(left.pop().__subclasses__()) - found
        found.update(left)
    return {kind for kind in found if kind.__module__.split(".")[0] == "mlstate"}


def test_every_exception_of_every_module_can_be_sent_with_all_that_it_says():
    kinds = every_exception()
    assert {UnfitFileError, *TYPES} < kinds
    for kind in kinds:
        phrase = OVERWRITE + " helps"
        fields = {**FIELDS, "remedy": phrase} if issubclass(kind, MlstateError) else {}
        error = kind("it broke", "path") if kind is UnfitFileError else kind("it broke", **fields)
        error.add_note("more")
        if fields:
            error.attempts = (("https://host", phrase),)
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(again) is kind
            assert (str(again), again.args) == (str(error), error.args)
            assert vars(again) == vars(error)
            if fields:
                assert again.remedy.shell == phrase.shell


def test_an_error_crosses_to_another_process():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        error = pool.submit(fail_elsewhere).exception()
    assert type(error) is ObjectNotFoundError
    assert {name: getattr(error, name) for name in FIELDS} == FIELDS


def test_notes_survive_pickling():
    error = MlstateError("x")
    error.add_note("more")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["more"]


def test_concerning_says_which_state():
    with pytest.raises(IntegrityError) as caught, concerning(KEY):
        raise IntegrityError("x")
    assert caught.value.key == KEY
    assert str(KEY) in str(caught.value)


def test_concerning_leaves_an_error_that_says_so_itself():
    with pytest.raises(IntegrityError) as caught, concerning("outer"), concerning("inner"):
        raise IntegrityError("x")
    assert caught.value.key == "inner"


def test_concerning_lets_other_errors_pass_untouched():
    error = OSError(28, "full")
    with pytest.raises(OSError, match="full") as caught, concerning(KEY):
        raise error
    assert caught.value is error
    assert not hasattr(error, "key")


def test_concerning_does_nothing_where_nothing_fails():
    with concerning(KEY) as value:
        done = True
    assert done
    assert value is None


@pytest.mark.parametrize("field", ["expected", "found", "path", "remedy"])
def test_an_error_has_a_text_for_values_that_have_none(field):
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (1 << 100_000, {"a": 1 << 100_000}, deep):
        error = ManifestError("a manifest is odd")
        error.__dict__[field] = value
        assert "too large to be shown" in str(error)
    while deep:  # piece by piece: a destructor that recurses needs more room than there is
        deep = deep.pop()


def test_no_error_and_no_warning_commands_the_terminal_of_a_program():
    """A traceback is shown on a terminal, too."""
    hostile = "a\x1b[2Jb\nerror: c\u202ed\x9be"
    error = errors.FetchError(hostile, path=hostile, found=hostile, attempts=((hostile, hostile),))
    shown = [error, errors.SignatureError(hostile, signer=hostile)]
    shown.append(errors.CopyError(hostile, failures=((hostile, error),)))
    with pytest.warns(UserWarning, match="error: c") as caught:
        warn(hostile)
    for text in (*map(str, shown), str(caught[0].message)):
        assert all(line.isprintable() for line in text.split("\n"))
        assert "\nerror" not in text
        assert "\\x1b[2J" in text
