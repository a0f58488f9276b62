"""The file of a user's pins: what is written can be read; what is damaged or foreign is said."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate import StateKey, list_pins, remove_pins
from mlstate.digests import Digest
from mlstate.errors import FormatError, StateNotFoundError
from mlstate.locations import Mirror, parse_mirror
from mlstate.manifests import StateEntry
from mlstate.manifests.entries import Pin
from mlstate.manifests.pins import Pins
from mlstate.manifests.promised import promised

KEY = StateKey.parse("pytorch.net.a")
SUM = "0123456789abcdef" * 4
PIN = Pin(
    KEY,
    Digest.of(b"a"),
    400,
    Mirror(("https://example.org/net-01234567.pth",), format="torch", sha256=SUM),
    8,
    datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
    "/home/ada/mine.toml",
)


@pytest.fixture
def pins(tmp_path):
    (tmp_path / "mlstate").mkdir()
    return Pins(tmp_path / "mlstate" / "pins.toml")


def test_what_is_kept_is_read_again(pins):
    other = replace(PIN, key=StateKey.parse("pytorch.net.b"), manifest=None, digits=64)
    assert pins.add(PIN) == PIN
    assert pins.add(other) == other
    assert pins.read() == Pins(pins.path).read() == [PIN, other]
    lines = pins.path.read_text().split("\n")
    for pin in pins.read():
        path, line = pin.place
        assert path == str(pins.path)
        assert lines[line - 1] == "[[pins]]"
        assert str(pin.key) in lines[line]


def test_the_same_once_more_changes_nothing(pins):
    pins.add(PIN)
    before = pins.path.read_bytes(), pins.path.stat().st_mtime_ns
    later = replace(PIN, date=datetime.now(UTC))
    assert pins.add(later) == PIN
    assert (pins.path.read_bytes(), pins.path.stat().st_mtime_ns) == before


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
PARTS = st.builds(
    Mirror,
    urls=st.tuples(st.from_regex(r"https://example\.org/[a-z0-9.-]{1,10}", fullmatch=True)),
    format=st.sampled_from(["torch", "safetensors", "torch-gzip"]),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    strip_prefix=TEXTS,
    add_prefix=TEXTS,
    rename=st.lists(st.tuples(TEXTS.filter(bool), TEXTS), max_size=2).map(tuple),
)
MIRRORS = PARTS | st.builds(Mirror, parts=st.lists(PARTS, min_size=1, max_size=3).map(tuple))
PINS = st.builds(
    Pin,
    st.from_regex(r"pytorch\.[a-z0-9]{1,5}\.[a-z0-9]{1,5}", fullmatch=True).map(StateKey.parse),
    st.binary(max_size=4).map(Digest.of),
    st.integers(0, 2**62),
    MIRRORS,
    st.integers(8, 64),
    st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1)).map(
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ),
    st.none() | TEXTS.filter(bool),
)


@settings(max_examples=25)
@given(st.lists(PINS, max_size=3, unique_by=lambda pin: pin.key))
def test_every_pin_can_be_written_and_read(tmp_path_factory, some):
    pins = Pins(tmp_path_factory.mktemp("config") / "pins.toml")
    for pin in some:
        pins.add(pin)
    assert pins.read() == some
    assert [pin.key for pin in pins.remove([pin.key for pin in some[:2]])] == [
        pin.key for pin in some[:2]
    ]
    assert pins.read() == some[2:]


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('blake3 = "', 'blake3 = "x', 6, "digest"),
        ("size = 400", 'size = "400"', 6, "size"),
        ("digits = 8", "digits = 65", 6, "digits"),
        ("date = 2026-02-03T04:05:06Z", 'date = "yesterday"', 6, "date"),
        ('key = "pytorch.net.a"', 'key = "a"', 6, "a"),
        ('key = "pytorch.net.a"', "", 6, "key"),
        (SUM, SUM[:8], 6, "64"),
        ('format = "torch"', 'format = "tape"', 6, "tape"),
        ("size = 400", "size = ", 9, ""),
        ("[[pins]]", "[pins]", None, "no list"),
    ],
)
def test_a_damaged_file_says_where(pins, old, new, line, said):
    pins.add(PIN)
    text = pins.path.read_text()
    assert text.count(old) == 1
    pins.path.write_text(text.replace(old, new))
    with pytest.raises(FormatError, match="damaged") as caught:
        pins.read()
    assert (caught.value.path, caught.value.line) == (str(pins.path), line)
    assert said in str(caught.value.found)
    before = pins.path.read_bytes()
    for change in (lambda: pins.add(replace(PIN, manifest="x")), lambda: pins.remove([KEY])):
        with pytest.raises(FormatError):
            change()
    assert pins.path.read_bytes() == before


def test_the_remedy_of_a_damaged_file_helps(pins):
    pins.path.write_text("damaged = [")
    with pytest.raises(FormatError, match="remove it"):
        pins.read()
    pins.path.unlink()
    assert pins.read() == []


def test_a_later_version_is_not_read(pins):
    pins.path.write_text("version = 2\n")
    with pytest.raises(FormatError, match="another version"):
        pins.read()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(pins, mode):
    pins.add(PIN)
    pins.path.chmod(mode)
    with pytest.raises(FormatError, match="others may write") as caught:
        pins.read()
    command, _, path = caught.value.remedy.rpartition("chmod go-w ")
    assert command
    os.chmod(path, pins.path.stat().st_mode & ~0o022)  # as the remedy has it
    assert pins.read() == [PIN]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(pins):
    pins.add(PIN)
    os.chown(pins.path, 12345, 12345)
    with pytest.raises(FormatError, match="another user") as caught:
        pins.read()
    assert f"chown 0 {pins.path}" in caught.value.remedy


def test_something_else_in_its_place_is_said(pins):
    os.mkfifo(pins.path)
    with pytest.raises(FormatError, match="a pipe"):
        pins.read()


def test_a_link_is_written_through(pins, tmp_path):
    target = tmp_path / "dotfiles.toml"
    pins.path.symlink_to(target)
    pins.add(PIN)
    assert pins.path.is_symlink()
    assert Pins(target).read() == [replace(PIN, place=(str(target), 6))]


def test_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert list_pins() == []
    Pins.of_user().why_not()
    Pins.of_user().add(PIN)
    [pin] = list_pins()
    assert (pin.path, pin.line) == (str(tmp_path / "mlstate" / "pins.toml"), 6)
    other = StateKey.parse("pytorch.net.b")
    with pytest.raises(StateNotFoundError, match="no pin") as caught:
        remove_pins([KEY, other])
    assert caught.value.key == other
    assert list_pins() == [pin]
    assert remove_pins([KEY]) == [pin]
    assert list_pins() == []


def test_the_rule_of_names_is_that_of_torch_hub():
    """Where torch.hub finds eight digits or more in the name of a file, so do we, and no others."""
    from torch.hub import HASH_REGEX

    for name in (
        "resnet18-f37072fd.pth",
        "resnext101_32x8d-8ba56ff5.pth",
        f"a-{SUM}.pth",
        "a-b-c-0123abcd.tar.gz",
        "a-01234567",
        "a-1234567.pth",
        "a-0123456G.pth",
        "a-ABCDEF01.pth",
        "01234567.pth",
        "a-1.2-01234567.pth",
        "a_01234567.pth",
    ):
        theirs = HASH_REGEX.search(name)
        digits = theirs[1] if theirs and len(theirs[1]) >= 8 else None
        for base in ("https://example.org/x-00000000.y/", "", "w-00000000.x/"):
            mirror = parse_mirror(base + name)
            found = promised(StateEntry(KEY, None, mirrors=(mirror,)))
            assert (found and found.mirrors[0].sha256) == digits, name


def test_digits_are_those_of_the_path_and_not_of_a_query():
    for url, digits in (
        ("https://example.org/net-01234567.pth?token=x-89abcdef.y", "01234567"),
        ("https://example.org/net.pth?token=x-89abcdef.y", None),
        ("https://example.org/net%2D01234567.pth", "01234567"),
    ):
        found = promised(StateEntry(KEY, None, mirrors=(parse_mirror(url),)))
        assert (found and found.mirrors[0].sha256) == digits, url


def test_the_manifest_counts_before_the_name():
    mirror = parse_mirror({"url": "https://example.org/a-01234567.pth", "sha256": SUM})
    found = promised(StateEntry(KEY, None, mirrors=(mirror,)))
    assert found.mirrors[0].sha256 == SUM


def test_it_survives_the_way_to_another_process(pins):
    import pickle

    pins.add(PIN)
    assert pickle.loads(pickle.dumps(pins)).read() == [PIN]
    entry = StateEntry(KEY, PIN.digest, pin=PIN)
    assert pickle.loads(pickle.dumps(entry)).pin == PIN


def test_a_folder_that_may_not_be_seen_has_no_pins(tmp_path):
    pins = Pins(Path("/proc/1/root/none/pins.toml") if os.geteuid() else tmp_path / "none" / "x")
    assert pins.read() == []
