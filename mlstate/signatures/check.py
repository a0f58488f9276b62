"""The check of one signature: allowed signers, revoked keys, and the arithmetic."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from time import time

from mlstate.errors import SignatureError
from mlstate.signatures.allowed import AllowedSigner
from mlstate.signatures.crypto import check_signed
from mlstate.signatures.keys import PublicKey
from mlstate.signatures.sshsig import NAMESPACE, SshSignature, parse_signature

__all__ = ["Signers"]


@dataclass(frozen=True)
class Signers:
    """What the files of a policy say.

    Attributes:
        allowed: The lines of the allowed-signers file.
        revoked: The keys that are not good any more, whatever else says that they are.
        signer: As for `SignaturePolicy`.
        origin: Where the allowed signers are from, for errors.
    """

    allowed: tuple[AllowedSigner, ...]
    revoked: Container[PublicKey] = ()
    signer: str | None = None
    origin: str | None = None

    def check(
        self, message: bytes, signature: bytes, origin: str, moment: float | None = None
    ) -> tuple[str, PublicKey]:
        """Check the signature of a message.

        Args:
            message: The bytes that were signed.
            signature: The content of the signature file.
            origin: The path of the signature file, for errors.
            moment: The time at which keys have to be good; None: now.

        Returns:
            Who signed, and with which key.

        Raises:
            SignatureError: The signature is damaged, for another purpose, of another message, or
                of a key that is not allowed, not good at that time, or revoked.
        """
        parsed = parse_signature(signature, origin)
        try:
            self._check_key(parsed, time() if moment is None else moment)
            check_signed(parsed, message)
            return self._principal(parsed, time() if moment is None else moment), parsed.key
        except SignatureError as error:
            error.path = error.path or origin
            error.fingerprint = error.fingerprint or parsed.key.fingerprint
            error.signer = error.signer or self._name(parsed.key)
            raise

    def _check_key(self, parsed: SshSignature, moment: float) -> None:
        if parsed.namespace != NAMESPACE:
            raise SignatureError(
                "this signature was made for another purpose",
                expected=f"the namespace {NAMESPACE}",
                found=f"the namespace {parsed.namespace}",
                remedy="sign the manifest with mlstate sign, or ssh-keygen -Y sign -n mlstate",
            )
        if parsed.key in self.revoked:
            raise SignatureError(
                "the key that signed this is revoked",
                remedy="have the manifest signed with another key; and ask what became of this one",
            )
        lines = [line for line in self.allowed if line.key == parsed.key]
        if not lines:
            raise SignatureError(
                "this is signed by a key that is not allowed to",
                expected=f"a key in {self.origin}" if self.origin else None,
                remedy="if its owner may sign, add a line with the name and the public key",
            )
        objections = [line.objection(NAMESPACE, self.signer, moment) for line in lines]
        if all(objections):
            raise SignatureError(
                "the signer may not sign this, or not any more",
                expected=None if self.signer is None else f"a signature of {self.signer}",
                found="; ".join(filter(None, objections)),
                remedy="have it signed with a key that is good, or change what "
                + (f"{self.origin} says" if self.origin else "is allowed"),
            )

    def _principal(self, parsed: SshSignature, moment: float) -> str:
        if self.signer is not None:
            return self.signer
        good = (
            line.principals
            for line in self.allowed
            if line.key == parsed.key and line.objection(NAMESPACE, None, moment) is None
        )
        return next(good, "") or parsed.key.fingerprint

    def _name(self, key: PublicKey) -> str | None:
        """Whose key it is, good or not."""
        return next((line.principals for line in self.allowed if line.key == key), None)
