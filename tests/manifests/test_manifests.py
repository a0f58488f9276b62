"""Manifests: what is read and refused, and that writing touches what changed and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import signal
import stat
import tempfile
import tomllib
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlstate import LocalStateStore
from mlstate.digests import Digest
from mlstate.errors import FormatError, ManifestError, UnpinnedStateError
from mlstate.locations import Mirror, UnusableMirror
from mlstate.manifests import FileEntry, Manifest, StateEntry, manifest_files
from mlstate.manifests.update import change_manifest
from mlstate.states import StateKey, StateType

A, B, C = (StateKey.parse(f"p.r.{name}") for name in "abc")
D = [Digest(str(n) * 64) for n in range(10)]
HEAD = "version = 1\n\n"


def state(key=A, digest=D[1], **fields):
    return StateEntry(key, digest, **fields)


def manifest(*entries, **fields):
    return Manifest({entry.key: entry for entry in entries}, **fields)


def parse(text):
    return Manifest.parse(text.encode(), "here.toml")


def refusal(text):
    with pytest.raises(ManifestError) as caught:
        parse(text)
    return caught.value


def exact(value):
    """A value with its types, so that 1, 1.0 and true differ and nan equals itself."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(name): exact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    if isinstance(value, StateEntry | FileEntry):
        fields = [field.name for field in dataclasses.fields(value) if field.compare]
        return exact({name: getattr(value, name) for name in fields if name != "objects"})
    if isinstance(value, Mirror):
        return repr(value)
    if isinstance(value, UnusableMirror):
        return exact(value.toml)
    for kind in (bool, int, float, str):  # tomllib gives plain types, others may be subclasses
        if isinstance(value, kind):
            return (kind.__name__, repr(kind(value)))
    return (type(value).__name__, repr(value))


# Reading


SPECIFIED = f"""\
version = 1
objects = ["s3://weights/models", "https://cdn.example.org/mlstate"]

[states."pytorch.resnet18.cls1000.imagenet"]
blake3 = "{D[1]}"
size = 46827520
mirrors = [
  "https://github.com/org/repo/releases/download/state/cls1000.imagenet.safetensors",
  {{ url = "https://h/models/resnet18-f37072fd.pth", format = "torch", sha256 = "f37072fd" }},
]
[states."pytorch.resnet18.cls1000.imagenet".files]
"labels.json" = "{D[2]}"
"vocab/words.txt" = {{ blake3 = "{D[3]}", mirrors = ["https://h/words.txt"] }}
[states."pytorch.resnet18.cls1000.imagenet".meta]
license = "BSD-3-Clause"
"""


def test_the_manifest_of_the_specification_is_read():
    key = StateKey.parse("pytorch.resnet18.cls1000.imagenet")
    read = parse(SPECIFIED)
    assert read.objects == ("s3://weights/models", "https://cdn.example.org/mlstate")
    assert read.unknown == {}
    assert read.states == {
        key: StateEntry(
            key,
            D[1],
            46827520,
            (
                Mirror(
                    (
                        "https://github.com/org/repo/releases/download/state/"
                        "cls1000.imagenet.safetensors",
                    )
                ),
                Mirror(
                    ("https://h/models/resnet18-f37072fd.pth",), format="torch", sha256="f37072fd"
                ),
            ),
            {
                "labels.json": FileEntry(D[2]),
                "vocab/words.txt": FileEntry(D[3], (Mirror(("https://h/words.txt",)),)),
            },
            {"license": "BSD-3-Clause"},
            objects=read.objects,
        )
    }
    assert read.states[key].origin == "here.toml"
    assert read.states[key].pinned_digest == D[1]


def test_a_manifest_may_have_no_states():
    assert parse("version = 1").states == {}


def test_a_state_without_digest_is_listed_and_unpinned():
    entry = parse(HEAD + '[states."p.r.a"]\nsize = 3\n').states[A]
    assert (entry.digest, entry.size) == (None, 3)
    with pytest.raises(UnpinnedStateError) as caught:
        _ = entry.pinned_digest
    assert (caught.value.key, caught.value.path) == (A, "here.toml")


