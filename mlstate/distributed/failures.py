"""Failures as texts in the rendezvous store: what a rank met, and the error that all raise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from mlstate import errors
from mlstate.errors import MlstateError, PeerError
from mlstate.shown import printable
from mlstate.states import StateKey

__all__ = ["ENDED", "ERROR", "LOST", "SILENT", "Failure", "failure_of"]

ERROR, ENDED, SILENT, LOST = "error", "ended", "silent", "lost"
"""Kinds: an exception, a process that ended, one that says nothing any more, and a connection that
is no more, to a rank that nobody can name."""

_MOST = 2000
_WORDS = {
    ENDED: ("the process of rank {rank} ended", "start the job again; see the log of that rank"),
    SILENT: (
        "rank {rank} has not been heard of",
        "see what holds that rank up; one that may take longer needs a larger "
        "MLSTATE_PEER_PATIENCE (seconds)",
    ),
    LOST: ("a connection to another rank broke", "start the job again; see the logs of the ranks"),
}


@dataclass(frozen=True)
class Failure:
    """What ended the work of all ranks.

    Attributes:
        rank: The rank that it happened to; None if nobody can tell.
        how: One of `ERROR`, `ENDED`, `SILENT`, `LOST`.
        kind: The name of the exception's type.
        message: What it says.
        fields: Of an error of mlstate, its attributes.
    """

    rank: int | None
    how: str
    kind: str = ""
    message: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_text(self) -> str:
        """The failure as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str | bytes) -> Failure:
        """Read what `to_text` wrote."""
        return cls(**json.loads(text))

    def error(self, after: str) -> MlstateError:
        """The error that a rank raises. ``after`` says how things are now: "nothing was loaded".

        What an error of mlstate says is true of the store, the state or the model, and each rank
        raises the same type. All else happened to one rank, and is a `PeerError` of the others.
        """
        kind = getattr(errors, self.kind, None) if self.how == ERROR else None
        if isinstance(kind, type) and issubclass(kind, MlstateError) and kind is not PeerError:
            found = kind(self.message)
            found.__dict__.update(self.fields)
            with suppress(MlstateError):
                if isinstance(found.key, str):
                    found.key = StateKey.parse(found.key)
            found.add_note(f"rank {self.rank} met it, and it is the error of all ranks; {after}")
            return found
        if self.how == ERROR:
            return PeerError(
                f"rank {self.rank} failed, and with it all ranks; {after}",
                rank=self.rank,
                found=f"{self.kind}: {self.message}" if self.kind else self.message,
            )
        message, remedy = _WORDS[self.how]
        return PeerError(
            f"{message.format(rank=self.rank)}; {after}",
            rank=self.rank,
            found=self.message or None,
            remedy=remedy,
        )


def failure_of(rank: int, error: BaseException) -> Failure:
    """The failure that an exception of this rank is to all."""
    if isinstance(error, MlstateError):
        fields = {name: _plain(value) for name, value in vars(error).items() if name != "message"}
        return Failure(rank, ERROR, type(error).__name__, _brief(error.message), fields)
    return Failure(rank, ERROR, type(error).__name__, _brief(str(error)))


def _plain(value: Any) -> Any:
    """A value as JSON has it, a text of anything else."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value[:_MOST]]
    return _brief(str(value))


def _brief(text: str) -> str:
    return printable(text)[:_MOST]
