"""`sign` and `verify_signature`: signatures of manifests, made by ssh-keygen and checked here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mlstate import settings
from mlstate.errors import FormatError, SignatureError
from mlstate.locations import local_path
from mlstate.manifests import Manifest, content_of, manifest_files, signature_file
from mlstate.manifests.signed import ManifestSignature, check_file, serial_of, signers_of
from mlstate.objects.beside import temporary_beside
from mlstate.objects.durable import write_file
from mlstate.phrases import Phrase
from mlstate.signatures.crypto import check_signed
from mlstate.signatures.policy import SignaturePolicy
from mlstate.signatures.sshsig import NAMESPACE, SshSignature, parse_signature

__all__ = ["sign", "verify_signature"]

_PathLike = str | os.PathLike[str]


def sign(manifest: _PathLike, key: _PathLike) -> list[ManifestSignature]:
    """Sign a manifest with an SSH key: writes ``NAME.toml.sig`` beside it.

    ssh-keygen signs, so keys of an agent and of hardware work: give the public key then, and
    ssh-keygen asks for what it needs on the terminal.

    Args:
        manifest: A manifest, or a folder of them: each file gets a signature of its own.
        key: The private key, or the public key of one that an agent holds.

    Returns:
        What was signed, file by file.

    Raises:
        ManifestError: A file is no manifest; nothing was signed.
        SignatureError: ssh-keygen is missing or did not sign; what it signed before stays signed.
    """
    files = []
    for path in manifest_files(local_path(manifest)):
        content = content_of(path)
        read = Manifest.parse(content, str(path))
        files.append((path, content, read, serial_of(read, path)))
    done = []
    for path, content, read, serial in files:
        armoured = _signed(content, local_path(key), path)
        parsed = parse_signature(armoured, str(path))
        _check_own(parsed, content)
        target = signature_file(path)
        temporary = temporary_beside(target)
        write_file(target, [armoured], temporary=temporary, read_only=False)
        public, count = parsed.key, len(read.states)
        done.append(
            ManifestSignature(str(path), None, public.fingerprint, public.kind, count, serial)
        )
    return done


def _signed(content: bytes, key: Path, path: Path) -> bytes:
    """The signature file for some bytes, as ssh-keygen writes it."""
    # On a terminal it says when a hardware key is to be touched, so it may speak there.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    quiet = [] if terminal else ["-q"]
    command = ["ssh-keygen", *quiet, "-Y", "sign", "-n", NAMESPACE, "-f", str(key)]
    try:
        done = subprocess.run(
            command,
            input=content,
            stdout=subprocess.PIPE,
            stderr=None if terminal else subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise SignatureError(
            "ssh-keygen, which signs, cannot be run",
            path=path,
            found=error,
            remedy="install OpenSSH: apt install openssh-client, say",
        ) from error
    if done.returncode:
        said = (done.stderr or b"").decode(errors="replace").strip()
        raise SignatureError(
            "ssh-keygen did not sign; the manifest is as it was",
            path=path,
            found=said or None,
            remedy=Phrase(
                "give the private key, or the public key of one that ssh-agent holds",
                "give --key a private key, or the public key of one that ssh-agent holds",
            ),
        )
    return done.stdout


def _check_own(parsed: SshSignature, content: bytes) -> None:
    """Check what ssh-keygen wrote, where that can be done: it is to be good for others."""
    try:
        import cryptography  # noqa: F401
    except ImportError:  # signing works without it
        return
    check_signed(parsed, content)


def verify_signature(
    manifest: _PathLike,
    *,
    allowed_signers: _PathLike | None = None,
    revoked_keys: _PathLike | None = None,
    signer: str | None = None,
) -> list[ManifestSignature]:
    """Check the signature of a manifest. Serial numbers are told, and not compared.

    Needs ``pip install 'mlstate[sign]'``.

    Args:
        manifest: A manifest, or a folder of them: each file needs a signature of its own.
        allowed_signers: An allowed-signers file, as git and ssh-keygen have it. By default the one
            that MLSTATE_REQUIRE_SIGNATURE names.
        revoked_keys: A list of public keys that are not good any more, whatever the other file
            says. By default the one that MLSTATE_REVOKED_KEYS names, if there is one.
        signer: Who has to have signed. By default anyone who is allowed to.

    Returns:
        Who signed, file by file.

    Raises:
        SignatureError: A file has no good signature; the error says whose it is, and why not.
        ManifestError: There is no such manifest, or it cannot be read.
        FormatError: The allowed signers or the revoked keys cannot be read.
    """
    allowed = settings.required_signature() if allowed_signers is None else allowed_signers
    if allowed is None:
        raise FormatError(
            "a signature is checked against a list of those who may sign",
            path=manifest,
            remedy=Phrase(
                "give allowed_signers=, or set MLSTATE_REQUIRE_SIGNATURE",
                "give --allowed-signers FILE, or set MLSTATE_REQUIRE_SIGNATURE",
            ),
        )
    signers = signers_of(SignaturePolicy(allowed, revoked_keys, signer))
    return [check_file(path, signers)[1] for path in manifest_files(local_path(manifest))]
