"""Whose signatures are good, as a program says it: by the paths of the files that list them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ManifestFile", "SignaturePolicy"]


@dataclass(frozen=True)
class SignaturePolicy:
    """Whose signatures are good, by the files that say so.

    Attributes:
        allowed_signers: The path of an allowed-signers file, as git and ssh-keygen have it.
        revoked_keys: The path of a list of revoked public keys; None: that of the setting
            MLSTATE_REVOKED_KEYS, if there is one.
        signer: The principal that has to have signed; None: any that the file allows.
    """

    allowed_signers: str | os.PathLike[str]
    revoked_keys: str | os.PathLike[str] | None = None
    signer: str | None = None


@dataclass(frozen=True)
class ManifestFile:
    """A manifest file that is to be read.

    Attributes:
        path: The file.
        policy: Whose signatures of it are good; None: it needs none.
        store: The folder of the store that it is a state file of; None: it is of none.
    """

    path: Path
    policy: SignaturePolicy | None = None
    store: Path | None = None
