"""The names of states: `StateType`, a family of interchangeable states, and `StateKey`, one state.

Pure values: nothing here reads or writes. The text form of a key joins its parts with dots::

    pytorch.resnet18.cls1000.imagenet
    backend.architecture[.extra...].training_id
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat

from mlstate.errors import FormatError

__all__ = [
    "MAX_KEY_LENGTH",
    "StateKey",
    "StateType",
    "check_key",
    "check_keys",
    "check_state_type",
    "is_device_name",
    "keys_of",
    "listed_keys",
]

MAX_KEY_LENGTH = 200
_MAX_PART = 64
_PART = re.compile(rf"[A-Za-z0-9_-]{{1,{_MAX_PART}}}")
_PARTS = re.compile(rf"{_PART.pattern}(?:\n{_PART.pattern})*")
# Names that Windows keeps for devices, with any extension: a store must survive a copy there.
_DEVICES = ("con", "prn", "aux", "nul")
_PORTS = ("com", "lpt")
_RESERVED = frozenset(_DEVICES) | {f"{port}{n}" for port in _PORTS for n in range(10)}


def is_device_name(name: str) -> bool:
    """Whether Windows takes a name for that of a device, such as ``NUL`` or ``nul.txt``."""
    return name.partition(".")[0].rstrip().lower() in _RESERVED


def _check_part(field: str, value: object) -> None:
    if not isinstance(value, str) or not _PART.fullmatch(value):
        raise FormatError(
            f"{field} is not a valid part of a state key",
            expected="1 to 64 characters out of A-Z a-z 0-9 _ -",
            found=repr(value),
            remedy="write - for ." if isinstance(value, str) and "." in value else None,
        )
    if is_device_name(value):
        raise FormatError(
            f"{field} is a name that Windows reserves for a device",
            expected="any other name",
            found=repr(value),
        )


def _check_length(parts: Iterable[str], reserve: int = 0) -> None:
    text = ".".join(parts)
    if len(text) + reserve > MAX_KEY_LENGTH:
        raise FormatError(
            "a state key is too long",
            expected=f"at most {MAX_KEY_LENGTH} characters in all",
            found=f"{len(text) + reserve}: {text}",
        )


@dataclass(frozen=True, order=True, slots=True, weakref_slot=True)
class StateType:
    """A family of interchangeable states.

    Attributes:
        backend: The framework, for instance ``"pytorch"``.
        architecture: The architecture, for instance ``"resnet18"``.
        extra: Variants of it that are worth a name, for instance ``("cls1000",)``.

    Every part is 1 to 64 characters out of ``A-Z a-z 0-9 _ -`` and no name that Windows reserves.

    Raises:
        FormatError: A part is not valid.

    Example:
        >>> str(StateType("pytorch", "resnet18", ("cls1000",)))
        'pytorch.resnet18.cls1000'
    """

    backend: str
    architecture: str
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.extra, str) or not isinstance(self.extra, Iterable):
            raise FormatError(
                "extra is a tuple of names", expected='for instance ("cls1000",)', found=self.extra
            )
        object.__setattr__(self, "extra", tuple(self.extra))
        _check_part("backend", self.backend)
        _check_part("architecture", self.architecture)
        for part in self.extra:
            _check_part("extra", part)
        _check_length(self.parts, reserve=len(".x"))

    @property
    def parts(self) -> tuple[str, ...]:
        """Backend, architecture and extras, in order."""
        return (self.backend, self.architecture, *self.extra)

    def is_compatible_with(self, other: StateType) -> bool:
        """Whether states of one type can be tried in a model of the other.

        Args:
            other: The type to compare with.

        Returns:
            True if backend and architecture are the same; extras may differ, as they do for a
            ResNet with 1,000 classes and one with 2.
        """
        return (self.backend, self.architecture) == (other.backend, other.architecture)

    @classmethod
    def parse(cls, text: str) -> StateType:
        """Read the text form; the inverse of ``str``.

        Raises:
            FormatError: The text is not ``backend.architecture[.extra...]``.
        """
        parts = text.split(".") if isinstance(text, str) else []
        if len(parts) < 2:
            raise FormatError(
                "not a state type", expected="backend.architecture[.extra...]", found=repr(text)
            )
        return cls(parts[0], parts[1], tuple(parts[2:]))

    def __str__(self) -> str:
        return ".".join(self.parts)


@dataclass(frozen=True, order=True, slots=True, weakref_slot=True)
class StateKey:
    """One state: a type, and what distinguishes the state within it.

    Attributes:
        state_type: The family that the state belongs to.
        training_id: What made it, for instance ``"imagenet"`` or ``"2022-01-01-finetuned"``.

    Raises:
        FormatError: A part is not valid, or the text form exceeds 200 characters.

    Example:
        >>> StateKey.parse("pytorch.resnet18.cls1000.imagenet").training_id
        'imagenet'
    """

    state_type: StateType
    training_id: str

    def __post_init__(self) -> None:
        if not isinstance(self.state_type, StateType):
            raise FormatError(
                "a state key is made of a StateType and a training id",
                expected="StateKey(StateType(backend, architecture), training_id)",
                found=repr(self.state_type),
                remedy="use StateKey.parse for the text form",
            )
        _check_part("training_id", self.training_id)
        _check_length(self.parts)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the type, then the training id."""
        return (*self.state_type.parts, self.training_id)

    @classmethod
    def parse(cls, text: str) -> StateKey:
        """Read the text form; the inverse of ``str``.

        Raises:
            FormatError: The text is not ``backend.architecture[.extra...].training_id``.
        """
        parts = text.split(".") if isinstance(text, str) else []
        if len(parts) < 3:
            raise FormatError(
                "not a state key",
                expected="backend.architecture[.extra...].training_id",
                found=repr(text),
                remedy=_completed(parts),
            )
        return cls(StateType(parts[0], parts[1], tuple(parts[2:-1])), parts[-1])

    def __str__(self) -> str:
        return ".".join(self.parts)


