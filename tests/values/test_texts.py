import json
import string
import subprocess
import sys
import tomllib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlstate.errors import FormatError
from mlstate.texts import MAX_DEPTH, MAX_NUMBER, MAX_TOML, load_json, load_toml

_SIZE = 32 << 10
_MOST = 1 << 20

TOML_BOMBS = {
    "a dotted key": ".".join("a" * (_SIZE // 2)) + " = 1",
    "a dotted key in quotes": ".".join(['"a"'] * (_SIZE // 4)) + " = 1",
    "a dotted key with spaces": " . ".join("a" * (_SIZE // 4)) + " = 1",
    "a dotted header": "[" + ".".join("a" * (_SIZE // 2)) + "]",
    "a dotted header of a list": "[[" + ".".join("a" * (_SIZE // 2)) + "]]",
    "a dotted key in a table": "x = {" + ".".join("a" * (_SIZE // 2)) + " = 1}",
    "a dotted key after strings": 'x = """\n"a\\"""" # "\n' + ".".join("a" * _SIZE) + " = 1",
    "dotted keys": "\n".join(f"a{i}.a.a.a.a.a.a.a = 1" for i in range(_SIZE // 20)),
    "headers": "\n".join(f"[a{i}.b]" for i in range(_SIZE // 8)),
    "lists": "x = " + "[" * _SIZE + "]" * _SIZE,
    "tables": "x = " + "{a=" * _SIZE,
    "empty lists": "x = [" + "[]," * _SIZE + "]",
    "empty tables": "x = [" + "{}," * _SIZE + "]",
    "a hexadecimal number": "x = 0x" + "f" * _SIZE,
    "a binary number": "x = [1, 0b" + "1_0" * _SIZE + "]",
    "a decimal number": "x = {a = " + "9" * _SIZE + "}",
    "a long fraction": "x = 1." + "9" * _SIZE,
}


def _peak(work):
    tracemalloc.start()
    try:
        work()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", TOML_BOMBS)
def test_a_short_toml_that_would_take_much_is_refused_before_the_parser(name):
    text = TOML_BOMBS[name]
    found = []

    def parse():
        with pytest.raises(FormatError) as caught:
            load_toml(text.encode(), "a manifest")
        found.append(caught.value)

    assert _peak(parse) < 1 << 20
    assert found[0].message == "a manifest has more in it than is read"
    assert found[0].expected
    assert found[0].line
    assert str(found[0])


def test_a_toml_of_16_mib_at_most_is_parsed():
    with pytest.raises(FormatError, match="a manifest is too long"):
        load_toml(b"#" * (MAX_TOML + 1), "a manifest")
    assert load_toml(b"#" * MAX_TOML, "a manifest") == {}


def test_strings_that_never_end_take_no_time_to_speak_of():
    for text in ('x = """' + '\\"""' * _SIZE, "x = '''" + "''\n" * _SIZE, 'x = "' + '\\"' * _SIZE):
        with pytest.raises(FormatError, match="not valid TOML"):
            load_toml(text, "a manifest")


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * (MAX_DEPTH - 1) + " = 1",
        "x = " + "[" * MAX_DEPTH + "]" * MAX_DEPTH,
        "x = 0x" + "f" * (MAX_NUMBER - 2),
        "x = [" + "1.5," * _SIZE + "]",
        'x = "' + "." * _SIZE + '"\ny = """' + "[" * _SIZE + '""""" # ' + "{" * _SIZE,
        "x = '''''" + "[.{" * _SIZE + "'''''",
        "x = 1979-05-27T07:32:00.999999-07:00\ny = 07:32:00\nz = -inf",
        "".join(f'[states."a.b.{i}"]\nsize = 1\nmeta.x = 0.5\n' for i in range(3000)),
    ],
)
def test_what_people_write_is_parsed(text):
    assert load_toml(text, "a manifest") == tomllib.loads(text)


_names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=5)
_quoted = st.text(max_size=6).map(json.dumps).filter(lambda text: "\\ud" not in text)
_keys = st.lists(_names | _quoted, min_size=1, max_size=4).map(".".join)
_plain = (
    _quoted
    | st.sampled_from(["''", "'a.[{'", '"""a\n"b""""', "'''\n'a'''''", "true", "1979-05-27"])
    | st.integers(-(2**63), 2**63 - 1).map(str)
    | st.integers(0, 2**64).map(hex)
    | st.floats().map(lambda number: repr(number).replace("e+", "e"))
)
_values = st.recursive(
    _plain,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + ",\n".join(items) + "]")
        | st.dictionaries(_keys, inner, max_size=3).map(
            lambda table: "{" + ", ".join(f"{name} = {item}" for name, item in table.items()) + "}"
        )
    ),
    max_leaves=6,
)
_lines = st.one_of(
    st.tuples(_keys, _values).map(" = ".join),
    _keys.map(lambda key: f"[{key}]"),
    _keys.map(lambda key: f"[[{key}]]"),
    st.text("#[]{}.='\"\\a", max_size=8),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_lines, max_size=8).map("\n".join))
def test_a_small_toml_is_read_as_the_parser_reads_it(text):
    try:
        expected = tomllib.loads(text)
    except ValueError:
        with pytest.raises(FormatError, match="not valid TOML"):
            load_toml(text, "a manifest")
    else:
        assert repr(load_toml(text, "a manifest")) == repr(expected)


JSON_BOMBS = {
    "lists": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
    "objects": b'{"a":' * 500 + b"1" + b"}" * 500,
    "far too many lists": b'{"a":' + b"[" * _SIZE + b"]" * _SIZE + b"}",
    "lists beside strings": b'{"a":["]",' * 200 + b"1" + b"]}" * 200,
    "lists beside escapes": b'{"a":["\\"]\\\\",' * 200 + b"1" + b"]}" * 200,
    "empty lists": b'{"a":[' + b"[]," * _SIZE + b"[]]}",
    "empty objects": b'{"a":[' + b"{}," * _SIZE + b"{}]}",
    "a number": b'{"a":' + b"9" * _SIZE + b"}",
    "too long": b'{"a":"' + b"b" * _MOST + b'"}',
}


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_a_short_json_that_would_take_much_is_refused_before_the_parser(name):
    data = JSON_BOMBS[name]

    def parse():
        with pytest.raises(FormatError, match="an index"):
            load_json(data, "an index", most=_MOST)

    assert _peak(parse) < 1 << 20


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.text(), _json, max_size=4),
    st.booleans(),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-le"]),
)
def test_a_small_json_is_read_as_the_parser_reads_it(value, ascii_only, encoding):
    data = json.dumps(value, ensure_ascii=ascii_only).encode(encoding)
    assert load_json(data, "an index", most=_MOST) == json.loads(data) == value


@settings(max_examples=300, deadline=None)
@given(st.text('{}[]",:\\a1', max_size=30).map(lambda text: '{"a' + text))
def test_what_is_no_json_is_refused(text):
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(FormatError):
            load_json(text.encode(), "an index", most=_MOST)
    else:
        assert load_json(text.encode(), "an index", most=_MOST) == expected


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_no_memory_is_an_error_of_ours(kind, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(tomllib, "loads", full)
    monkeypatch.setattr(json, "loads", full)
    with pytest.raises(FormatError, match="not enough memory to read an index"):
        load_toml("", "an index") if kind == "toml" else load_json(b"{}", "an index", most=_MOST)


def test_every_reader_of_toml_takes_little_for_a_bomb(tmp_path):
    """The manifest, and its error, in a process that may take 256 MiB more than it has."""
    program = f"""
import resource, sys
import mlstate
from mlstate.errors import ManifestError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
for text in ("version = 1\\n" + ".".join("a" * {_SIZE}) + " = 1", "version = 0x" + "f" * 100_000):
    try:
        mlstate.Manifest.parse(text.encode(), "a.toml")
    except ManifestError as error:
        assert len(str(error)) < 1000, error
    else:
        sys.exit("no error")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
