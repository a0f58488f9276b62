import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlstate.errors import BucketError, CopyError, FetchError, FormatError
from mlstate.shown import printable, without_queries

SIGNED = "https://host/a.bin?X-Amz-Signature=SECRET&x=1"


@given(st.text(st.characters()))
def test_whatever_is_printed_is_one_line_of_what_prints(text):
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[2J\x9b2J\x7f", r"\x1b[2J\x9b2J\x7f"),
        ("\u202ea\u2066b\u200f\u2028", r"\u202ea\u2066b\u200f\u2028"),
        ("\udc80", r"\udc80"),
        ("größer 模型 😀", "größer 模型 😀"),
    ],
)
def test_what_does_not_print_is_escaped(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (SIGNED, "https://host/a.bin"),
        (f"['{SIGNED}', \"{SIGNED}\"]", "['https://host/a.bin', \"https://host/a.bin\"]"),
        (f"no {SIGNED}, and (s3://b/c?sig=SECRET): d", "no https://host/a.bin, and (s3://b/c): d"),
        ("https://me:SECRET@host/b@c?token=SECRET", "https://...@host/b@c"),
        ("hf://org/repo@main/a.bin", "hf://org/repo@main/a.bin"),
        ("hf://gpt2@main/a.bin, HF://bert-base.v1@refs%2Fpr%2F1", None),
        ("hf://me:SECRET@main/a.bin", "hf://...@main/a.bin"),
        ("hf://hf_SECRET@main/a.bin", "hf://...@main/a.bin"),
        ("hf://HF_SECRET@main, hf://api_SECRET@main", "hf://...@main, hf://...@main"),
        ("hf://a%3ASECRET@main", "hf://...@main"),
        ("hf://me@SECRET:SECRET@main", "hf://...@main"),
        ("https://me@SECRET:SECRET@host/a@b", "https://...@host/a@b"),
        ("shf://SECRET@host, x-hf://SECRET@host", "shf://...@host, x-hf://...@host"),
        ("https://SECRET@host/hf://a", "https://...@host/hf://a"),
        ("is it? yes: a?b=c", "is it? yes: a?b=c"),
        ("https://host?sig=SECRET", "https://host"),
        ("see https://host/a?sig=SE'CRET.", "see https://host/a."),
    ],
)
def test_addresses_show_no_query_and_no_login(text, shown):
    assert without_queries(text) == (text if shown is None else shown)


@given(st.text(st.characters(exclude_characters="/?#\"'<> @", exclude_categories=["Z", "C"])))
def test_no_login_of_a_name_and_a_password_is_shown(password):
    for scheme in ("https", "hf", "s3"):
        assert without_queries(f"{scheme}://me:{password}@host/x") == f"{scheme}://...@host/x"


def test_many_addresses_take_little_time():
    for text in (
        "://" * 200_000,
        "a://b" * 100_000 + "?",
        "://x?" * 100_000,
        "a" * 500_000,
        "hf://a@" * 99_999,
    ):
        without_queries(text)


@pytest.mark.parametrize(
    "error",
    [
        FormatError(f"bad {SIGNED}", path=SIGNED, expected=SIGNED, found=[SIGNED], remedy=SIGNED),
        FetchError("none", attempts=((SIGNED, f"failed at {SIGNED}"),)),
        BucketError("none", bucket="s3://b?sig=SECRET", operation="read"),
        CopyError("some", failures=(("a.b.c", FormatError(f"bad {SIGNED}")),)),
    ],
)
def test_no_error_shows_a_query(error):
    assert "SECRET" not in str(error)
    forged = error.text(lambda value: printable(f"{value}\nforged"))
    assert "\nforged" not in forged
    assert json.dumps(forged)
