"""Texts that Python and the command line say differently: ``overwrite=True``, ``--overwrite``."""

from __future__ import annotations

import shlex
from typing import Any

__all__ = [
    "ANY_STORE",
    "FOLDER",
    "FOLDER_OR_BUCKET",
    "OVERWRITE",
    "Phrase",
    "called",
    "flag",
    "in_shell",
    "locking",
]


class Phrase(str):
    """A text in the words of Python, with a second wording for the command line.

    It is a `str`, so whoever prints an error or reads its remedy gets the words of Python. Added
    to another text it stays a phrase; an f-string keeps the words of Python alone.

    Attributes:
        shell: The text in the words of the command line.

    Example:
        >>> remedy = "choose another name, or " + Phrase("overwrite=True", "--overwrite")
        >>> remedy, remedy.shell
        ('choose another name, or overwrite=True', 'choose another name, or --overwrite')
    """

    shell: str

    def __new__(cls, python: str, shell: str) -> Phrase:
        """A text in both wordings."""
        phrase = super().__new__(cls, python)
        phrase.shell = shell
        return phrase

    def __add__(self, other: str) -> Phrase:
        return Phrase(str(self) + str(other), self.shell + in_shell(other))

    def __radd__(self, other: str) -> Phrase:
        return Phrase(str(other) + str(self), in_shell(other) + self.shell)

    def __getnewargs__(self) -> Any:
        return str(self), self.shell


def flag(name: str) -> Phrase:
    """An argument that is True: ``overwrite=True``, or ``--overwrite``."""
    return Phrase(f"{name}=True", f"--{name}")


def called(value: object) -> str:
    """A value as text: its `phrase`, where it has one, as stores have.

    Their `repr` is plain text. Others send that on by its exact type: a test that fails on another
    machine, say.
    """
    phrase = getattr(value, "phrase", None)
    return phrase if isinstance(phrase, Phrase) else str(value)


def in_shell(value: object) -> str:
    """A value as text, in the words of the command line where it has such."""
    text = value if isinstance(value, Phrase) else called(value)
    return text.shell if isinstance(text, Phrase) else text


def locking(key: object, manifest: str | None = None) -> Phrase:
    """How a state is pinned: in this manifest, or in one of the reader's own.

    Example:
        >>> locking("pytorch.mlp.base", "weights.toml").shell
        'mlstate lock weights.toml pytorch.mlp.base'
    """
    name = repr(str(key))
    if manifest is None:
        return Phrase(
            f"mlstate.lock({OWN_MANIFEST!r}, [StateKey.parse({name})], source=Store())",
            f"mlstate lock {OWN_MANIFEST} {key}",
        )
    return Phrase(
        f"mlstate.lock({manifest!r}, [StateKey.parse({name})])",
        f"mlstate lock {shlex.quote(manifest)} {key}",
    )


OVERWRITE = flag("overwrite")
OWN_MANIFEST = "weights.toml"
"""What a manifest of the reader's own may be called, where a remedy has to name one."""
FOLDER = Phrase("a LocalStateStore", "a folder")
FOLDER_OR_BUCKET = FOLDER + " or " + Phrase("an S3StateStore", "a bucket")
ANY_STORE = Phrase(
    "a LocalStateStore, MemoryStateStore, S3StateStore or GitHubReleaseStore",
    "a folder, s3://... or github:owner/repo",
)
