"""Allowed signers and revoked keys: what is read as ssh-keygen reads it, and what is refused."""

from __future__ import annotations

import base64
import struct
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import FormatError
from mlstate.signatures.allowed import parse_allowed_signers
from mlstate.signatures.lines import MAX_FILE
from mlstate.signatures.patterns import matches
from mlstate.signatures.revoked import parse_revoked_keys

NAME = b"ssh-ed25519"
BLOB = struct.pack(">I", len(NAME)) + NAME + struct.pack(">I", 32) + bytes(range(32))
KEY = "ssh-ed25519 " + base64.b64encode(BLOB).decode()


def parsed(text):
    return parse_allowed_signers(text.encode(), "signers")


def refused(text):
    with pytest.raises(FormatError) as caught:
        parsed(text)
    assert caught.value.path == "signers"
    return caught.value


def test_comments_and_blank_lines_say_nothing():
    assert parsed("") == ()
    assert parsed("# alice ssh-ed25519\n\n   \n\t# more\r\n") == ()
    (signer,) = parsed(f"# who\n\n  alice@lab {KEY} her laptop\n")
    assert (signer.principals, signer.line, signer.key.blob) == ("alice@lab", 3, BLOB)
    assert signer.namespaces is signer.valid_after is signer.valid_before is None


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "  \n"])
def test_line_ends_do_not_matter(end):
    (signer,) = parsed(f"alice\t{KEY}{end}")
    assert signer.key.blob == BLOB


def test_options_are_read():
    (signer,) = parsed(
        'a,b namespaces="git,mlstate",Valid-After="20240102Z",valid-before="202601020304Z" ' + KEY
    )
    assert signer.namespaces == "git,mlstate"
    assert signer.valid_after == datetime(2024, 1, 2, tzinfo=UTC).timestamp()
    assert signer.valid_before == datetime(2026, 1, 2, 3, 4, tzinfo=UTC).timestamp()


def test_a_time_without_a_zone_is_local():
    (signer,) = parsed(f'a valid-before="20260102030405" {KEY}')
    assert signer.valid_before == datetime(2026, 1, 2, 3, 4, 5).timestamp()


@pytest.mark.parametrize(
    "line",
    [
        "alice",
        f"alice {KEY[:-3]}",
        f"alice ssh-rsa {KEY.partition(' ')[2]}",
        f"alice nonsense {KEY}",
        f'alice namespaces="git {KEY}',
        f'alice namespaces="git"{KEY}',
        f'alice namespaces="git", {KEY}',
        f'alice namespaces="git",namespaces="git" {KEY}',
        f"alice namespaces=git {KEY}",
        f'alice valid-after="soon" {KEY}',
        f'alice valid-after="20240230" {KEY}',
        f'alice valid-after="00000101" {KEY}',
        f'alice valid-after="20240202Z",valid-before="20240101Z" {KEY}',
        f'"alice b" {KEY}',
        f"alice\x00 {KEY}",
        f"alice {KEY} {'x' * 20_000}",
    ],
)
def test_a_line_that_is_not_understood_is_refused_with_its_number(line):
    assert refused(f"# first\n{line}\n").line == 2


def test_a_certificate_authority_is_refused_clearly():
    error = refused(f"* cert-authority {KEY}")
    assert "certificates are not supported" in error.message
    assert error.line == 1
    assert error.remedy
    assert refused(f'* namespaces="git",cert-authority {KEY}').found == "cert-authority"


def test_files_that_are_no_text_or_too_large_are_refused():
    with pytest.raises(FormatError, match="UTF-8"):
        parse_allowed_signers(b"\xff\xfe", "x")
    with pytest.raises(FormatError, match="byte order mark"):
        parse_allowed_signers("\ufeffa b".encode(), "x")
    with pytest.raises(FormatError, match="too large"):
        parse_allowed_signers(b"\n" * (MAX_FILE + 1), "x")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_by_a_typed_error(data):
    for parse in (parse_allowed_signers, parse_revoked_keys):
        try:
            parse(data, "x")
        except FormatError:
            continue


@given(st.text(alphabet='abc ",=-\\\t*!namespaces0123Z', max_size=60))
def test_any_line_is_read_or_refused_by_a_typed_error(text):
    try:
        parsed(f"alice {text} {KEY}")
    except FormatError:
        return


@pytest.mark.parametrize(
    ("text", "patterns", "result"),
    [
        ("mlstate", "mlstate", True),
        ("mlstate", "git,mlstate", True),
        ("mlstate", "git", False),
        ("mlstate", "ml*", True),
        ("mlstate", "ml?tate", True),
        ("mlstate", "*,!mlstate", False),
        ("mlstate", "!git", False),
        ("mlstate", "[m]lstate", False),
        ("[m]lstate", "[m]lstate", True),
        ("MLSTATE", "mlstate", False),
        ("mlstate", "", False),
    ],
)
def test_patterns_are_those_of_ssh(text, patterns, result):
    assert matches(text, patterns) is result


def test_hostile_patterns_take_no_time():
    assert not matches("a" * 2000, "*a" * 500 + "b")


def test_revoked_keys_are_a_list_of_public_keys():
    text = f"# lost\n{KEY} laptop\n\n"
    (key,) = parse_revoked_keys(text.encode(), "x")
    assert key.blob == BLOB


def test_a_line_that_is_no_key_is_refused():
    # A key that is passed over would be one that is not revoked.
    with pytest.raises(FormatError, match="no public key") as caught:
        parse_revoked_keys(f"{KEY}\nSHA256:abc\n".encode(), "x")
    assert caught.value.line == 2


KRL = b"SSHKRL\n\0" + struct.pack(">IQQQII", 1, 0, 0, 0, 0, 0)


def section(kind, data):
    return KRL + bytes([kind]) + struct.pack(">I", len(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        KRL[:-1],
        KRL.replace(b"\0\0\0\1", b"\0\0\0\2"),
        section(2, b"abc"),
        section(2, struct.pack(">I", 3) + b"abc"),
        section(3, struct.pack(">I", 32) + bytes(32)),
        section(5, struct.pack(">I", 20) + bytes(20)),
        section(6, b""),
        section(255, struct.pack(">I", 1) + b"x" + b"\1" + struct.pack(">I", 0)),
        section(5, b"")[:-1],
        KRL + bytes(1 << 20),
    ],
)
def test_a_krl_that_is_not_understood_is_refused(data):
    with pytest.raises(FormatError, match="cannot be read"):
        parse_revoked_keys(data, "x")


def test_what_a_krl_may_hold_besides_is_passed_over():
    extension = section(255, struct.pack(">I", 1) + b"x" + b"\0" + struct.pack(">I", 0))
    assert list(parse_revoked_keys(extension, "x")) == []
    assert list(parse_revoked_keys(section(1, b"certificates"), "x")) == []


@given(st.binary(max_size=200))
def test_any_krl_is_read_or_refused_by_a_typed_error(data):
    with suppress(FormatError):
        parse_revoked_keys(KRL + data, "x")
