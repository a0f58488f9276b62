"""Every error that mlstate raises: what happened, where, what was expected and found, what to do.

All types derive from `MlstateError`, and from the Python class that fits where there is one, so
that ``except FileNotFoundError`` or ``except KeyError`` keeps working.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlstate.phrases import called
from mlstate.shown import printable, without_queries

__all__ = [
    "AccessError",
    "AddressError",
    "ArgumentError",
    "BucketAccessError",
    "BucketError",
    "CopyError",
    "FetchError",
    "FormatError",
    "GitError",
    "IncompatibleStateError",
    "IntegrityError",
    "LimitError",
    "ManifestError",
    "ManifestNotFoundError",
    "MissingPackageError",
    "MlstateError",
    "NoRangesError",
    "ObjectNotFoundError",
    "OfflineError",
    "PeerError",
    "PinMismatchError",
    "RateLimitError",
    "ReadOnlyStoreError",
    "SignatureError",
    "StateExistsError",
    "StateNotFoundError",
    "StoreNotFoundError",
    "TransportError",
    "UnpinnedStateError",
    "UnsupportedStoreError",
    "WeightsNotFoundError",
    "concerning",
]


_REMEDY = "what to do"


class MlstateError(Exception):
    """Base of all errors of this package.

    Attributes:
        message: What happened, one sentence.
        key: The state concerned (a `mlstate.StateKey`), or None.
        tensor: The name of the tensor concerned, or None.
        path: Where: a file, an address or another place, as text, or None.
        line: The line in that file, counted from 1, or None.
        expected: What should have been there, or None.
        found: What was there instead, or None.
        remedy: What to do about it, or None.
    """

    _key_label = "state"

    def __init__(
        self,
        message: str,
        *,
        key: object | None = None,
        tensor: str | None = None,
        path: object | None = None,
        line: int | None = None,
        expected: object | None = None,
        found: object | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.tensor = tensor
        self.path = _place(path)
        self.line = line
        self.expected = expected
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        return self.text()

    def text(self, say: Callable[[object], str] = str) -> str:
        """The error with all that it knows, a line each.

        Args:
            say: Turns a value into text: `str`, or `mlstate.phrases.in_shell`.
        """
        line = "" if self.line is None else f", line {self.line}"
        details = [
            (self._key_label, self.key),
            ("tensor", self.tensor),
            ("where", None if self.path is None else _said(self.path, say) + line),
            ("expected", self.expected),
            ("found", self.found),
            (_REMEDY, self.remedy),
        ]
        known = [(label, _said(value, say)) for label, value in details if value is not None]
        # In the words of the command line there may be nothing left of a remedy.
        lines = [f"  {label}: {text}" for label, text in known if text or label != _REMEDY]
        return "\n".join([_said(self.message, say), *lines])

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with its positional arguments alone and lose the
        # fields when an error crosses to another process.
        return (_rebuild, (type(self), self.message, self.__dict__))


def _place(path: object | None) -> str | None:
    return path if path is None or isinstance(path, str) else called(path)


def _said(value: object, say: Callable[[object], str]) -> str:
    """A value as one line of a message; the name of its type if Python has no text for it.

    A program that ends with an error shows it on a terminal: what does not print is escaped.
    It has none of a number with thousands of digits, or of lists within lists within lists.
    """
    try:
        return printable(_brief(without_queries(say(value))))
    except (ValueError, RecursionError, MemoryError):
        return f"a value of type {type(value).__name__} that is too large to be shown"


def _brief(text: str) -> str:
    """A text for a message: hostile or damaged input can be of any length."""
    return text if len(text) <= 500 else f"{text[:500]}... ({len(text)} characters)"


def _rebuild(kind: type[MlstateError], message: str, fields: dict[str, Any]) -> MlstateError:
    error = kind(message)
    error.__dict__.update(fields)
    return error


class FormatError(MlstateError, ValueError):
    """Bytes or text that are not what the format prescribes, or a value that it cannot hold."""


class ArgumentError(FormatError, TypeError):
    """Arguments that a function does not take like this; nothing was done."""


class ManifestError(FormatError):
    """A manifest that cannot be read or written; `path`, `line` and `key` say where."""

    _key_label = "key"


class IntegrityError(MlstateError):
    """Bytes that are not those that their digest names. Nothing of them reaches a model."""


class ObjectNotFoundError(IntegrityError, FileNotFoundError):
    """A state names an object that is not there."""


class PinMismatchError(IntegrityError):
    """A manifest gives other weights than those that this user has pinned; `path` is the pin's."""


class StateNotFoundError(MlstateError, KeyError):
    """No state under this key in this store."""


class StoreNotFoundError(MlstateError, FileNotFoundError):
    """There is no store where one was to be."""


class ManifestNotFoundError(ManifestError, StoreNotFoundError):
    """There is no manifest where one was to be."""


class WeightsNotFoundError(FormatError, FileNotFoundError):
    """There is no file or folder of weights where one was to be."""


class StateExistsError(MlstateError, FileExistsError):
    """Another state is stored under this key already."""


class IncompatibleStateError(MlstateError, RuntimeError):
    """The state does not fit the model; nothing was loaded.

    Also a `RuntimeError`, which is what ``torch.nn.Module.load_state_dict`` raises.
    """


class UnpinnedStateError(MlstateError):
    """A manifest lists this state without a digest, so nothing could be verified."""


class ReadOnlyStoreError(MlstateError, NotImplementedError):
    """This store, or this state of it, cannot be written.

    Also a `NotImplementedError`, which programs for MLModule's stores catch.
    """