def check_key(key: object) -> None:
    """Refuse, by a FormatError, anything but a key, for instance its text form."""
    if not isinstance(key, StateKey):
        raise FormatError(
            "a state is named by a StateKey",
            found=repr(key),
            remedy=_as_key(key) if isinstance(key, str) else None,
        )


def _completed(parts: list[str]) -> str | None:
    """A key that begins or ends as a text does that has too few parts; None if that is no name."""
    front, back = ["pytorch"][len(parts) - 1 :], ["base"]
    if not parts or not all(map(_PART.fullmatch, parts)):
        return None
    return f"{'.'.join([*front, *parts, *back])}, say, is one"


def _as_key(text: str) -> str:
    """What to write in the place of a text: the key that it is, or one that it is a part of."""
    try:
        StateKey.parse(text)
    except FormatError:
        if not text or "." in text:
            return 'StateKey.parse("backend.architecture.training_id")'
        return f"StateKey(model.state_type, {text!r})"
    return f"StateKey.parse({text!r})"


def check_keys(keys: Iterable[StateKey]) -> list[StateKey]:
    """Refuse, by a FormatError, anything but a list of keys, for instance a single key."""
    if isinstance(keys, StateKey | str) or not isinstance(keys, Iterable):
        raise FormatError("keys is a list of state keys", expected=f"[{keys!r}]", found=repr(keys))
    listed = list(keys)
    for key in listed:
        check_key(key)
    return listed


def listed_keys(keys: object, what: str) -> list[StateKey]:
    """The keys in a list that a user wrote, of keys or of their texts.

    Raises:
        FormatError: It is no list, or has something that is no key; `what` is its name.
    """
    if isinstance(keys, str | StateKey) or not isinstance(keys, Iterable):
        raise FormatError(
            f"{what} is a list of state keys", expected=f"[{keys!r}]", found=repr(keys)
        )
    listed = [StateKey.parse(key) if isinstance(key, str) else key for key in keys]
    for key in listed:
        check_key(key)
    return listed


def check_state_type(state_type: object) -> None:
    """Refuse, by a FormatError, anything but a type, for instance a model."""
    if not isinstance(state_type, StateType):
        raise FormatError(
            "states are listed by a StateType",
            expected="StateType(backend, architecture), for instance model.state_type",
            found=repr(state_type) if isinstance(state_type, str) else type(state_type).__name__,
            remedy=how_to_parse_type(state_type),
        )


def how_to_parse_type(value: object) -> str | None:
    """What to write in the place of the text form of a type; None of anything else."""
    try:
        return f"StateType.parse({str(StateType.parse(value))!r})"  # type: ignore[arg-type]
    except FormatError:
        return None


def keys_of(state_type: StateType, training_ids: Iterable[str]) -> list[StateKey]:
    """The keys of one type with these training ids, sorted, without those that are not valid.

    All ids are checked at once: listing 10,000 states takes 0.6 of the time that it takes with a
    `StateKey` made for each (docs/performance.md).
    """
    ids = sorted(training_ids)
    if not _all_valid(state_type, ids):
        ids = [training_id for training_id in ids if _is_valid(state_type, training_id)]
    keys = list(map(object.__new__, repeat(StateKey, len(ids))))
    for field, values in (("state_type", repeat(state_type)), ("training_id", ids)):
        put = StateKey.__dict__[field].__set__  # as StateKey() would, less the checks
        deque(map(put, keys, values), maxlen=0)
    return keys


def _all_valid(state_type: StateType, training_ids: list[str]) -> bool:
    """Whether one check of all ids together shows that they are valid; they may be if not."""
    lines = "\n".join(training_ids)
    return (
        _PARTS.fullmatch(lines) is not None
        and lines.count("\n") == len(training_ids) - 1
        and not _any_reserved(lines.lower())
        and len(f"{state_type}.") + _MAX_PART <= MAX_KEY_LENGTH
    )


def _any_reserved(lines: str) -> bool:
    """Whether a line is a reserved name."""
    may_be = any(name in lines for name in (*_DEVICES, *_PORTS))
    return may_be and not _RESERVED.isdisjoint(lines.split("\n"))


def _is_valid(state_type: StateType, training_id: str) -> bool:
    try:
        StateKey(state_type, training_id)
    except FormatError:
        return False
    return True
