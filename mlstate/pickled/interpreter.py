"""A reader of pickles that builds inert values: nothing is imported, called or set.

All opcodes of protocols 0 to 5 are read here, by hand. What would make Python import or call
something makes a `Global` or a `Call`, which are names and arguments and no more. What the few
known functions of torch would give is made by the ``call`` of the reader's user.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any, NoReturn

from mlstate.errors import FormatError
from mlstate.pickled.caps import (
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_MEMO,
    MAX_OPCODES,
    MAX_STACK,
    MAX_TEXT,
    capped,
)
from mlstate.pickled.depth import check_depth
from mlstate.pickled.source import Cursor
from mlstate.pickled.values import Call, Global, Items, Pairs, Value

__all__ = ["Interpreter", "read_pickle"]

PersistentLoad = Callable[[Value], Value]
Understand = Callable[[Call], Value]

_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""How Python 2 called them."""
_STOP = 0x2E


def read_pickle(
    cursor: Cursor,
    understand: Understand | None = None,
    persistent_load: PersistentLoad | None = None,
) -> Value:
    """Read one pickle, up to and with its STOP.

    Args:
        cursor: Where it begins; it stands behind it afterwards.
        understand: Gives the value of a call that it knows, and the call itself otherwise.
        persistent_load: Gives the value of a persistent id.

    Raises:
        FormatError: A pickle that is damaged, or asks for more than the caps allow.
    """
    value = Interpreter(cursor, understand, persistent_load).read()
    check_depth(value)
    return value


