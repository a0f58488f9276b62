"""The commands about signatures: `sign`, `verify-signature`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.exit_codes import OK
from mlstate.cli.options import Json
from mlstate.cli.output import human_count, note, print_json, put

if TYPE_CHECKING:
    from mlstate.manifests.signed import ManifestSignature

__all__ = ["sign", "verify_signature"]

_Manifest = Annotated[
    str, typer.Argument(metavar="MANIFEST", help="A manifest, or a folder of them.")
]


def sign(
    manifest: _Manifest,
    key: Annotated[
        str,
        typer.Option(
            "--key",
            "-k",
            metavar="FILE",
            help="The private SSH key, or the public key of one that ssh-agent holds.",
        ),
    ],
    as_json: Json = False,
) -> int:
    """Sign a manifest with an SSH key: writes MANIFEST.sig beside it.

    ssh-keygen signs, so agents and hardware keys work. Of a folder each file is signed.
    """
    from mlstate.operations.sign import sign as sign_manifest

    done = sign_manifest(manifest, key)
    if as_json:
        print_json("sign", {"signatures": done})
        return OK
    for signed in done:
        put(f"{signed.path}.sig")
        note(f"{_about(signed)}, signed with {signed.key_type} key {signed.fingerprint}")
    return OK


def verify_signature(
    manifest: _Manifest,
    allowed_signers: Annotated[
        str | None,
        typer.Option(
            "--allowed-signers",
            envvar="MLSTATE_REQUIRE_SIGNATURE",
            show_envvar=True,
            metavar="FILE",
            help="Who may sign: an allowed-signers file, as git and ssh-keygen have it.",
        ),
    ] = None,
    revoked_keys: Annotated[
        str | None,
        typer.Option(
            "--revoked-keys",
            envvar="MLSTATE_REVOKED_KEYS",
            show_envvar=True,
            metavar="FILE",
            help="Public keys whose signatures are good no more.",
        ),
    ] = None,
    signer: Annotated[
        str | None, typer.Option("--signer", metavar="NAME", help="Who has to have signed.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check the signature of a manifest: that it is of this file, and of someone who may sign.

    Exit code 4 if it is not good. Bytes of weights are checked by mlstate verify.
    """
    from mlstate.operations.sign import verify_signature as check

    good = check(
        manifest, allowed_signers=allowed_signers, revoked_keys=revoked_keys, signer=signer
    )
    if as_json:
        print_json("verify-signature", {"signatures": good})
        return OK
    for signed in good:
        put(f"{signed.path}  signed by {signed.signer}")
        note(f"{_about(signed)}, {signed.key_type} key {signed.fingerprint}")
    return OK


def _about(signed: ManifestSignature) -> str:
    serial = "no serial" if signed.serial is None else f"serial {signed.serial}"
    return f"{human_count(signed.states, 'state')}, {serial}"