def test_a_folder_is_read_recursively_and_nothing_else_in_it(tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    manifest(state(A)).write(tmp_path / "z.toml")
    manifest(state(B)).write(tmp_path / "sub" / "deep" / "y.toml")
    (tmp_path / "README.md").write_text("not a manifest")
    (tmp_path / "x.toml.bak").write_text("not a manifest")
    read = Manifest.read(tmp_path)
    assert set(read.states) == {A, B}
    assert read.states[A].origin == str(tmp_path / "z.toml")
    assert read.states[B].origin == str(tmp_path / "sub" / "deep" / "y.toml")


def test_an_empty_folder_and_no_path_at_all_have_no_states(tmp_path):
    assert Manifest.read(tmp_path).states == Manifest.read().states == {}


def test_a_folder_named_like_a_manifest_is_a_folder(tmp_path):
    (tmp_path / "x.toml").mkdir()
    manifest(state(A)).write(tmp_path / "x.toml" / "y.toml")
    assert set(Manifest.read(tmp_path).states) == {A}


def test_several_files_and_folders_are_read_together(tmp_path):
    (tmp_path / "folder").mkdir()
    manifest(state(A), objects=("https://one/",)).write(tmp_path / "one.toml")
    manifest(state(B), objects=("https://two/",)).write(tmp_path / "folder" / "two.toml")
    read = Manifest.read(str(tmp_path / "one.toml"), tmp_path / "folder")
    assert read.states[A].objects == ("https://one/",)
    assert read.states[B].objects == ("https://two/",)


def test_the_same_state_in_two_files_is_one_state(tmp_path):
    for name in ("one.toml", "two.toml"):
        manifest(state(A)).write(tmp_path / name)
    assert set(Manifest.read(tmp_path).states) == {A}


def test_a_state_with_two_digests_is_refused_naming_both_files(tmp_path):
    manifest(state(A, D[1])).write(tmp_path / "one.toml")
    manifest(state(A, D[2])).write(tmp_path / "two.toml")
    with pytest.raises(ManifestError) as caught:
        Manifest.read(tmp_path)
    assert caught.value.key == A
    for part in (tmp_path / "one.toml", tmp_path / "two.toml", D[1], D[2]):
        assert str(part) in str(caught.value)


def test_keys_that_differ_only_in_case_are_refused_within_a_file():
    error = refusal(HEAD + '[states."p.r.a"]\n[states."p.R.a"]\n')
    assert "case" in error.message
    assert "p.r.a" in str(error)
    assert "p.R.a" in str(error)


def test_keys_that_differ_only_in_case_are_refused_across_files(tmp_path):
    manifest(state(A)).write(tmp_path / "one.toml")
    manifest(state(StateKey.parse("P.r.a"))).write(tmp_path / "two.toml")
    with pytest.raises(ManifestError, match="case") as caught:
        Manifest.read(tmp_path)
    for part in (tmp_path / "one.toml", tmp_path / "two.toml", "p.r.a", "P.r.a"):
        assert str(part) in str(caught.value)


def test_a_path_where_nothing_is_is_refused_by_name(tmp_path):
    with pytest.raises(ManifestError) as caught:
        Manifest.read(tmp_path / "no.toml")
    assert caught.value.path == str(tmp_path / "no.toml")


def test_a_broken_link_in_a_folder_is_refused_by_name(tmp_path):
    (tmp_path / "link.toml").symlink_to(tmp_path / "gone")
    with pytest.raises(ManifestError) as caught:
        Manifest.read(tmp_path)
    assert caught.value.path == str(tmp_path / "link.toml")


def test_a_damaged_file_of_a_folder_is_refused_by_name(tmp_path):
    manifest(state(A)).write(tmp_path / "one.toml")
    (tmp_path / "two.toml").write_text("version = 1\n=\n")
    with pytest.raises(ManifestError) as caught:
        Manifest.read(tmp_path)
    assert (caught.value.path, caught.value.line) == (str(tmp_path / "two.toml"), 2)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe", b"version = 1\nx = '\xe9'", b"\xef\xbb\xbfversion = 2", b"[", b"version", b"\0"],
)
def test_what_is_no_toml_is_a_manifest_error(data):
    with pytest.raises(ManifestError) as caught:
        Manifest.parse(data, "here.toml")
    assert caught.value.path == "here.toml"


@pytest.mark.parametrize("bracket", ["[]", "{}"], ids=["lists", "tables"])
def test_a_hostile_depth_is_a_manifest_error(bracket):
    opening, closing = {"[]": ("[", "]"), "{}": ("{a=", "a=1}")}[bracket]
    text = f"version = 1\nx = {opening * 5000}{closing * 5000}"
    assert refusal(text).path == "here.toml"


def test_a_number_of_hostile_length_is_a_manifest_error():
    assert refusal(HEAD + f'[states."p.r.a"]\nsize = {"9" * 10_000}\n').path == "here.toml"


@given(st.binary(max_size=60))
def test_any_bytes_are_a_manifest_or_a_manifest_error(data):
    with contextlib.suppress(ManifestError):
        assert isinstance(Manifest.parse(data, "here.toml"), Manifest)


@pytest.mark.parametrize("version", ["0", "-1", "2", "1.0", "true", '"1"', "[1]", "2026-01-01"])
def test_another_version_is_refused(version):
    error = refusal(f"# a comment\nversion = {version}\n")
    assert (error.key, error.path, error.expected) == ("version", "here.toml", "version = 1")


def test_a_manifest_without_version_is_refused():
    error = refusal('[states."p.r.a"]\n')
    assert (error.key, error.expected, error.found) == (None, "version = 1", None)
    assert error.remedy == "write version = 1 at its top"
    assert "does not say its version" in error.message


def test_a_key_without_quotes_is_refused_with_the_remedy():
    error = refusal("version = 1\n[states.pytorch.net.imagenet]\nsize = 1\n")
    assert (error.key, error.line) == ("pytorch", 2)
    assert "quoted" in error.remedy


def test_a_mistyped_digest_is_named_when_it_is_missed():
    entry = parse(HEAD + f'[states."p.r.a"]\nblak3 = "{D[1]}"\n').states[A]
    with pytest.raises(UnpinnedStateError, match="call it blake3"):
        _ = entry.pinned_digest


@pytest.mark.parametrize(
    "states", [{A: D[1]}, {"p.r.a": state(A)}, {B: state(A)}, [state(A)], None]
)
def test_a_manifest_is_made_of_entries_under_their_own_keys(states):
    with pytest.raises(FormatError):
        Manifest(states)


def test_an_address_is_no_path_of_a_manifest():
    with pytest.raises(FormatError, match="folder or file of this machine is needed"):
        Manifest.read("s3://bucket/manifests")
    with pytest.raises(FormatError):
        manifest(state(A)).write("https://h/m.toml")


def test_a_higher_version_is_refused_before_its_content_is_judged():
    error = refusal("version = 7\nstates = 5\n")
    assert (error.line, error.found) == (1, 7)
    assert "newer" in error.remedy


BAD_LINES = {  # the line at fault is marked, and the key that the error is to name
    "digest": ('blake3 = "abc" # here', "p.r.b.blake3"),
    "upper case digest": (f'blake3 = "{"A" * 64}" # here', "p.r.b.blake3"),
    "digest is a number": ("blake3 = 5 # here", "p.r.b.blake3"),
    "size is negative": ("size = -1 # here", "p.r.b.size"),
    "size is a float": ("size = 1.0 # here", "p.r.b.size"),
    "size is true": ("size = true # here", "p.r.b.size"),
    "mirrors is a text": ('mirrors = "a" # here', "p.r.b.mirrors"),
    "mirrors is a table": ("mirrors = {} # here", "p.r.b.mirrors"),
    "a mirror is a number": ("mirrors = [5] # here", "p.r.b.mirrors"),
    "a mirror has a password": ('mirrors = ["https://u:p@h/"] # here', "p.r.b.mirrors"),
    "files is a list": ("files = [] # here", "p.r.b.files"),
    "a file is a number": ("files.x = 5 # here", "p.r.b.files.x"),
    "a file without digest": ("files.x.mirrors = [] # here", "p.r.b.files.x"),
    "a file with a bad digest": ('files."x.json" = "0" # here', "p.r.b.files.x.json"),
    "a file with a bad mirror": (
        f'files.x = {{blake3 = "{D[1]}", mirrors = 5}} # here',
        "p.r.b.files.x.mirrors",
    ),
    "a file elsewhere": (f'files."../x" = "{D[1]}" # here', "p.r.b.files"),
    "meta is a number": ("meta = 5 # here", "p.r.b.meta"),
}


@pytest.mark.parametrize(("line", "key"), BAD_LINES.values(), ids=BAD_LINES)
@pytest.mark.parametrize(
    "before",
    [
        "",
        f'[states."p.r.a"]\nblake3 = "{D[1]}"\nsize = 5\nmirrors = ["x"]\nfiles.x = "{D[1]}"\n'
        "meta.size = 1\n",
        f'[states."p.r.bb"]\nblake3 = "{D[1]}"\nsize = 5\nmirrors = ["x"]\nmeta.x = 1\n'
        f'files = {{ "x.json" = "{D[1]}" }}\n',
        "# p.r.b is new: blake3, size, mirrors, files, meta, x\n",
    ],
    ids=["alone", "after a state", "after a key that begins the same", "after a comment"],
)
def test_a_complaint_names_file_line_and_key(before, line, key):
    text = f'{HEAD}{before}[states."p.r.b"]\n{line}\nnote = 1\n'
    error = refusal(text)
    expected = next(n for n, line in enumerate(text.splitlines(), 1) if "# here" in line)
    assert (error.path, error.line, error.key) == ("here.toml", expected, key)
    assert f"here.toml, line {expected}" in str(error)


def test_a_key_within_meta_does_not_mislead_the_line():
    error = refusal(HEAD + '[states."p.r.b"]\nmeta.size = 5\nsize = -1\n')
    assert error.line == 5


@pytest.mark.parametrize("key", ["p.r", "p", "", "p.r.", "p..a", "p.r.a b", "p.r.con", "p.r.ä"])
def test_a_state_key_that_is_none_is_refused(key):
    error = refusal(f'{HEAD}[states."{key}"]\n')
    assert error.path == "here.toml"
    assert isinstance(error, ValueError)


def test_bare_keys_do_not_become_a_state_key():
    refusal(HEAD + f'[states.p.r.a]\nblake3 = "{D[1]}"\n')


@pytest.mark.parametrize("objects", ['"https://h/"', "[5]", "{}", '["https://u:p@h/"]', '[""]'])
def test_objects_is_a_list_of_addresses(objects):
    error = refusal(f"version = 1\nobjects = {objects}\n")
    assert (error.path, error.line, error.key) == ("here.toml", 2, "objects")


@pytest.mark.parametrize("states", ["5", "[]", '"x"'])
def test_states_is_a_table(states):
    assert refusal(f"version = 1\nstates = {states}\n").key == "states"


def test_a_state_is_a_table():
    assert refusal(HEAD + '[states]\n"p.r.a" = 5\n').line == 4


def test_a_password_in_a_manifest_is_not_in_the_message():
    text = f'{HEAD}[states."p.r.a"]\nmirrors = ["https://me:hunter2@h/a"]\n'
    assert "hunter2" not in str(refusal(text))


@pytest.mark.parametrize("address", ["https://[::1/a", "https://me:hunter2@h\u2100/a"])
def test_an_address_that_cannot_be_taken_apart_is_a_manifest_error(address):
    error = refusal(f'{HEAD}[states."p.r.a"]\nmirrors = ["{address}"]\n')
    assert error.line == 4
    assert "hunter2" not in str(error)


def test_an_unusable_mirror_is_passed_over_and_its_neighbours_are_not():
    entry = parse(f'{HEAD}[states."p.r.a"]\nmirrors = ["ftp://h/a", "b", {{url="c", new=1}}]\n')
    first, second, third = entry.states[A].mirrors
    assert isinstance(first, UnusableMirror)
    assert second == Mirror(("b",))
    assert isinstance(third, UnusableMirror)


# Writing a new file


def toml_values():
    plain = st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.dates(),
        st.times().map(lambda time: time.replace(fold=0)),  # TOML knows no fold
        st.datetimes(timezones=st.none() | st.just(datetime.UTC)).map(
            lambda time: time.replace(fold=0)
        ),
    )
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=4,
    )


