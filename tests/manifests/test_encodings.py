"""Manifests as other systems write them: encodings, byte order marks, line ends."""

from __future__ import annotations

import codecs
import re
from dataclasses import replace

import pytest

from mlstate import Manifest, StateKey
from mlstate.errors import FormatError, ManifestError
from mlstate.manifests import StateEntry
from mlstate.manifests.update import change_manifest
from mlstate.texts import decoded

KEY = StateKey.parse("pytorch.linear.m")
BY_HAND = f"""# Ours
version = 1

# about the state
[states."{KEY}"]
blake3 = "{"a" * 64}"  # pinned
mirrors = [
  "https://example.org/a",  # first
]
"""
GENERATED = Manifest({KEY: StateEntry(KEY, None, meta={"license": "MIT"})}).format()
texts = pytest.mark.parametrize("text", [BY_HAND, GENERATED], ids=["by hand", "generated"])


def ends(data: bytes) -> set[bytes]:
    return set(re.findall(rb"\r\n|\n|\r", data))


def changes(manifest: Manifest):
    """A change, an addition before and behind, and a removal; one after the other."""
    entry = manifest.states[KEY]
    first, last = (StateKey.parse(f"pytorch.linear.{name}") for name in "az")
    for states in (
        {KEY: replace(entry, size=5, meta={"note": "x\ny"})},
        {key: replace(entry, key=key) for key in (first, KEY, last)},
        {last: replace(entry, key=last)},
    ):
        yield replace(manifest, states=states)


@texts
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "mark"])
def test_an_edit_keeps_line_ends_and_byte_order_mark(tmp_path, text, end, mark):
    path = tmp_path / "m.toml"
    path.write_bytes(mark + text.replace("\n", end).encode())
    for manifest in changes(Manifest.read(path)):
        manifest.write(path)
        data = path.read_bytes()
        assert ends(data) == {end.encode()}
        assert data.startswith(mark + b"version" if text is GENERATED else mark + b"# Ours")
        assert data.count(codecs.BOM_UTF8) == bool(mark)
        assert Manifest.read(path).states == manifest.states


@texts
def test_a_change_of_nothing_writes_nothing(tmp_path, text):
    path = tmp_path / "m.toml"
    path.write_bytes(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode())
    before = path.stat()
    change_manifest(path, lambda manifest: manifest)
    assert path.stat().st_ino == before.st_ino


def test_a_file_without_a_last_line_end_is_edited(tmp_path):
    path = tmp_path / "m.toml"
    path.write_bytes(BY_HAND.rstrip("\n").encode())
    for manifest in changes(Manifest.read(path)):
        manifest.write(path)
        assert Manifest.read(path).states == manifest.states


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (BY_HAND.encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
        (BY_HAND.encode("utf-16-le"), ["UTF-16", "save it as UTF-8"]),
        (BY_HAND.encode("utf-16-be"), ["UTF-16", "save it as UTF-8"]),
        (BY_HAND.encode("utf-32"), ["UTF-32", "save it as UTF-8"]),
        (BY_HAND.replace("Ours", "Prüfung").encode("latin-1"), ["UTF-8", "0xfc", "line 1"]),
        (BY_HAND.replace("pinned", "gro\xdf").encode("cp1252"), ["UTF-8", "0xdf", "line 6"]),
        (BY_HAND.encode() + b"\0" * 4096, ["null character", "line 10"]),
        (BY_HAND.replace("\n", "\r").encode(), ["carriage return", "line ends"]),
    ],
    ids=["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "nul", "cr"],
)
def test_another_encoding_is_named_and_nothing_is_changed(tmp_path, data, says):
    path = tmp_path / "m.toml"
    path.write_bytes(data)
    works = (
        lambda: Manifest.read(path),
        lambda: Manifest({}).write(path),
        lambda: change_manifest(path, lambda manifest: manifest),
    )
    for work in works:
        with pytest.raises(ManifestError) as caught:
            work()
        assert all(word in str(caught.value) for word in [*says, "m.toml"]), caught.value
        assert path.read_bytes() == data


@pytest.mark.parametrize("text", ["", "a", "ä\n", "a\r\nb\n"])
def test_plain_texts_are_what_they_are(text):
    for mark in (b"", codecs.BOM_UTF8):
        assert decoded(mark + text.encode(), "a text") == text


@pytest.mark.parametrize("data", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\0", b"\0\0", b"a\0b\0"])
def test_what_is_no_text_is_refused(data):
    with pytest.raises(FormatError, match="a text"):
        decoded(data, "a text")
