"""Whether manifests need a signature, and reading them accordingly."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mlstate import settings
from mlstate.errors import FormatError, SignatureError
from mlstate.manifests import Manifest
from mlstate.phrases import Phrase
from mlstate.signatures.policy import SignaturePolicy

__all__ = ["RequiredSignature", "read_required", "refuse_unsigned"]

RequiredSignature = str | os.PathLike[str] | SignaturePolicy | bool | None
"""An allowed-signers file or a policy; False: none; None: as MLSTATE_REQUIRE_SIGNATURE says."""


def _required(required: RequiredSignature) -> SignaturePolicy | None:
    """The policy that holds; None where no signature is needed."""
    if required is None:
        required = settings.required_signature() or False
    if required is False:
        return None
    if isinstance(required, SignaturePolicy):
        return required
    if not isinstance(required, str | os.PathLike) or not os.fspath(required):
        raise FormatError(
            "require_signature says whose signature is needed",
            expected="the path of an allowed-signers file, a SignaturePolicy, False or None",
            found=repr(required),
        )
    return SignaturePolicy(required)


def read_required(
    paths: Iterable[str | os.PathLike[str]],
    required: RequiredSignature,
    *,
    shipped: Path | None = None,
) -> Manifest:
    """Read manifests, as `Manifest.read` does, of which each file needs a signature if one is due.

    Args:
        paths: Files and folders.
        required: See `RequiredSignature`.
        shipped: A file or folder more, which needs no signature.

    Raises:
        SignatureError: A signature is needed, and a file has no good one.
        ManifestError: As for `Manifest.read`.
    """
    unsigned = () if shipped is None else (shipped,)
    policy = _required(required)
    if policy is None:
        return Manifest.read(*paths, *unsigned)
    from mlstate.manifests.signed import read_signed

    return read_signed(paths, policy, unsigned=unsigned)


def refuse_unsigned(manifest: Manifest, required: RequiredSignature) -> None:
    """Refuse a manifest that is a value already, where a signature is needed.

    Raises:
        SignatureError: It lists states, and the bytes that a signature would be of are not known.
    """
    if manifest.states and _required(required) is not None:
        raise SignatureError(
            "a manifest that was read or made already has no signature that could be checked",
            expected="the path of a signed manifest",
            found=f"a Manifest of {len(manifest.states)} states",
            remedy=Phrase(
                "give the path; or, for states that your own program vouches for, "
                "require_signature=False",
                "give the path",
            ),
        )