def tables(values=None):
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    return st.dictionaries(names, toml_values() if values is None else values, max_size=3)


addresses = st.sampled_from(["https://h/a", "s3://b/c", "hf://o/r@v/p", "a b.safetensors", "ä"])
short = st.sampled_from(["", "module.", "a b", "ä", '"', "\n", "\x7f"])
mirrors = st.recursive(
    st.builds(
        Mirror,
        urls=st.lists(addresses, min_size=1, max_size=3).map(tuple),
        state=st.none() | addresses,
        format=st.sampled_from(["safetensors", "torch", "torch-gzip"]),
        sha256=st.none() | st.sampled_from(["f", "f37072fd", "0" * 64]),
        select=st.none() | st.sampled_from(["model", "a.b"]),
        strip_prefix=short,
        add_prefix=short,
        rename=st.lists(
            st.tuples(short.filter(bool), short), max_size=2
        ).map(tuple),
    ),
    lambda inner: st.builds(Mirror, parts=st.lists(inner, min_size=1, max_size=2).map(tuple)),
    max_leaves=3,
)  # fmt: skip
digests = st.sampled_from(D)
keys = st.builds(
    StateKey,
    st.builds(
        StateType,
        st.sampled_from(["p", "p-q"]),
        st.sampled_from(["r", "r-s", "r_"]),
        st.lists(st.sampled_from(["e", "e-f"]), max_size=2),
    ),
    st.sampled_from(["a", "b", "a-b", "x1"]),
)
file_names = st.sampled_from(["config.json", "vocab/words.txt", "ä ö.txt", "a-b"])
later = st.dictionaries(st.sampled_from(["new", "x y", "é", "z.z"]), toml_values(), max_size=2)


@st.composite
def entries(draw, key=keys):
    return StateEntry(
        draw(key),
        draw(st.none() | digests),
        draw(st.none() | st.integers(0, 2**60)),
        tuple(draw(st.lists(mirrors, max_size=2))),
        draw(
            st.dictionaries(
                file_names,
                st.builds(FileEntry, digests, st.lists(mirrors, max_size=1).map(tuple)),
                max_size=2,
            )
        ),
        draw(tables()),
        draw(later),
    )


def manifests():
    return st.builds(
        lambda found, objects, unknown: manifest(
            *(dataclasses.replace(entry, objects=objects) for entry in found),
            objects=objects,
            unknown=unknown,
        ),
        st.lists(entries(), max_size=3),
        st.lists(addresses, max_size=2).map(tuple),
        later,
    )


@settings(max_examples=80, deadline=None)
@given(manifests())
def test_what_was_written_is_read_back(wanted):
    read = parse(wanted.format())
    assert exact(read.states) == exact(wanted.states)
    assert read.objects == wanted.objects
    assert exact(read.unknown) == exact(wanted.unknown)
    assert all(entry.objects == wanted.objects for entry in read.states.values())


def reversed_everywhere(value):
    if isinstance(value, dict):
        return {name: reversed_everywhere(item) for name, item in reversed(value.items())}
    return value


@settings(max_examples=30, deadline=None)
@given(manifests())
def test_the_same_content_gives_the_same_bytes_in_any_order(one):
    other = Manifest(
        {
            key: dataclasses.replace(
                entry,
                files=reversed_everywhere(entry.files),
                meta=dict(reversed(entry.meta.items())),
                unknown=dict(reversed(entry.unknown.items())),
            )
            for key, entry in reversed(one.states.items())
        },
        one.objects,
        dict(reversed(one.unknown.items())),
    )
    assert other.format() == one.format()


def test_nested_tables_give_the_same_bytes_in_any_order():
    one = manifest(state(meta={"scores": {"top1": 1, "top5": 2}}))
    other = manifest(state(meta={"scores": {"top5": 2, "top1": 1}}))
    assert one.format() == other.format()


def test_writing_twice_gives_the_same_bytes_and_the_second_does_not_write(tmp_path):
    wanted = manifest(state(A, meta={"b": 1, "a": [1, 2]}), state(B))
    wanted.write(tmp_path / "m.toml")
    before = (tmp_path / "m.toml").read_bytes(), os.stat(tmp_path / "m.toml")
    Manifest.read(tmp_path / "m.toml").write(tmp_path / "m.toml")
    wanted.write(tmp_path / "m.toml")
    after = (tmp_path / "m.toml").read_bytes(), os.stat(tmp_path / "m.toml")
    assert after[0] == before[0]
    assert after[1].st_ino == before[1].st_ino
    assert after[1].st_mtime_ns == before[1].st_mtime_ns