class Interpreter:
    """The stack, the marks and the memo of one pickle; see `read_pickle`."""

    def __init__(
        self,
        cursor: Cursor,
        understand: Understand | None,
        persistent_load: PersistentLoad | None,
    ) -> None:
        self._cursor = cursor
        self._take = cursor.take
        self._understand = understand
        self._persistent_load = persistent_load
        self._stack: list[Value] = []
        self._marks: list[list[Value]] = []
        self._below = 0  # values under the marks
        self._memo: dict[int, Value] = {}

    def read(self) -> Value:
        """See `read_pickle`."""
        take, opcodes = self._take, _OPCODES
        for _ in range(MAX_OPCODES):
            code = take(1)[0]
            if code == _STOP:
                return self._pop()
            opcode = opcodes[code]
            if opcode is None:
                raise FormatError("a pickle has an opcode that does not exist", found=hex(code))
            opcode(self)
            if len(self._stack) + self._below > MAX_STACK:
                raise capped("a pickle with too many values on its stack", MAX_STACK)
        raise capped("a pickle with too many opcodes", MAX_OPCODES)

    # The stack

    def _push(self, value: Value) -> None:
        self._stack.append(value)

    def _pop(self) -> Value:
        if not self._stack:
            _empty()
        return self._stack.pop()

    def _top(self) -> Value:
        if not self._stack:
            _empty()
        return self._stack[-1]

    def _mark(self) -> None:
        if len(self._marks) >= MAX_DEPTH:
            raise capped("a pickle with too many open marks", MAX_DEPTH)
        self._marks.append(self._stack)
        self._below += len(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Value]:
        if not self._marks:
            raise FormatError("a pickle lacks a mark")
        items = self._stack
        self._stack = self._marks.pop()
        self._below -= len(self._stack)
        return items

    def _pop_one(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _dup(self) -> None:
        self._push(self._top())

    # The memo

    def _put(self, index: int) -> None:
        if len(self._memo) >= MAX_MEMO and index not in self._memo:
            raise capped("a pickle with too many values in its memo", MAX_MEMO)
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise FormatError("a pickle asks for a value that its memo does not have", found=index)
        self._push(self._memo[index])

    def _memoize(self) -> None:
        self._put(len(self._memo))

    # Numbers and texts

    def _number(self, form: str) -> int:
        (number,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return int(number)

    def _bytes(self, form: str, most: int = MAX_TEXT, what: str = "text") -> bytes:
        size = self._number(form)
        if not 0 <= size <= most:
            raise capped(f"a pickle with {what} that is too long", most, f"{size} bytes")
        return self._take(size)

    def _text(self, form: str) -> None:
        self._push(_decoded(self._bytes(form), "utf-8", "surrogatepass"))

    def _string(self, form: str) -> None:
        self._push(_python2(self._bytes(form)))

    def _long(self, form: str) -> None:
        data = self._bytes(form, MAX_INTEGER, "an integer")
        self._push(int.from_bytes(data, "little", signed=True))

    def _int_line(self) -> None:
        line = self._cursor.line()
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _int(line))

    def _long_line(self) -> None:
        self._push(_int(self._cursor.line().removesuffix(b"L")))

    def _float_line(self) -> None:
        try:
            self._push(float(self._cursor.line()))
        except ValueError:
            raise FormatError("a pickle has a number that is none") from None

    def _string_line(self) -> None:
        line = self._cursor.line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise FormatError("a pickle has a text without quotation marks")
        try:
            # The decoder warns of escapes that Python does not have; a file is no source text.
            if b"\\" in line and any(text in line for text in _ODD_ESCAPES):
                raise ValueError
            self._push(_python2(codecs.escape_decode(line[1:-1])[0]))
        except ValueError:
            raise FormatError("a pickle has a text with escapes that are none") from None

    def _unicode_line(self) -> None:
        self._push(_decoded(self._cursor.line(), "raw-unicode-escape", "strict"))

    def _protocol(self) -> None:
        protocol = self._take(1)[0]
        if protocol > 5:
            raise FormatError("a pickle has a protocol that does not exist", found=protocol)

    def _frame(self) -> None:
        size = self._number("<Q")
        if size > self._cursor.left:
            raise FormatError("a pickle has a frame that is longer than the file", found=size)

    # Containers

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            _empty()
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _dict(self) -> None:
        pairs = Pairs()
        _put_all(pairs, self._pop_mark())
        self._push(pairs)

    def _extend(self, items: list[Value]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Call):
            target.parts.extend(items)
        else:
            raise FormatError("a pickle appends to what is no list")

    def _append(self) -> None:
        self._extend([self._pop()])

    def _set_items(self, items: list[Value]) -> None:
        target = self._top()
        if isinstance(target, Pairs):
            _put_all(target, items)
        elif isinstance(target, Call):
            target.parts.extend(items)
        else:
            raise FormatError("a pickle sets keys of what is no mapping")

    def _set_item(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _add_items(self) -> None:
        items, target = self._pop_mark(), self._top()
        if isinstance(target, Items):
            target.items.extend(items)
        elif isinstance(target, Call):
            target.parts.extend(items)
        else:
            raise FormatError("a pickle adds to what is no set")

    # What Python would import, call or fill

    def _global_line(self) -> Global:
        module = _decoded(self._cursor.line(), "utf-8", "strict")
        name = _decoded(self._cursor.line(), "utf-8", "strict")
        return Global(_MODULES.get(module, module), name)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise FormatError("a pickle names a global that is no text")
        self._push(Global(_MODULES.get(module, module), name))

    def _call(self, function: Value, arguments: Value) -> None:
        call = Call(function, arguments)
        self._push(call if self._understand is None else self._understand(call))

    def _reduce(self) -> None:
        arguments = self._pop()
        self._call(self._pop(), arguments)

    def _new(self, keywords: bool) -> None:
        named = self._pop() if keywords else None
        arguments = self._pop()
        # Not understood: what `__new__` alone makes of a class, no file of torch has.
        self._push(Call(self._pop(), (arguments, named) if keywords else arguments))

    def _obj(self) -> None:
        items = self._pop_mark()
        if not items:
            _empty()
        self._push(Call(items[0], tuple(items[1:])))

    def _inst(self) -> None:
        function = self._global_line()
        self._push(Call(function, tuple(self._pop_mark())))

    def _extension(self, form: str) -> None:
        self._push(Call(Global("copyreg", "extension"), (self._number(form),)))

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Call):
            target.parts.append(state)
        elif not (isinstance(target, Pairs) and isinstance(state, Pairs)):
            # Attributes of a mapping, like the versions of modules, do not change what it holds.
            raise FormatError("a pickle gives a state to what has none")

    def _persistent(self, key: Value) -> None:
        if self._persistent_load is None:
            raise FormatError("a pickle refers to something outside of it")
        self._push(self._persistent_load(key))

    def _buffer(self) -> None:
        raise FormatError("a pickle refers to a buffer outside of it")


def _empty() -> NoReturn:
    raise FormatError("a pickle takes a value from an empty stack")


_ODD_ESCAPES = tuple(
    b"\\" + bytes([code]) for code in range(256) if code not in b"\\\n'\"abfnrtvx01234567"
)


def _python2(data: bytes) -> str | bytes:
    """A string of Python 2: a text if it can be one."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _decoded(data: bytes, encoding: str, errors: str) -> str:
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError:
        raise FormatError("a pickle has a text that is none", found=data[:40]) from None


def _int(line: bytes) -> int:
    if len(line) > 2 * MAX_INTEGER:
        raise capped("a pickle with an integer that is too long", 2 * MAX_INTEGER, len(line))
    try:
        return int(line)
    except ValueError:
        raise FormatError("a pickle has a number that is none", found=line[:40]) from None


def _put_all(target: Pairs, items: list[Value]) -> None:
    if len(items) % 2:
        raise FormatError("a pickle has a key without a value")
    for at in range(0, len(items), 2):
        target.put(items[at], items[at + 1])


_BY_CODE: dict[bytes, Callable[[Interpreter], Any]] = {
    b"(": lambda i: i._mark(),
    b"0": lambda i: i._pop_one(),
    b"1": lambda i: i._pop_mark(),
    b"2": lambda i: i._dup(),
    b"F": lambda i: i._float_line(),
    b"I": lambda i: i._int_line(),
    b"J": lambda i: i._push(i._number("<i")),
    b"K": lambda i: i._push(i._take(1)[0]),
    b"L": lambda i: i._long_line(),
    b"M": lambda i: i._push(i._number("<H")),
    b"N": lambda i: i._push(None),
    b"P": lambda i: i._persistent(_decoded(i._cursor.line(), "ascii", "strict")),
    b"Q": lambda i: i._persistent(i._pop()),
    b"R": lambda i: i._reduce(),
    b"S": lambda i: i._string_line(),
    b"T": lambda i: i._string("<i"),
    b"U": lambda i: i._string("<B"),
    b"V": lambda i: i._unicode_line(),
    b"X": lambda i: i._text("<I"),
    b"a": lambda i: i._append(),
    b"b": lambda i: i._build(),
    b"c": lambda i: i._push(i._global_line()),
    b"d": lambda i: i._dict(),
    b"}": lambda i: i._push(Pairs()),
    b"e": lambda i: i._extend(i._pop_mark()),
    b"g": lambda i: i._get(_int(i._cursor.line())),
    b"h": lambda i: i._get(i._take(1)[0]),
    b"i": lambda i: i._inst(),
    b"j": lambda i: i._get(i._number("<I")),
    b"l": lambda i: i._push(i._pop_mark()),
    b"]": lambda i: i._push([]),
    b"o": lambda i: i._obj(),
    b"p": lambda i: i._put(_int(i._cursor.line())),
    b"q": lambda i: i._put(i._take(1)[0]),
    b"r": lambda i: i._put(i._number("<I")),
    b"s": lambda i: i._set_item(),
    b"t": lambda i: i._push(tuple(i._pop_mark())),
    b")": lambda i: i._push(()),
    b"u": lambda i: i._set_items(i._pop_mark()),
    b"G": lambda i: i._push(struct.unpack(">d", i._take(8))[0]),
    b"\x80": lambda i: i._protocol(),
    b"\x81": lambda i: i._new(False),
    b"\x82": lambda i: i._extension("<B"),
    b"\x83": lambda i: i._extension("<H"),
    b"\x84": lambda i: i._extension("<i"),
    b"\x85": lambda i: i._tuple(1),
    b"\x86": lambda i: i._tuple(2),
    b"\x87": lambda i: i._tuple(3),
    b"\x88": lambda i: i._push(True),
    b"\x89": lambda i: i._push(False),
    b"\x8a": lambda i: i._long("<B"),
    b"\x8b": lambda i: i._long("<i"),
    b"B": lambda i: i._push(i._bytes("<I")),
    b"C": lambda i: i._push(i._bytes("<B")),
    b"\x8c": lambda i: i._text("<B"),
    b"\x8d": lambda i: i._text("<Q"),
    b"\x8e": lambda i: i._push(i._bytes("<Q")),
    b"\x8f": lambda i: i._push(Items("set")),
    b"\x90": lambda i: i._add_items(),
    b"\x91": lambda i: i._push(Items("frozenset", i._pop_mark())),
    b"\x92": lambda i: i._new(True),
    b"\x93": lambda i: i._stack_global(),
    b"\x94": lambda i: i._memoize(),
    b"\x95": lambda i: i._frame(),
    b"\x96": lambda i: i._push(Items("bytearray", [i._bytes("<Q")])),
    b"\x97": lambda i: i._buffer(),
    b"\x98": lambda i: i._buffer(),
}
_OPCODES = [_BY_CODE.get(bytes([code])) for code in range(256)]
