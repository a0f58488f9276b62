"""The commands about signatures: `sign`, `verify-signature`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlstate.cli.exit_codes import OK
from mlstate.cli.keys import chosen_keys
from mlstate.cli.options import Json, opened
from mlstate.cli.output import from_here, human_count, note, print_json, put

if TYPE_CHECKING:
    from mlstate.manifests.signed import ManifestSignature
    from mlstate.states import StateKey
    from mlstate.stores.read import StateStore

__all__ = ["sign", "verify_signature"]

_Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A manifest or a folder of them; or a store: a folder, s3://bucket/prefix, or "
        "github:owner/repo.",
    ),
]
_Keys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY",
        help="States of a store, or patterns; all by default.",
        show_default=False,
    ),
]


def sign(
    target: _Target,
    keys: _Keys = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            "-k",
            envvar="MLSTATE_SIGNING_KEY",
            show_envvar=True,
            metavar="FILE",
            help="The private SSH key, or the public key of one that ssh-agent holds.",
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Sign a manifest, or the states of a store, with an SSH key.

    Of a manifest this writes MANIFEST.sig beside it, of a folder of them for each. Of a store the
    signature goes into each state file. ssh-keygen signs, so agents and hardware keys work.
    """
    from mlstate.operations.sign import sign as sign_target

    place, chosen = _opened(target, keys)
    done = sign_target(place, key, keys=chosen)
    if as_json:
        print_json("sign", {"signatures": done})
        return OK
    for signed in done:
        put(from_here(signed.path) if chosen is not None else f"{from_here(signed.path)}.sig")
        note(f"{_about(signed)}, signed with {signed.key_type} key {signed.fingerprint}")
    return OK


def verify_signature(
    target: _Target,
    keys: _Keys = None,
    allowed_signers: Annotated[
        str | None,
        typer.Option(
            "--allowed-signers",
            show_default=False,
            metavar="FILE",
            help="Who may sign: an allowed-signers file, as git and ssh-keygen have it. By default "
            "as the config file and MLSTATE_REQUIRE_SIGNATURE say.",
        ),
    ] = None,
    revoked_keys: Annotated[
        str | None,
        typer.Option(
            "--revoked-keys",
            envvar="MLSTATE_REVOKED_KEYS",
            show_envvar=True,
            metavar="FILE",
            help="Keys whose signatures are good no more.",
        ),
    ] = None,
    signer: Annotated[
        str | None, typer.Option("--signer", metavar="NAME", help="Who has to have signed.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check the signature of a manifest, or of the states of a store.

    Each has to be of this very file, and of someone who may sign. Exit code 4 if one is not good.
    Bytes of weights are checked by mlstate verify.
    """
    from mlstate.operations.sign import verify_signature as check

    place, chosen = _opened(target, keys)
    good = check(
        place,
        allowed_signers=allowed_signers,
        revoked_keys=revoked_keys,
        signer=signer,
        keys=chosen,
    )
    if as_json:
        print_json("verify-signature", {"signatures": good})
        return OK
    for signed in good:
        put(f"{from_here(signed.path)}  signed by {signed.signer}")
        note(f"{_about(signed)}, {signed.key_type} key {signed.fingerprint}")
    return OK


def _opened(target: str, keys: list[str] | None) -> tuple[str | StateStore, list[StateKey] | None]:
    """What is signed: the path of a manifest, or a store and its states."""
    from mlstate.stores.open import is_manifest

    if is_manifest(target):
        if keys:
            raise typer.BadParameter(f"{target} is a manifest, and is signed as a whole")
        return target, None
    store = opened(target, quiet=True)
    return store, chosen_keys(store, keys or [], everything=not keys)


def _about(signed: ManifestSignature) -> str:
    serial = "no serial" if signed.serial is None else f"serial {signed.serial}"
    what = signed.digest or human_count(signed.states, "state")
    return f"{what}, {serial}"