def test_reading_and_writing_anew_gives_the_same_bytes(tmp_path):
    text = parse(SPECIFIED).format()
    assert parse(text).format() == text
    parse(SPECIFIED).write(tmp_path / "m.toml")
    assert (tmp_path / "m.toml").read_text() == text


def test_a_new_file_is_sorted_by_the_fields_of_its_keys():
    names = ["p.r.z", "p.r.a.b", "p.r-x.a"]
    text = manifest(*(state(StateKey.parse(name)) for name in reversed(names))).format()
    assert re.findall(r'^\[states\."(.*)"\]$', text, re.M) == names


@pytest.mark.parametrize(
    "names",
    [["p.r.a", "p.r.b", "p.r.c"], ["p.r.b", "p.r-x.a", "p.r.a"], ["p.r.z", "p.r.a.b", "p.r.y"]],
    ids=["plain", "dash sorts before dot", "extra sorts after none"],
)
def test_states_added_one_by_one_give_the_file_of_all_at_once(tmp_path, names):
    found = [state(StateKey.parse(name), meta={"n": 1}) for name in names]
    for count in range(1, len(found) + 1):
        manifest(*found[:count]).write(tmp_path / "one.toml")
    manifest(*found).write(tmp_path / "all.toml")
    assert (tmp_path / "one.toml").read_text() == (tmp_path / "all.toml").read_text()


def test_a_new_file_reads_like_the_specification():
    text = parse(SPECIFIED).format()
    assert text.startswith("version = 1\nobjects = [\n")
    assert text.endswith('license = "BSD-3-Clause"\n')
    assert '\n[states."pytorch.resnet18.cls1000.imagenet"]\nblake3 = ' in text
    assert '"labels.json" = "2222' in text


def test_unknown_keys_and_unusable_mirrors_are_kept_in_a_new_file():
    text = f"""version = 1
future = 1
[later]
x = [1, 2]
[states."p.r.a"]
blake3 = "{D[1]}"
lease = {{ until = 2030-01-01 }}
mirrors = ["ftp://h/a", "b", {{ url = "c", shiny = true }}, {{ url = "d", format = "gguf" }}]
"""
    again = tomllib.loads(parse(text).format())
    assert again == tomllib.loads(text)


def test_unknown_keys_of_a_file_are_kept_in_a_new_file():
    text = f'{HEAD}[states."p.r.a".files.x]\nblake3 = "{D[1]}"\nlater = 1\n'
    assert tomllib.loads(parse(text).format()) == tomllib.loads(text)


def test_parts_are_written_so_that_they_can_be_read():
    parts = (Mirror(("a",), format="torch"), Mirror(("b",), strip_prefix="x."))
    wanted = manifest(state(mirrors=(Mirror(parts=parts),)))
    assert parse(wanted.format()) == wanted


@pytest.mark.parametrize("value", [[[{"a": 1}]], [{"a": [{"b": 1}]}], [[], [{}]]], ids=str)
def test_tables_in_lists_in_lists_are_written_so_that_they_can_be_read(value):
    wanted = manifest(state(meta={"x": value}))
    assert parse(wanted.format()) == wanted


@pytest.mark.parametrize(
    "meta",
    [
        {"x": None},
        {"x": b"y"},
        {"x": {1}},
        {"x": [object()]},
        {"x": {1: 2}},
        {1: 2},
        {"x": "\ud800"},
    ],
    ids=["none", "bytes", "set", "object", "inner key", "key", "surrogate"],
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "edited"])
def test_meta_that_toml_cannot_hold_is_refused_and_nothing_written(tmp_path, meta, there):
    if there:
        manifest(state()).write(tmp_path / "m.toml")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FormatError):
        manifest(state(meta=meta)).write(tmp_path / "m.toml")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "wanted",
    [
        manifest(state(A), state(StateKey.parse("p.R.a"))),
        manifest(state(files={"../x": FileEntry(D[1])})),
        manifest(state(mirrors=(Mirror(("https://me:hunter2@h/",)),))),
        manifest(state(mirrors=(Mirror(),))),
        manifest(state(size=-1)),
        manifest(objects=("https://me:hunter2@h/",)),
    ],
    ids=["keys in two cases", "file elsewhere", "password", "no address", "size", "objects"],
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "edited"])
def test_what_could_not_be_read_is_not_written(tmp_path, wanted, there):
    if there:
        manifest(state(B)).write(tmp_path / "m.toml")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FormatError) as caught:
        wanted.write(tmp_path / "m.toml")
    assert "hunter2" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# Writing to the disk


@pytest.mark.parametrize("there", [False, True], ids=["new", "edited"])
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_mode_of_a_manifest_follows_the_umask_and_stays(tmp_path, umask, there):
    mode = 0o666 & ~umask
    if there:
        manifest(state(B)).write(tmp_path / "m.toml")
        mode = 0o640  # whoever shares a file with a group goes on sharing it
        (tmp_path / "m.toml").chmod(mode)
    previous = os.umask(umask)
    try:
        manifest(state(A)).write(tmp_path / "m.toml")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "m.toml").stat().st_mode) == mode


@contextlib.contextmanager
def full_disk():
    """No file of this process grows beyond a few bytes: what a full disk looks like."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("there", [False, True], ids=["new", "edited"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, there):
    if there:
        manifest(state(B)).write(tmp_path / "m.toml")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError), full_disk():  # noqa: PT011 - which one is the kernel's choice
        manifest(state(A)).write(tmp_path / "m.toml")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_temporary_is_left(tmp_path):
    manifest(state(A)).write(tmp_path / "m.toml")
    manifest(state(B)).write(tmp_path / "m.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["m.toml"]


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_a_link_stays_a_link_and_what_it_points_to_is_written(tmp_path, relative):
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "m.toml", tmp_path / "link.toml"
    link.symlink_to("real/m.toml" if relative else real)
    for wanted in (manifest(state(A)), manifest(state(A), state(B))):  # new, then edited
        wanted.write(link)
        assert link.is_symlink()
        assert not real.is_symlink()
        assert Manifest.read(real) == Manifest.read(link) == wanted
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["m.toml"]


@pytest.mark.parametrize(
    "data",
    [b"version = 2\n", b"version = 1\n=", b"", b"version = 1\n# \xff\n"],
    ids=["higher version", "no toml", "empty", "no utf-8"],
)
def test_a_file_that_cannot_be_read_is_not_overwritten(tmp_path, data):
    (tmp_path / "m.toml").write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        manifest(state(A)).write(tmp_path / "m.toml")
    assert caught.value.path == str(tmp_path / "m.toml")
    assert (tmp_path / "m.toml").read_bytes() == data


def test_mirrors_of_the_whole_file_are_written_to_a_file_that_is_there(tmp_path):
    manifest(state(A)).write(tmp_path / "m.toml")
    manifest(state(A), objects=("https://h/",)).write(tmp_path / "m.toml")
    assert Manifest.read(tmp_path / "m.toml").objects == ("https://h/",)


# Editing


BY_HAND = f"""\
# Licence of this file: MIT