class UnsupportedStoreError(FormatError):
    """A store of one's own lacks a method that an operation needs; `expected` names it."""


class MissingPackageError(MlstateError, ImportError):
    """A package that is not installed is needed, such as that of a framework."""

    path: str | None = None  # not ImportError's own, which is no part of what is sent


class AccessError(MlstateError, PermissionError):
    """A credential is missing, wrong or expired, or does not allow this."""


class GitError(MlstateError):
    """Git is missing, there is no repository here, or git did not do what it was asked for."""


class LimitError(MlstateError, ValueError):
    """More than a service takes: too large, or too many."""


class OfflineError(MlstateError, ConnectionError):
    """Something is not in the cache, and the network may not be used."""


class _Detailed(MlstateError):  # noqa: N818  # a base, which is never raised itself
    """An error with fields of its own: class attributes, each with its default."""

    def __init__(self, message: str, **fields: Any) -> None:
        own = {name: fields.pop(name) for name in list(fields) if hasattr(type(self), name)}
        super().__init__(message, **fields)
        self.__dict__.update(own)


class TransportError(_Detailed, ConnectionError):
    """One attempt to read from one place failed.

    Attributes:
        transient: Whether the same may work a little later.
        retry_after: The seconds that the server asks to wait, or None.
        status: The HTTP status, or None.
        relabelled: Whether one thing came under the names of two versions, and as large as before:
            it may be the same.
        unreachable: Whether the server was not reached at all, or says no more than that it is
            down: another one is the better choice.
    """

    transient: bool = False
    unreachable: bool = False
    retry_after: float | None = None
    status: int | None = None
    relabelled: bool = False


class AddressError(TransportError):
    """An address that cannot be understood: nothing was asked of anybody."""


class RateLimitError(TransportError):
    """A service allows no more requests for now.

    Attributes:
        reset: When it will allow some again, in seconds since the epoch; or None.
    """

    reset: float | None = None


class BucketError(TransportError):
    """A bucket could not be asked, or did not do what it was asked for.

    Attributes:
        bucket: The bucket's address, such as ``s3://weights``.
        operation: What was to be done, in a word: "read", say.
        code: What the server calls it, such as ``NoSuchBucket``; or None.
    """

    bucket: str | None = None
    operation: str | None = None
    code: str | None = None

    def text(self, say: Callable[[object], str] = str) -> str:
        """The error with all that it knows; see `MlstateError.text`."""
        if self.bucket is None:
            return super().text(say)
        return f"{super().text(say)}\n  while: {_said(f'{self.operation} in {self.bucket}', say)}"


class BucketAccessError(BucketError, AccessError):
    """The credentials for a bucket are missing, wrong or expired, or do not allow this."""


class NoRangesError(TransportError):
    """A server gives the whole resource or nothing."""


class FetchError(_Detailed, ConnectionError):
    """What is missing could not be had from any mirror.

    Attributes:
        attempts: Each mirror that was tried, with the reason why it did not do.
        wrong_bytes: Whether a mirror sent bytes that are not those of this state.
    """

    attempts: tuple[tuple[str, str], ...] = ()
    wrong_bytes: bool = False

    def text(self, say: Callable[[object], str] = str) -> str:
        """The error with all that it knows; see `MlstateError.text`."""
        tried = [f"  tried: {_said(place, say)}: {_said(why, say)}" for place, why in self.attempts]
        return "\n".join([super().text(say), *tried])


class PeerError(_Detailed, RuntimeError):
    """Another rank of a distributed job failed, was killed or stopped; all ranks raise this.

    Attributes:
        rank: The rank, within the process group that saved or loaded; None if nobody can tell.
    """

    rank: int | None = None


class CopyError(_Detailed):
    """Of several states some could not be copied; all others were.

    Attributes:
        failures: Each state that was not copied (a `mlstate.StateKey`), with its error.
        copied: The states that were copied.
        present: The states that the target had already.
        nbytes: The bytes of tensor objects that were read from the source.
    """

    failures: tuple[tuple[object, MlstateError], ...] = ()
    copied: tuple[Any, ...] = ()
    present: tuple[Any, ...] = ()
    nbytes: int = 0

    def text(self, say: Callable[[object], str] = str) -> str:
        """The error with all that it knows; see `MlstateError.text`."""
        failed = [
            f"  {_said(key, say)}: {_said(error.message, say)}" for key, error in self.failures
        ]
        return "\n".join([super().text(say), *failed])


class SignatureError(_Detailed):
    """A manifest, or a state, has no good signature where one is required; nothing was read of it.

    Attributes:
        signer: Whose key signed, as the allowed-signers file has it; None if it is not known.
        fingerprint: The fingerprint of that key, as ``ssh-keygen -l`` prints it; or None.
    """

    signer: str | None = None
    fingerprint: str | None = None

    def text(self, say: Callable[[object], str] = str) -> str:
        """The error with all that it knows; see `MlstateError.text`."""
        names = [name for name in (self.signer, self.fingerprint) if name is not None]
        by = f"\n  signed by: {_said(' '.join(names), say)}" if names else ""
        return super().text(say) + by


@contextmanager
def concerning(
    key: object | None = None, *, tensor: str | None = None, path: object | None = None
) -> Iterator[None]:
    """Say of an error that passes what it is about, unless it says so itself.

    Args:
        key: The state.
        tensor: The tensor.
        path: The place.
    """
    try:
        yield
    except MlstateError as error:
        error.key = key if error.key is None else error.key
        error.tensor = tensor if error.tensor is None else error.tensor
        error.path = _place(path) if error.path is None else error.path
        raise
