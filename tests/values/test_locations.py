"""Mirrors, addresses and file names: what is read, passed over and refused."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import FormatError
from mlstate.locations import Mirror, UnusableMirror, check_file_names, check_url, parse_mirror

USABLE = [
    "https://github.com/org/repo/releases/download/v1/weights.safetensors",
    "http://127.0.0.1:8000/a?b=c#d",
    "HTTPS://EXAMPLE.ORG/a",
    "file:///srv/weights/a.safetensors",
    "s3://bucket/prefix/a.safetensors",
    "gs://bucket/a",
    "az://container/a",
    "hf://org/repo@main/model.safetensors",
    "hf://org/repo@1110a243fdf4706b3f48f1d95db1a4f5529b4d41/model.safetensors",
    "https://example.org/a@b/c",
    "a.safetensors",
    "../weights/a b.safetensors",
    "/srv/weights/a.safetensors",
    "user@example/a",
]
SECRET = "hunter2"
WITH_SECRETS = {
    "name and password": f"https://user:{SECRET}@example.org/a",
    "password alone": f"https://:{SECRET}@example.org/a",
    "token": f"https://{SECRET}@example.org/a",
    "port": f"http://user:{SECRET}@example.org:8080/a?b=c",
    "no path": f"https://user:{SECRET}@example.org",
    "upper case": f"HTTPS://user:{SECRET}@example.org/a",
    "an @ in it": f"https://user:{SECRET}@x@example.org/a",
    "s3": f"s3://user:{SECRET}@bucket/a",
    "hf": f"hf://user:{SECRET}@org/repo@main/a",
    "control character": f"https://user:{SECRET}@example.org/a\n",
    "control character within": f"https://user:{SECRET}@exam\tple.org/a",
    "host that is no host": f"https://user:{SECRET}@exam\u2100ple.org/a",
    "bracket": f"https://user:{SECRET}@[::1/a",
}
TORCH = {
    "url": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "format": "torch",
    "sha256": "f37072fd",
}

with_secrets = pytest.mark.parametrize("address", WITH_SECRETS.values(), ids=WITH_SECRETS)


@pytest.mark.parametrize("address", USABLE)
def test_a_usable_address_is_a_mirror(address):
    assert check_url(address) is None
    assert parse_mirror(address) == parse_mirror({"url": address}) == Mirror(urls=(address,))


@pytest.mark.parametrize(
    "address", ["ftp://example.org/a", "sftp://h/a", "x-new+1.0://a", "S5://a"]
)
def test_an_unknown_scheme_is_passed_over(address):
    assert address.split(":", maxsplit=1)[0] in check_url(address)
    for value in (
        address,
        {"url": address},
        {"urls": ["a", address]},
        {"parts": [{"url": address}]},
    ):
        mirror = parse_mirror(value)
        assert isinstance(mirror, UnusableMirror)
        assert address.split(":", maxsplit=1)[0] in mirror.reason
        assert mirror.toml == value


def test_an_unknown_scheme_of_the_state_object_is_passed_over():
    assert isinstance(parse_mirror({"url": "a", "state": "ftp://h/a"}), UnusableMirror)


@pytest.mark.parametrize("address", ["", "a\nb", "https://h/\0", "https://h/\x7f", "\t"])
def test_an_empty_address_or_one_with_control_characters_is_refused(address):
    with pytest.raises(FormatError, match="control character"):
        check_url(address)
    for value in (address, {"urls": ["a", address]}, {"url": "a", "state": address}):
        with pytest.raises(FormatError):
            parse_mirror(value)


@with_secrets
def test_a_credential_in_an_address_is_refused_and_not_repeated(address):
    with pytest.raises(FormatError) as caught:
        check_url(address)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__dict__)


@with_secrets
@pytest.mark.parametrize(
    "mirror",
    [
        lambda address: address,
        lambda address: {"url": address},
        lambda address: {"urls": ["a", address]},
        lambda address: {"url": "a", "state": address},
        lambda address: {"parts": [{"url": "a"}, {"url": address}]},
    ],
    ids=["text", "url", "urls", "state", "parts"],
)
def test_a_credential_in_a_mirror_is_refused_and_not_repeated(address, mirror):
    with pytest.raises(FormatError) as caught:
        parse_mirror(mirror(address))
    assert SECRET not in str(caught.value)


def test_the_refusal_of_a_credential_says_where_it_belongs():
    with pytest.raises(FormatError) as caught:
        check_url(WITH_SECRETS["name and password"])
    assert "netrc" in caught.value.remedy


@pytest.mark.parametrize(
    "address", ["https://[::1", "https://[x]/a", "https://exam\u2100ple.org/a"]
)
def test_an_address_that_cannot_be_taken_apart_is_a_format_error_or_unusable(address):
    try:
        reason = check_url(address)
    except FormatError:
        return
    assert reason


@given(st.text(max_size=30) | st.text(max_size=20).map("https://".__add__))
def test_any_text_is_usable_unusable_or_a_format_error(text):
    try:
        mirror = parse_mirror(text)
    except FormatError:
        return
    assert isinstance(mirror, Mirror | UnusableMirror)
    assert mirror.toml == text


def test_all_of_a_table_is_read():
    table = {
        "urls": ["https://h/a", "b"],
        "state": "https://h/state",
        "format": "torch-gzip",
        "sha256": "ab" * 32,
        "select": "model.state",
        "strip_prefix": "module.",
        "add_prefix": "encoder.",
        "rename": [["gamma", "weight"], ["beta", ""]],
    }
    assert parse_mirror(table) == Mirror(
        urls=("https://h/a", "b"),
        state="https://h/state",
        format="torch-gzip",
        sha256="ab" * 32,
        select="model.state",
        strip_prefix="module.",
        add_prefix="encoder.",
        rename=(("gamma", "weight"), ("beta", "")),
    )
    assert parse_mirror(table).toml == table


def test_parts_are_mirrors_themselves():
    mirror = parse_mirror({"parts": [TORCH, {"urls": ["a", "b"], "strip_prefix": "x."}]})
    assert mirror == Mirror(
        parts=(
            Mirror(urls=(TORCH["url"],), format="torch", sha256="f37072fd"),
            Mirror(urls=("a", "b"), strip_prefix="x."),
        )
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"url": "a", "wheel": 1}, "wheel"),
        ({"wheel": 1}, "wheel"),
        ({"url": "a", "format": "gguf"}, "gguf"),
        ({"url": "a", "format": "Torch"}, "Torch"),
        ({"parts": [{"url": "a"}, {"url": "b", "format": "gguf"}]}, "gguf"),
        ({"parts": [{"parts": [{"url": "b", "wheel": 1}]}]}, "wheel"),
    ],
)
def test_what_a_later_version_may_write_is_passed_over_with_the_reason(value, reason):
    mirror = parse_mirror(value)
    assert isinstance(mirror, UnusableMirror)
    assert reason in mirror.reason
    assert mirror.toml == value


@pytest.mark.parametrize(
    "value",
    [
        5,
        None,
        True,
        ["a"],
        {},
        {"format": "torch"},
        {"url": 5},
        {"url": ["a"]},
        {"urls": "a"},
        {"urls": []},
        {"urls": [5]},
        {"url": "a", "urls": ["b"]},
        {"url": "a", "urls": []},
        {"url": "a", "parts": [{"url": "b"}]},
        {"urls": ["a"], "parts": [{"url": "b"}]},
        {"parts": []},
        {"parts": [5]},
        {"parts": {"url": "a"}},
        {"parts": [{}]},
        {"url": "a", "state": 5},
        {"url": "a", "select": 5},
        {"url": "a", "strip_prefix": 5},
        {"url": "a", "add_prefix": ["x"]},
        {"url": "a", "rename": "x"},
        {"url": "a", "rename": {"x": "y"}},
        {"url": "a", "rename": ["xy"]},
        {"url": "a", "rename": [["x"]]},
        {"url": "a", "rename": [["x", "y", "z"]]},
        {"url": "a", "rename": [["x", 1]]},
        {"url": "a", "rename": [["", "y"]]},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_refused(value):
    with pytest.raises(FormatError):
        parse_mirror(value)


@pytest.mark.parametrize("sha256", ["", "F37072FD", "f3 ", "xyz", "ab\n", "a" * 65, 5, "0x12"])
def test_a_sha256_that_is_none_is_refused(sha256):
    with pytest.raises(FormatError, match="sha256"):
        parse_mirror({"url": "a", "sha256": sha256})


@pytest.mark.parametrize("sha256", ["f", "f37072fd", "0" * 64])
def test_a_sha256_may_be_cut(sha256):
    assert parse_mirror({"url": "a", "sha256": sha256}).sha256 == sha256


def test_mirrors_are_compared_by_what_they_say_not_by_how_it_was_written():
    assert parse_mirror("a") == parse_mirror({"url": "a", "format": "safetensors"})
    assert parse_mirror("a") != parse_mirror("b")
    assert hash(parse_mirror("a")) == hash(parse_mirror({"url": "a"}))


def test_mirrors_can_be_pickled():
    for mirror in (parse_mirror(TORCH), parse_mirror("ftp://h/a")):
        assert pickle.loads(pickle.dumps(mirror)) == mirror


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["config.json"],
        ["tokenizer/vocab.txt", "tokenizer/merges.txt", "config.json"],
        ["a", "ab", "ab.c", "b/a"],
        [".hidden", "..a", "a..", "..."],
        ["vokabular ä.txt", "模型.json"],
        ["a b", "ab:c"],
    ],
    ids=str,
)
def test_relative_paths_are_names_of_files(names):
    check_file_names(names)
    check_file_names(dict.fromkeys(names))


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "../a",
        "a/../b",
        "a/..",
        "./a",
        "a/./b",
        "a//b",
        "a/",
        "a\\b",
        "..\\a",
        "\\\\host\\share",
        "C:",
        "C:a",
        "c:/a",
        "a\nb",
        "a\0",
        "a\x7f",
        "a\x85b",
        "a\u2028b",
        "a\u202eb",
        "a\ud800",
    ],
    ids=ascii,
)
def test_a_name_that_leads_elsewhere_or_hides_something_is_refused(name):
    with pytest.raises(FormatError) as caught:
        check_file_names(["fine", name])
    assert caught.value.found == repr(name)


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b/c", "a"], ["a/b", "x", "a/b/c/d"]], ids=str)
def test_a_file_that_is_the_folder_of_another_is_refused(names):
    with pytest.raises(FormatError, match="folder"):
        check_file_names(names)


@given(st.text(max_size=12))
def test_an_accepted_name_stays_below_its_folder(tmp_path_factory, name):
    try:
        check_file_names([name])
    except FormatError:
        return
    root = tmp_path_factory.getbasetemp()
    assert (root / name).resolve().is_relative_to(root.resolve())
    assert (root / name).resolve() != root.resolve()