version = 1   # the only one

# above a, far

# above a, near
[states."p.r.a"] # beside a
# inside a
blake3 = "{D[1]}" # digest of a

# above b
[states."p.r.b"]
size   =   5
blake3 = '{D[2]}'   # literal
  mirrors = [
  "one", # the first
  # the second is a table
  {{ url = "two" , format = "torch"}},
]
future = {{ a=1,b = 2 }}
[states."p.r.b".meta]
license = "MIT" # a licence
  year = 0x7E8
# end of b

# above c
[states."p.r.c"]
size = 1
blake3 = \"\"\"{D[3]}\"\"\"
# end
"""


def blocks(text):
    """A text cut before each state: its header, and the comments right above that."""
    cut = r'((?:^[ \t]*#[^\n]*\n)*^[ \t]*\[states\."([^"\n]*)"\][^\n]*\n)'
    pieces = re.split(cut, text, flags=re.M)
    found = {"": pieces[0]}
    for above, key, rest in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        found[key] = (above + rest).rstrip()
    return found


def write_over(text, states):
    """The text after these states, and all else that it says, were written over it."""
    old = parse(text)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.toml"
        file.write_bytes(text.encode())
        try:
            Manifest(states, old.objects, old.unknown).write(file)
        except BaseException:
            assert file.read_bytes() == text.encode()
            raise
        finally:
            assert [path.name for path in file.parent.iterdir()] == ["m.toml"]
        return file.read_bytes().decode()


def written_or_refused(text, states):
    """As `write_over`; None if the text's style is refused, by an error that says what to do."""
    try:
        return write_over(text, states)
    except ManifestError as caught:
        error = caught
    assert "cannot be edited" in error.message  # the text is valid TOML; its style is at fault
    assert error.path
    assert error.remedy
    return None


def edited(text, *changed, removed=()):
    """The text after these entries were put in and these keys taken out, checked to say so."""
    wanted = dict(parse(text).states)
    for entry in changed:
        wanted[entry.key] = entry
    for key in removed:
        del wanted[key]
    new = write_over(text, wanted)
    assert exact(parse(new).states) == exact(wanted)
    return new


def entry_of(text, key, **fields):
    return dataclasses.replace(parse(text).states[key], **fields)


def newlines(text, name):
    return text.replace("\n", {"LF": "\n", "CRLF": "\r\n"}[name])


every_newline = pytest.mark.parametrize("newline", ["LF", "CRLF"])


def test_the_cut_into_blocks_is_sound():
    found = blocks(BY_HAND)
    assert list(found) == ["", "p.r.a", "p.r.b", "p.r.c"]
    assert found["p.r.b"].startswith("# above b\n")
    assert found["p.r.b"].endswith("# end of b")


@every_newline
def test_nothing_to_change_changes_nothing(newline):
    text = newlines(BY_HAND, newline)
    assert edited(text) == text


@every_newline
@pytest.mark.parametrize(
    ("key", "old", "new", "fields"),
    [
        (A, f'blake3 = "{D[1]}" # digest', f'blake3 = "{D[7]}" # digest', {"digest": D[7]}),
        (B, "size   =   5", "size   =   6", {"size": 6}),
        (B, 'license = "MIT" #', 'license = "BSD" #', {"meta": {"license": "BSD", "year": 2024}}),
        (B, "size   =   5\n", "", {"size": None}),
        (B, "  year = 0x7E8\n", "", {"meta": {"license": "MIT"}}),
    ],
    ids=["digest", "size", "meta", "no size", "less meta"],
)
def test_a_changed_value_is_all_that_changes(newline, key, old, new, fields):
    text = newlines(BY_HAND, newline)
    old, new = newlines(old, newline), newlines(new, newline)
    assert text.count(old) == 1
    assert edited(text, entry_of(text, key, **fields)) == text.replace(old, new)


CHANGES = {
    "digest": {"digest": D[7]},
    "unpinned": {"digest": None},
    "size": {"size": 77},
    "no size": {"size": None},
    "mirrors": {"mirrors": (Mirror(("x",)), Mirror(("y",), format="torch"))},
    "no mirrors": {"mirrors": ()},
    "files": {"files": {"x.json": FileEntry(D[8]), "y": FileEntry(D[9], (Mirror(("z",)),))}},
    "meta": {"meta": {"license": "BSD", "new": [1, 2]}},
    "nested meta": {"meta": {"scores": {"top1": 69.8, "by": [{"who": "x"}]}}},
    "no meta": {"meta": {}},
    "unknown": {"unknown": {"future": {"a": 1}, "other": 5}},
    "no unknown": {"unknown": {}},
    "everything": {
        "digest": D[7],
        "size": 1,
        "mirrors": (Mirror(("x",)),),
        "files": {"x": FileEntry(D[8])},
        "meta": {"m": 1},
        "unknown": {"u": 1},
    },
}

every_change = pytest.mark.parametrize("fields", CHANGES.values(), ids=CHANGES)
every_key = pytest.mark.parametrize("key", [A, B, C], ids=str)


@every_newline
@every_key
@every_change
def test_a_changed_state_leaves_the_others_as_they_were(newline, key, fields):
    text = newlines(BY_HAND, newline)
    new = edited(text, entry_of(text, key, **fields))
    before, after = blocks(text), blocks(new)
    assert list(after) == list(before)
    for name in before.keys() - {str(key)}:
        assert after[name] == before[name]


@every_newline
@every_key
def test_a_removed_state_leaves_the_others_and_their_comments(newline, key):
    text = newlines(BY_HAND, newline)
    before, after = blocks(text), blocks(edited(text, removed=[key]))
    assert list(after) == [name for name in before if name != str(key)]
    for name in after.keys() - {""}:
        assert before[name] in after[name]  # the comment above what was removed may stay
    assert after[""].startswith(before[""].rstrip())


def test_all_states_can_be_removed():
    new = edited(BY_HAND, removed=[A, B, C])
    assert "states" not in tomllib.loads(new) or tomllib.loads(new)["states"] == {}
    assert new.startswith("# Licence of this file: MIT\n\nversion = 1   # the only one\n")


@every_newline
@pytest.mark.parametrize(
    ("name", "follower"),
    [("a.a.a", "p.r.a"), ("p.r.aa", "p.r.b"), ("p.r.bb", "p.r.c"), ("p.r.d", None)],
)
def test_a_new_state_goes_where_it_sorts_and_moves_nothing(newline, name, follower):
    text = newlines(BY_HAND, newline)
    new = edited(text, state(StateKey.parse(name), meta={"x": 1}))
    before, after = blocks(text), blocks(new)
    assert {key: after[key] for key in before} == before
    order = [*before, None]
    order.insert(order.index(follower), name)
    assert [*after, None] == order
    position = new.index(before[follower] if follower else after[name])
    assert new[:position].endswith(newlines("\n\n", newline))


