"""The inert values that a pickle is read into: none of them runs, imports or holds code.

Beside them are None and Python's bool, int, float, complex, str, bytes, list and tuple. Values can
be shared, and a list or mapping can hold itself, as in the pickle: who walks through them keeps
account of what was seen.
"""

from __future__ import annotations

import cmath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mlstate.errors import FormatError
from mlstate.pickled.caps import MAX_KEY_DEPTH, capped

__all__ = ["Call", "Global", "Items", "Pairs", "Value", "kind_of"]

Value = Any


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class, function or constant. Nothing is looked up or imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a pickle asks to be called; it is not.

    Attributes:
        function: What was to be called, a `Global` as a rule.
        arguments: The arguments.
        parts: What was to be put into the result: states, items, pairs.
    """

    function: Value
    arguments: Value = field(repr=False)
    parts: list[Value] = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """A set, a frozenset or a bytearray: its kind, and its items as they were written."""

    kind: str
    items: list[Value] = field(default_factory=list, repr=False)


_Token = str | bytes


class Pairs:
    """A mapping with the keys of its pickle in their order.

    A key stands under a token, a text or bytes: Python keys the hashes of these by a secret, so
    that nobody can choose many keys with the same hash.

    Attributes:
        kind: ``dict``, ``OrderedDict`` or ``Counter``.
    """

    __slots__ = ("_entries", "kind")

    def __init__(self, kind: str = "dict") -> None:
        self.kind = kind
        self._entries: dict[_Token, tuple[Value, Value]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: Value, value: Value) -> None:
        """Set a key, in the place where it was first set.

        Raises:
            FormatError: Something that cannot be a key, like a list.
        """
        token = key if type(key) is str else _token(key)
        old = self._entries.get(token)
        self._entries[token] = (key if old is None else old[0], value)

    def get(self, key: str) -> Value:
        """The value of a key that is a text; None if there is none."""
        found = self._entries.get(key)
        return None if found is None else found[1]

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def items(self) -> Iterator[tuple[Value, Value]]:
        """The keys and values in their order."""
        return iter(self._entries.values())


def _token(key: Value, depth: int = 0) -> bytes:
    """Equal for keys that are equal in Python: 1, 1.0 and True are one key."""
    if isinstance(key, bytes):
        return b"b" + key
    if isinstance(key, complex) and not key.imag:
        key = key.real
    if isinstance(key, float) and key.is_integer():
        key = int(key)
    if isinstance(key, bool | int):
        return b"i%x" % int(key) if key >= 0 else b"i-%x" % -int(key)
    if isinstance(key, str):
        return b"s" + key.encode("utf-8", "surrogatepass")
    if key is None or (
        isinstance(key, float | complex) and not cmath.isnan(key)
    ):  # NaN is no other NaN
        return b"r" + repr(key).encode()
    if isinstance(key, tuple):
        return _tuple_token(key, depth)
    return _object_token(key)


def _tuple_token(key: tuple[Value, ...], depth: int) -> bytes:
    if depth >= MAX_KEY_DEPTH:
        raise capped("a key of tuples inside each other", MAX_KEY_DEPTH)
    tokens = [_token(part, depth + 1) for part in key]
    return b"t" + b"".join(b"%d:%s" % (len(token), token) for token in tokens)


def _object_token(key: Value) -> bytes:
    if isinstance(key, Global):
        return b"g" + str(key).encode("utf-8", "surrogatepass")
    if isinstance(key, list | Pairs | Items):
        raise FormatError("a pickle has a key that cannot be one", found=kind_of(key))
    return b"o%d" % id(key)  # the entry keeps it, so that no other has this id


def kind_of(value: Value) -> str:
    """What a value is, in a word or two for a message."""
    if isinstance(value, Global):
        return f"a pickled {value}"[:300]
    if isinstance(value, Call):
        inside = value.function
        while isinstance(inside, Call):
            inside = inside.function
        return f"a pickled {inside}"[:300] if isinstance(inside, Global) else "a pickled object"
    if isinstance(value, Pairs | Items):
        return value.kind
    return type(value).__name__
