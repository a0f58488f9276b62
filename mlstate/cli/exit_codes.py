"""Exit codes, and which error ends a command with which of them."""

from __future__ import annotations

from mlstate.errors import (
    AccessError,
    AddressError,
    CopyError,
    FetchError,
    FormatError,
    IntegrityError,
    LimitError,
    MlstateError,
    OfflineError,
    SignatureError,
    StateNotFoundError,
    StoreNotFoundError,
    TransportError,
    UnpinnedStateError,
    WeightsNotFoundError,
)

__all__ = [
    "DEFECT",
    "EXIT_CODES",
    "FINDING",
    "INTERRUPTED",
    "OK",
    "REFUSED",
    "USAGE",
    "WITHOUT_READER",
    "exit_code",
]


OK, FINDING, USAGE, NOT_FOUND, INTEGRITY, NETWORK, REFUSED = range(7)
DEFECT = 70  # as sysexits.h has it
INTERRUPTED, WITHOUT_READER = 130, 141  # as shells have them: 128 and the signal's number

EXIT_CODES = {
    OK: "fine",
    FINDING: "a finding: damage (verify), a difference (diff), a conflict (git-merge), a problem "
    "(doctor, check)",
    USAGE: "the command, a key, a manifest or a weights file cannot be understood",
    NOT_FOUND: "there is no such state, store or file",
    INTEGRITY: "bytes are not those that a digest names; or no digest, or no good signature",
    NETWORK: "no mirror or service could be reached, or would let us in; or offline",
    REFUSED: "refused: something is in the way, or cannot be written",
    DEFECT: "a defect of mlstate: please report it",
    INTERRUPTED: "stopped by Ctrl-C; nothing is half done",
    WITHOUT_READER: "nobody reads the output any more",
}
"""Each exit code with its meaning."""

# The first type that fits counts: some of them are also others.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (StateNotFoundError, NOT_FOUND),
    (StoreNotFoundError, NOT_FOUND),
    (WeightsNotFoundError, NOT_FOUND),
    (IntegrityError, INTEGRITY),
    (UnpinnedStateError, INTEGRITY),
    (SignatureError, INTEGRITY),
    (LimitError, REFUSED),
    (AddressError, USAGE),
    (TransportError, NETWORK),
    (OfflineError, NETWORK),
    (FetchError, NETWORK),
    (AccessError, NETWORK),
    (FormatError, USAGE),
    (MlstateError, REFUSED),
    (FileNotFoundError, NOT_FOUND),
    (ConnectionError, NETWORK),
    (OSError, REFUSED),
)


def exit_code(error: BaseException) -> int:
    """The exit code for an error that a person can do something about.

    Raises:
        BaseException: `error` itself, if it is of no type above: it is a defect then.
    """
    if isinstance(error, CopyError) and error.failures:
        codes = {exit_code(failure) for _, failure in error.failures}
        if INTEGRITY in codes:  # the gravest: it is no matter of trying again
            return INTEGRITY
        return codes.pop() if len(codes) == 1 else REFUSED
    if isinstance(error, FetchError) and error.wrong_bytes:
        return INTEGRITY
    if isinstance(error.__cause__, PermissionError):
        return REFUSED
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    raise error