@every_newline
@pytest.mark.parametrize("name", ["a.a.a", "p.r.aa", "p.r.d"])
def test_a_new_state_has_the_line_ends_of_the_file(newline, name):
    new = edited(newlines(BY_HAND, newline), state(StateKey.parse(name), meta={"x": 1}))
    assert ("\r\n" in new) == (newline == "CRLF")
    assert "\n" not in new.replace(newlines("\n", newline), "")


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n", "\n# end", "\n# end\n", " # end"])
@pytest.mark.parametrize("start", ["version = 1", f'{HEAD}[states."p.r.a"]\nblake3 = "{D[1]}"'])
def test_a_new_state_is_set_off_by_an_empty_line_however_the_file_ends(start, end):
    new = edited(start + end, state(B))
    assert new.startswith(start + end)
    assert f'\n\n[states."p.r.b"]\nblake3 = "{D[1]}"\n' in new


@pytest.mark.parametrize("end", ["", "\n", "\n\n", " # end", "\n# end"])
@every_change
def test_a_state_can_be_changed_however_the_file_ends(end, fields):
    text = f'{HEAD}[states."p.r.a"]\nblake3 = "{D[1]}"{end}'
    new = edited(text, entry_of(text, A, **fields))
    assert new.startswith(f'{HEAD}[states."p.r.a"]\n')
    if "digest" not in fields:  # else the comment goes with the line that it is on
        assert end.strip() in new


def test_pinning_writes_digest_and_size_into_the_table_of_the_state():
    text = f"""{HEAD}[states."p.r.a"]
mirrors = ["x"] # where

[states."p.r.a".meta]
size = 1

# above b
[states."p.r.b"]
"""
    new = edited(text, entry_of(text, A, digest=D[1], size=5))
    assert (
        "".join(
            line for line in new.splitlines(True) if not line.startswith(("blake3", "size = 5"))
        )
        == text
    )
    assert new.index("blake3") < new.index('[states."p.r.a".meta]')


def test_one_more_mirror_leaves_the_others_and_their_comments():
    mirrors = parse(BY_HAND).states[B].mirrors
    new = edited(BY_HAND, entry_of(BY_HAND, B, mirrors=(*mirrors, Mirror(("three",)))))
    for line in ('"one", # the first\n', "# the second is a table\n", '"two" , format = "torch"}'):
        assert line in new


def test_a_mirror_that_was_replaced_is_written_as_it_is_now():
    first, second = parse(BY_HAND).states[B].mirrors
    moved = dataclasses.replace(first, urls=("moved",))
    wanted = entry_of(BY_HAND, B, mirrors=(moved, second))
    new = write_over(BY_HAND, {**parse(BY_HAND).states, B: wanted})
    assert parse(new).states[B].mirrors == (moved, second)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (True, 1),
        (1, True),
        (1, 1.0),
        (0, False),
        (0.0, -0.0),
        ([1], [True]),
        ({"a": 1}, {"a": 1.0}),
    ],
    ids=str,
)
def test_a_value_that_differs_only_in_type_or_sign_is_a_change(old, new):
    text = manifest(state(meta={"x": old, "y": 1})).format()
    edited(text, state(meta={"x": new, "y": 1}))
    edited(text, state(meta={"x": new, "y": 2}))


def test_a_metric_that_is_nan_does_not_stand_in_the_way():
    text = HEAD + f'[states."p.r.a"]\nblake3 = "{D[1]}"\nmeta.loss = nan # diverged\n'
    assert edited(text) == text
    assert "nan # diverged" in edited(text, state(B))


def test_a_file_that_did_not_change_keeps_its_text():
    kept = f"""\
x = {{ blake3 = "{D[2]}" }} # a table without mirrors
[states."p.r.a".files."y.json"]
blake3 = "{D[3]}" # a table of its own
mirrors = ["m"] # where
"""
    text = f'{HEAD}[states."p.r.a".files]\nz = "{D[4]}"\n{kept}\n[states."p.r.b"]\n'
    files = parse(text).states[A].files
    new = edited(text, entry_of(text, A, files={**files, "z": FileEntry(D[5])}))
    assert new == text.replace(D[4], D[5])


@pytest.mark.parametrize(
    "line",
    ["mirrors = []", "meta = {}", "files = {}", f'files.x = {{ blake3 = "{D[1]}" }}', "later = {}"],
)
def test_a_long_way_to_say_a_thing_is_kept_and_does_not_stand_in_the_way(line):
    text = f'{HEAD}[states."p.r.b"]\n{line} # so\nsize = 1\n'
    assert edited(text, state(A)).endswith(text[len(HEAD) :])
    assert edited(text, entry_of(text, B, size=2)) == text.replace("size = 1", "size = 2")


def test_an_empty_list_of_objects_does_not_stand_in_the_way():
    text = "version = 1\nobjects = [] # none yet\n"
    assert edited(text, state(A)).startswith(text)


def test_line_ends_of_both_kinds_stay_where_they_are():
    text = f'version = 1 # one\r\n\n[states."p.r.a"]\nblake3 = "{D[1]}"\n'
    assert edited(text, state(B)).startswith(text)
    assert edited(text, entry_of(text, A, digest=D[2])) == text.replace(D[1], D[2])


def test_a_changed_digest_of_a_file_leaves_its_mirrors_and_comments():
    text = f"""{HEAD}[states."p.r.a".files."y.json"]
blake3 = "{D[3]}" # a table of its own
mirrors = ["m"] # where

# above b
[states."p.r.b"]
"""
    mirrors = (Mirror(("m",)),)
    new = edited(text, entry_of(text, A, files={"y.json": FileEntry(D[5], mirrors)}))
    assert new == text.replace(D[3], D[5])


def test_unknown_keys_of_a_file_are_kept_when_another_changes():
    text = f"""{HEAD}[states."p.r.a".files]
x = {{ blake3 = "{D[2]}", later = 1 }}
z = "{D[4]}"
"""
    files = parse(text).states[A].files
    new = edited(text, entry_of(text, A, files={**files, "z": FileEntry(D[5])}))
    assert new == text.replace(D[4], D[5])


def test_an_unusable_mirror_is_kept_on_write(tmp_path):
    text = f'{HEAD}[states."p.r.a"]\nmirrors = ["ftp://h/a", {{ url = "c", new = 1 }}] # later\n'
    (tmp_path / "m.toml").write_text(text)
    wanted = Manifest.read(tmp_path / "m.toml")
    manifest(*wanted.states.values(), state(B)).write(tmp_path / "m.toml")
    assert (tmp_path / "m.toml").read_text().startswith(text)


