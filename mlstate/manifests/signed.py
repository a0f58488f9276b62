"""Manifests with their signatures: the files are read once, and nothing is parsed before its check.

What is checked are the bytes that are parsed afterwards, so nobody can exchange them in between.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlstate import settings
from mlstate.digests import Digest
from mlstate.errors import FormatError, ManifestError, SignatureError, concerning
from mlstate.format import layout
from mlstate.locations import local_path
from mlstate.manifests import Manifest, content_of, signature_file
from mlstate.manifests.entries import ManifestContent
from mlstate.manifests.parse import check_state_content
from mlstate.manifests.serials import MAX_SERIAL, Sighting, check_serials, keep_serials
from mlstate.manifests.state_serials import see_serial
from mlstate.objects.durable import read_small
from mlstate.phrases import Phrase
from mlstate.signatures.allowed import parse_allowed_signers
from mlstate.signatures.check import Signers
from mlstate.signatures.inline import split_signature
from mlstate.signatures.lines import MAX_FILE
from mlstate.signatures.policy import ManifestFile, SignaturePolicy
from mlstate.signatures.revoked import parse_revoked_keys
from mlstate.signatures.sshsig import MAX_SIGNATURE
from mlstate.states import StateKey

__all__ = [
    "ManifestSignature",
    "check_file",
    "read_signature",
    "read_signed",
    "serial_of",
    "signature_of",
    "signers_of",
]


@dataclass(frozen=True)
class ManifestSignature:
    """A signed manifest file.

    Attributes:
        path: The manifest.
        signer: Who signed it, as the allowed-signers file has it; None right after signing.
        fingerprint: The fingerprint of the key, as ``ssh-keygen -l`` prints it.
        key_type: The type of the key, such as ``ED25519``.
        states: The number of states that the manifest lists.
        serial: Its serial number; None if it has none.
        key: The state, of the state file of a store; None of a manifest.
        digest: The digest that it names for that state, or None.
    """

    path: str
    signer: str | None
    fingerprint: str
    key_type: str
    states: int
    serial: int | None
    key: StateKey | None = None
    digest: Digest | None = None


def signers_of(policy: SignaturePolicy) -> Signers:
    """Read the files of a policy.

    Raises:
        FormatError: One of them is not there, cannot be read, or says what is not supported.
    """
    path = local_path(policy.allowed_signers)
    allowed = parse_allowed_signers(_key_file(path, "allowed signers"), str(path))
    revoked_path = settings.revoked_keys() if policy.revoked_keys is None else policy.revoked_keys
    if revoked_path is None:
        return Signers(allowed, signer=policy.signer, origin=str(path))
    revoked_path = local_path(revoked_path)
    revoked = parse_revoked_keys(_key_file(revoked_path, "revoked keys"), str(revoked_path))
    return Signers(allowed, revoked, policy.signer, str(path))


def _key_file(path: Path, what: str) -> bytes:
    try:
        data = read_small(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise FormatError(
            f"there is no file of {what} here" if missing else f"the {what} cannot be read",
            path=path,
            found=None if missing else error,
            remedy="check the path" if missing else None,
        ) from error
    return data[: MAX_FILE + 1]


def read_signed(files: Iterable[ManifestFile]) -> Manifest:
    """Read manifests, as `Manifest.read` does, of which files need a good signature.

    Args:
        files: The files, each with whose signatures are good.

    Raises:
        SignatureError: A file has no good signature, or a higher serial number was seen before.
        ManifestError: As for `Manifest.read`.
        FormatError: The files of a policy cannot be read.
    """
    manifests: list[Manifest] = []
    sightings: list[Sighting] = []
    signers: dict[SignaturePolicy, Signers] = {}
    for file in files:
        if file.policy is None:
            manifests.append(Manifest.parse(content_of(file.path), str(file.path)))
            continue
        if file.policy not in signers:
            signers[file.policy] = signers_of(file.policy)
        manifest, signature = check_file(file.path, signers[file.policy])
        manifests.append(manifest)
        name, path = _name(manifest, file.path), os.path.realpath(file.path)
        if file.store is not None:  # whose own reader has seen it, perhaps
            # Elsewhere in the store nobody has seen a newer version of it.
            key = layout.key_of_state_path(file.path.relative_to(file.store).as_posix())
            check_state_content(manifest, key, str(file.path))
            see_serial(path, signature.serial, str(signature.signer))
        if file.store is None or name is not None:  # a manifest among the state files is one
            sightings.append(Sighting(str(signature.signer), name, path, signature.serial))
    check_serials(sightings)
    read = Manifest.joined(manifests)
    keep_serials(sightings)
    return read


def check_file(file: Path, signers: Signers) -> tuple[Manifest, ManifestSignature]:
    """Read a manifest file and check its signature; rollback is not looked at.

    The signature of a state file is at its end; otherwise it is in the file beside it.

    Raises:
        SignatureError: It has no good signature.
        ManifestError: It is signed, but no manifest.
    """
    signed, signature = split_signature(content_of(file), str(file))
    where = file if signature is not None else signature_file(file)
    with concerning(path=where):
        found = signature_of(file) if signature is None else signature
        signer, key = signers.check(signed, found, str(where))
    manifest = Manifest.parse(signed, str(file))
    report = ManifestSignature(
        path=str(file),
        signer=signer,
        fingerprint=key.fingerprint,
        key_type=key.kind,
        states=len(manifest.states),
        serial=serial_of(manifest, file),
    )
    return manifest, report


def signature_of(file: Path) -> bytes:
    """The content of the signature file beside a manifest, or so much of it as shows it too large.

    Raises:
        SignatureError: There is none, or it cannot be read.
    """
    beside = signature_file(file)
    found = read_signature(beside)
    if found is None:
        raise SignatureError(
            "this manifest is not signed, and a signature is required",
            path=file,
            expected=f"its signature, {beside.name}, beside it",
            remedy="get the signature from the manifest's author, or, if that is you, "
            + Phrase(
                "sign it: mlstate.sign(manifest, key)", "sign it: mlstate sign FILE.toml --key KEY"
            ),
        )
    return found


def read_signature(path: Path) -> bytes | None:
    """The content of a signature file, or so much of it as shows it too large; None without one.

    Raises:
        SignatureError: It cannot be read, or something else bears its name.
    """
    try:
        return read_small(path)[: MAX_SIGNATURE + 1]
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        raise SignatureError(
            "the signature of a manifest cannot be read",
            path=path,
            found=error.message if isinstance(error, FormatError) else error,
        ) from error


def serial_of(manifest: ManifestContent, file: str | os.PathLike[str]) -> int | None:
    """The serial number that a manifest file says at its top; None if it has none.

    Raises:
        ManifestError: It is no whole number from 0 to 2^63 - 1.
    """
    serial: Any = manifest.unknown.get("serial")
    if serial is not None and (type(serial) is not int or not 0 <= serial <= MAX_SERIAL):
        raise ManifestError(
            "the serial number of a manifest is a whole number",
            path=file,
            key="serial",
            expected="serial = 0 or higher, below 2^63",
            found=type(serial).__name__ if type(serial) is not int else "another number",
        )
    return serial


def _name(manifest: Manifest, file: Path) -> str | None:
    """The name that a manifest file says at its top; None if it has none."""
    name: Any = manifest.unknown.get("name")
    if name is not None and (not isinstance(name, str) or not 0 < len(name) <= 200):
        raise ManifestError(
            "the name of a manifest is a text of 1 to 200 characters", path=file, key="name"
        )
    return name
