"""`sign` and `verify_signature`: signatures of manifests, made by ssh-keygen and checked here.

The state files of folders and buckets, and the pointers of releases, are manifests of one state.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mlstate import settings
from mlstate.errors import (
    FormatError,
    ManifestError,
    MlstateError,
    ReadOnlyStoreError,
    StateNotFoundError,
)
from mlstate.locations import local_path
from mlstate.manifests import Manifest, content_of, manifest_files, signature_file
from mlstate.manifests.keygen import sign_bytes
from mlstate.manifests.required import places_of, required_policy
from mlstate.manifests.signed import ManifestSignature, check_file, serial_of, signers_of
from mlstate.manifests.state_signatures import StateSignatures, signed_again
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import write_file
from mlstate.phrases import Phrase
from mlstate.signatures.check import Signers
from mlstate.signatures.inline import is_signed
from mlstate.states import StateKey, check_keys
from mlstate.stores.read import StateStore
from mlstate.stores.save import SavingStore

__all__ = ["sign", "verify_signature"]

_PathLike = str | os.PathLike[str]


def sign(
    target: _PathLike | StateStore,
    key: _PathLike | None = None,
    *,
    keys: Iterable[StateKey] | None = None,
) -> list[ManifestSignature]:
    """Sign a manifest, or the states of a store, with an SSH key.

    Of a manifest a file ``NAME.toml.sig`` is written beside it. Of a folder, a bucket or the
    releases of a repository, the signature goes to the end of each state file, or pointer, which
    gets a higher serial number. What is signed is what is there: look at it first.

    ssh-keygen signs, so keys of an agent and of hardware work: give the public key then, and
    ssh-keygen asks for what it needs on the terminal.

    Args:
        target: A manifest, or a folder of them: each file gets a signature of its own. Or a
            `LocalStateStore`, an `S3StateStore` or a `GitHubReleaseStore`.
        key: The private key, or the public key of one that an agent holds. By default that of
            MLSTATE_SIGNING_KEY.
        keys: Which states of a store; all by default.

    Returns:
        What was signed, file by file.

    Raises:
        ManifestError: A file is no manifest; of manifests nothing was signed.
        SignatureError: ssh-keygen is missing or did not sign; what it signed before stays signed.
        StateNotFoundError: There is no such state.
        ReadOnlyStoreError: The store has nothing that could be signed.
        FormatError: No key is given.
    """
    chosen = settings.signing_key() if key is None else local_path(key)
    if chosen is None:
        raise FormatError(
            "a signature is made with a key",
            path=target,
            remedy=Phrase("give key=", "give --key FILE") + ", or set MLSTATE_SIGNING_KEY",
        )
    if isinstance(target, StateStore):
        states = target.get_state_keys() if keys is None else check_keys(keys)
        return [_sign_state(target, state, chosen) for state in states]
    if keys is not None:
        raise FormatError("a manifest is signed as a whole, not some of its states", path=target)
    return _sign_manifest(target, chosen)


def _sign_manifest(manifest: _PathLike, key: Path) -> list[ManifestSignature]:
    files = []
    for path in manifest_files(local_path(manifest)):
        content = content_of(path)
        if is_signed(content):
            raise ManifestError(
                "this manifest has a signature at its end, as the state file of a store does",
                path=path,
                remedy="remove the lines from BEGIN SSH SIGNATURE on, and sign it again",
            )
        read = Manifest.parse(content, str(path))
        files.append((path, content, read, serial_of(read, path)))
    done = []
    for path, content, read, serial in files:
        armoured, parsed = sign_bytes(content, key, str(path))
        target = signature_file(path)
        temporary = temporary_beside(target)
        write_file(target, [armoured], temporary=temporary, read_only=False)
        public, count = parsed.key, len(read.states)
        done.append(
            ManifestSignature(str(path), None, public.fingerprint, public.kind, count, serial)
        )
    return done


def _sign_state(store: StateStore, state: StateKey, key: Path) -> ManifestSignature:
    """Sign a state of a store, as it is: what others write meanwhile is read and signed anew."""
    while True:
        text = store.catalog.text(state)
        if text is None or not isinstance(store, SavingStore):
            raise _nothing_to_sign(store, state)
        new, report = signed_again(text, key)
        if store.saver.change(state, text.data, new):
            return report


def _nothing_to_sign(store: StateStore, state: StateKey) -> MlstateError:
    if not store.exists(state):
        return StateNotFoundError("there is no such state here", key=state, path=store)
    return ReadOnlyStoreError(
        "this state has no state file that could be signed",
        key=state,
        path=store,
        expected="a state that was saved into a folder, a bucket or a release",
        remedy="of a manifest give its path; copy a checkpoint of the older layout, and sign that",
    )


def verify_signature(
    target: _PathLike | StateStore,
    *,
    allowed_signers: _PathLike | None = None,
    revoked_keys: _PathLike | None = None,
    signer: str | None = None,
    keys: Iterable[StateKey] | None = None,
) -> list[ManifestSignature]:
    """Check the signature of a manifest, or of the states of a store.

    Serial numbers are told, and not compared. Needs ``pip install 'mlstate[sign]'``.

    Args:
        target: A manifest, or a folder of them: each file needs a signature of its own. Or a store,
            as for `sign`.
        allowed_signers: An allowed-signers file, as git and ssh-keygen have it. By default the one
            that MLSTATE_REQUIRE_SIGNATURE names.
        revoked_keys: A list of keys that are not good any more, whatever the other file says. By
            default the one that MLSTATE_REVOKED_KEYS names, if there is one.
        signer: Who has to have signed. By default anyone who is allowed to.
        keys: Which states of a store; all by default.

    Returns:
        Who signed, file by file.

    Raises:
        SignatureError: A file has no good signature; the error says whose it is, and why not.
        ManifestError: There is no such manifest, or it cannot be read.
        FormatError: The allowed signers or the revoked keys cannot be read.
        StateNotFoundError: There is no such state.
        ReadOnlyStoreError: A state of the store has no state file.
    """
    signers = _signers(target, allowed_signers, revoked_keys, signer)
    if not isinstance(target, StateStore):
        return [check_file(path, signers)[1] for path in manifest_files(local_path(target))]
    signatures = StateSignatures(signers)
    found = []
    for state in target.get_state_keys() if keys is None else check_keys(keys):
        text = target.catalog.text(state)
        if text is None:
            raise _nothing_to_sign(target, state)
        found.append(signatures.checked(text)[1])
    return found


def _signers(
    target: _PathLike | StateStore,
    allowed_signers: _PathLike | None,
    revoked_keys: _PathLike | None,
    signer: str | None,
) -> Signers:
    places = target.places if isinstance(target, StateStore) else places_of(target)
    policy = required_policy(allowed_signers, *places)
    if policy is None:
        raise FormatError(
            "a signature is checked against a list of those who may sign",
            path=target,
            remedy=Phrase(
                "give allowed_signers=, or set MLSTATE_REQUIRE_SIGNATURE",
                "give --allowed-signers FILE, or set MLSTATE_REQUIRE_SIGNATURE",
            ),
        )
    revoked = policy.revoked_keys if revoked_keys is None else revoked_keys
    asked = policy.signer if signer is None else signer
    return signers_of(replace(policy, revoked_keys=revoked, signer=asked))