@pytest.mark.parametrize(
    "note",
    [
        'note = """\n[states."zzz.z.z"]\n"""',
        "note = '''\n[states.\"\\q\"]\n'''",
        'note = """\nx\n# no comment"""',
        "note = 1 # a\u2028# b",
        'note = "# no comment"',
        "note = [\n[1]\n]",
        "note = [\n  1, # one\n# two\n]",
    ],
    ids=[
        "header in a text",
        "bad escape in a text",
        "hash in a text",
        "U+2028",
        "hash",
        "list in a list",
        "list",
    ],
)
def test_what_only_looks_like_a_header_or_comment_misleads_no_one(note):
    text = f'{HEAD}{note}\n[states."p.r.b"]\nblake3 = "{D[1]}"\n'
    for entry in (state(A), state(C)):
        new = written_or_refused(text, {**parse(text).states, entry.key: entry})
        if new is None:
            assert '"""' in note or "'''" in note  # only a text of several lines is worth that
            continue
        assert exact(parse(new).states[entry.key]) == exact(entry)
        assert tomllib.loads(new)["note"] == tomllib.loads(text)["note"]
        assert text.replace('[states."p.r.b"]\n', "") in new.replace('[states."p.r.b"]\n', "") or (
            note in new
        )


STYLES = {
    "a state is an inline table": f"""
[states]
# above a
"p.r.a" = {{ blake3 = "{D[1]}", meta = {{ x = 1 }} }} # beside a
# above c
"p.r.c" = {{ size = 3 }}
""",
    "states is an inline table": f"""
states = {{ "p.r.a" = {{ blake3 = "{D[1]}", meta = {{ x = 1 }} }}, "p.r.c" = {{}} }} # all
""",
    "dotted below states": f"""
[states]
# above a
"p.r.a".blake3 = "{D[1]}" # beside a
"p.r.a".meta.x = 1
# above c
"p.r.c".size = 3
""",
    "dotted from the top": f"""
states."p.r.a".blake3 = "{D[1]}" # beside a
states."p.r.a".meta.x = 1
states."p.r.c".size = 3
""",
    "dotted within": f"""
[states."p.r.a"]
blake3 = "{D[1]}" # beside a
meta.x = 1 # one
meta.y.z = 2 # two
files."f.json".blake3 = "{D[2]}"
files."f.json".mirrors = ["m"]

[states."p.r.c"]
size = 3
""",
    "inline within": f"""
[states."p.r.a"]
blake3 = "{D[1]}"
meta = {{ x = 1, y = {{ z = 2 }} }} # one
files = {{ "f.json" = "{D[2]}", g = {{ blake3 = "{D[3]}" }} }} # two
[states."p.r.c"]
""",
    "spread over the file": f"""
[states."p.r.a"]
blake3 = "{D[1]}" # beside a

[tool]
x = 1

# above c
[states."p.r.c"]
size = 3

[other]
[states."p.r.a".meta]
x = 1 # one
""",
    "tables in reverse": f"""
[states."p.r.c".meta]
y = 1
[states."p.r.c"]
size = 3
[states."p.r.a".meta]
x = 1
[states."p.r.a"]
blake3 = "{D[1]}"
""",
    "arrays of tables": f"""
[states."p.r.a"]
blake3 = "{D[1]}"
[[states."p.r.a".mirrors]]
url = "one" # first
[[states."p.r.a".mirrors]]
url = "two" # second
format = "torch"
[[states."p.r.a".meta.runs]]
n = 1

# above c
[states."p.r.c"]
""",
    "indented and spaced": f"""
  [ states . "p.r.a" ]
    blake3 = "{D[1]}"
    [ states . 'p.r.a' . meta ]
      x = 1

  # above c
  [ "states" . 'p.r.c' ]
    size = 3
""",
    "escaped": f"""
[states."p.r.\\u0061"]
"blake3" = "{D[1]}" # beside a
'meta' = {{ "\\u0078" = 1 }}

[states.'p.r.c']
size = 3
""",
    "unpinned and bare": """
[states."p.r.a"]
[states."p.r.c"]
""",
    "followed by another table": f"""
[states."p.r.a"]
blake3 = "{D[1]}"
[states."p.r.c"]
# above z
[z]
y = 1
""",
}
EDITS = {
    "nothing": lambda old: {},
    "add before": lambda old: {StateKey.parse("a.a.a"): state(StateKey.parse("a.a.a"))},
    "add between": lambda old: {B: state(B, meta={"x": 1}, files={"f": FileEntry(D[1])})},
    "add after": lambda old: {StateKey.parse("z.z.z"): state(StateKey.parse("z.z.z"))},
    "remove first": lambda old: {A: None},
    "remove last": lambda old: {C: None},
    "remove all": lambda old: {A: None, C: None},
    "replace all": lambda old: {A: None, B: state(B), C: None},
    **{
        f"change {name} of {key}": lambda old, key=key, fields=fields: {
            key: dataclasses.replace(old[key], **fields)
        }
        for name, fields in CHANGES.items()
        for key in (A, C)
    },
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("edit", EDITS)
def test_in_any_style_an_edit_is_right_or_refused_with_nothing_changed(style, edit):
    text = "version = 1 # head\n" + STYLES[style]
    old = parse(text)
    wanted = {**old.states, **EDITS[edit](old.states)}
    wanted = {key: entry for key, entry in wanted.items() if entry is not None}
    new = written_or_refused(text, wanted)
    if new is None:
        return
    assert exact(parse(new).states) == exact(wanted)
    assert exact(parse(new).unknown) == exact(old.unknown)
    assert new.startswith("version = 1 # head")
    if edit == "nothing":
        assert new == text


@pytest.mark.parametrize("style", STYLES)
def test_in_any_style_comments_of_what_stays_are_kept(style):
    text = HEAD + STYLES[style]
    comments = re.findall(r"# (?:above c|above z|one|two|first|second|all)\n", text)
    try:
        new = edited(text, entry_of(text, A, digest=D[7]), state(B))
    except ManifestError:
        return
    assert [comment for comment in comments if comment not in new] == []
    assert new.count("#") == text.count("#")


# Editing anything


words = st.sampled_from(["a", "note on p.r.b", "= [x]", '"', "", "[states", "é"])
comments = st.lists(words.map("# {}".format), max_size=2)
quoted = st.sampled_from(['"{}"', "'{}'"])


@st.composite
def written_states(draw, key, above):
    """A state as a person may have written it: each value in its own way."""
    name = draw(quoted).format(key)
    lines = [*draw(above), f"[states.{name}]{draw(st.sampled_from(['', ' ', '  # beside']))}"]
    values = [
        draw(st.sampled_from(["", f'blake3 = "{D[1]}"', f"blake3='{D[2]}' # d"])),
        draw(st.sampled_from(["", "size = 5", "size=1_000 # s", "  size = 0x10"])),
        draw(st.sampled_from(["", 'mirrors = ["x"]', 'mirrors = [\n  "x", # m\n  {url="y"},\n]'])),
        draw(st.sampled_from(["", "later = 1", "later = { a = [1, 2], b = '' } # l"])),
        draw(st.sampled_from(["", "meta = { a = 1 }", "meta.a = 1\nmeta.'b c' = true # m", "T"])),
        draw(st.sampled_from(["", f'files = {{ f = "{D[4]}" }}', f'files."f" = "{D[5]}"', "T"])),
    ]
    tables = []
    if values[4] == "T":
        tables.append(f"[states.{name}.meta]\na = 1 # one\nb = 2026-01-01\n  c = [\n1,\n]")
    if values[5] == "T":
        tables.append(f'[states.{name}.files]\nf = "{D[6]}" # f\n"g h" = {{ blake3 = "{D[7]}" }}')
    for value in draw(st.permutations([value for value in values if value and value != "T"])):
        lines += [*draw(comments), value]
    lines += draw(st.permutations(tables))
    return "\n".join(lines) + "\n" + draw(st.sampled_from(["", "\n", "\n\n"]))


@st.composite
def written_manifests(draw, above=comments):
    head = draw(
        st.sampled_from(
            ["version = 1\n", "# top\n\nversion = 1 # v\nobjects = ['https://h/'] # o\n\n"]
        )
    )
    found = draw(st.lists(st.sampled_from(["p.r.b", "p.r.d", "p.q.x", "p.r.e.a"]), unique=True))
    text = head + "".join(draw(written_states(key, above)) for key in found)
    return draw(st.sampled_from([text, text.rstrip("\n"), text.replace("\n", "\r\n")]))


@st.composite
def edits(draw, written):
    """A manifest's text, and what it is to say: some states out, some changed, some new."""
    text = draw(written)
    wanted = {}
    for key, entry in parse(text).states.items():
        choice = draw(st.sampled_from(["keep", "keep", "remove", "change", "replace"]))
        if choice == "replace":
            entry = draw(entries(st.just(key)))
        elif choice == "change":
            entry = dataclasses.replace(entry, **draw(st.sampled_from(list(CHANGES.values()))))
        if choice != "remove":
            wanted[key] = entry
    for key in draw(st.lists(st.sampled_from(["a.a.a", "p.r.c", "z.z.z"]), unique=True)):
        wanted[StateKey.parse(key)] = draw(entries(st.just(StateKey.parse(key))))
    return text, wanted


@settings(max_examples=80, deadline=None)
@given(edits(written_manifests()))
def test_an_edit_of_any_manifest_gives_exactly_the_wanted_states(edit):
    text, wanted = edit
    new = written_or_refused(text, wanted)
    if new is None:
        assert re.search(r"meta\.|files\.|\{", text)  # tables of their own can always be edited
        return
    assert exact(parse(new).states) == exact(wanted)
    assert parse(new).objects == parse(text).objects
    assert write_over(new, wanted) == new


def unchanged(text, wanted):
    old = parse(text).states
    return [key for key in old if key in wanted and exact(old[key]) == exact(wanted[key])]


def cut(text):
    """As `blocks`, with either line end and quote."""
    text = text.replace("\r\n", "\n").rstrip("\n") + "\n"
    return blocks(re.sub(r"\[states\.'([^']*)'", r'[states."\1"', text))


@settings(max_examples=40, deadline=None)
@given(edits(written_manifests(above=st.just([]))))
def test_states_that_did_not_change_keep_their_text(edit):
    text, wanted = edit
    new = written_or_refused(text, wanted)
    assume(new is not None)
    before, after = cut(text), cut(new)
    for key in unchanged(text, wanted):
        assert after[str(key)] == before[str(key)]


@settings(max_examples=40, deadline=None)
@given(edits(written_manifests()))
def test_states_that_did_not_change_keep_the_comments_above_them(edit):
    text, wanted = edit
    new = written_or_refused(text, wanted)
    assume(new is not None)
    before, after = cut(text), cut(new)
    for key in unchanged(text, wanted):
        assert before[str(key)] in after[str(key)]


@settings(max_examples=30, deadline=None)
@given(manifests(), manifests())
def test_a_file_of_ours_can_become_any_other(one, other):
    with tempfile.TemporaryDirectory() as folder:
        one.write(Path(folder) / "m.toml")
        other.write(Path(folder) / "m.toml")
        new = Manifest.read(Path(folder) / "m.toml")
    assert exact(new.states) == exact(other.states)
    assert new.objects == other.objects
    assert exact(new.unknown) == exact(other.unknown)


def test_the_files_of_a_store_are_no_manifests(tmp_path):
    store = LocalStateStore(tmp_path / "deep" / "store")
    store.save_state_dict({"a": torch.ones(2)}, StateKey.parse("pytorch.net.one"))
    (tmp_path / ".hidden").mkdir()
    for path in (tmp_path / ".hidden" / "x.toml", tmp_path / "deep" / "m.toml"):
        path.write_text("version = 1\n")
    assert manifest_files(tmp_path) == [tmp_path / "deep" / "m.toml"]
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    assert manifest_files(tmp_path) == [tmp_path / "deep" / "m.toml"]
    with pytest.raises(ManifestError, match="a store, not a folder of manifests"):
        manifest_files(store.folder)


def _change(path, number):
    entry = StateEntry(StateKey.parse(f"pytorch.net.n{number}"), Digest("0" * 64))
    change_manifest(path, lambda old: replace(old, states={**old.states, entry.key: entry}))


def test_processes_that_change_a_manifest_at_once_lose_nothing(tmp_path):
    path = tmp_path / "new" / "m.toml"
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        list(pool.map(_change, [path] * 24, range(24)))
    assert len(Manifest.read(path).states) == 24
    assert [file.name for file in path.parent.iterdir()] == ["m.toml"]


@pytest.mark.parametrize("size", ["-1", "0x" + "f" * 90, str(2**63), "1.5", "true"])
def test_a_size_is_a_number_of_bytes_below_2_to_the_63(size):
    text = f'version = 1\n[states."pytorch.net.a"]\nsize = {size}\n'
    with pytest.raises(ManifestError, match="size is a number of bytes"):
        Manifest.parse(text.encode(), "a.toml")


def test_an_error_finds_its_line_among_long_lines_in_no_time():
    blank = " " * 100_000
    text = f'version = 1\n{blank}\n[states."pytorch.net.a"]\n{blank}\nsize = -1\n'
    with pytest.raises(ManifestError) as caught:
        Manifest.parse(text.encode(), "a.toml")
    assert caught.value.line == 5


def test_a_name_of_a_megabyte_is_refused_without_a_search_that_takes_more():
    text = 'version = 1\n[states."p.net.' + "a" * (1 << 20) + '"]\n'
    tracemalloc.start()
    try:
        with pytest.raises(ManifestError, match="not a valid part") as caught:
            Manifest.parse(text.encode(), "hostile.toml")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 2000
