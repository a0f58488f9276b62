"""The arithmetic of a signature, done by the library `cryptography` (extra ``sign``)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlstate.errors import SignatureError
from mlstate.signatures.keys import KEY_TYPES, PublicKey
from mlstate.signatures.sshsig import SshSignature
from mlstate.signatures.wire import WireError, WireReader

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["RSA_BITS", "check_signed"]

RSA_BITS = range(2048, 16384 + 1)
"""The sizes of RSA keys that are accepted."""

_SK = "@openssh.com"


def check_signed(signature: SshSignature, message: bytes) -> None:
    """Check that the key of a signature signed a message.

    Raises:
        SignatureError: It did not, its type is not supported, or `cryptography` is missing.
    """
    key = signature.key
    verify = _METHODS.get(key.type)
    if verify is None:
        certificate = "-cert-v0" in key.type
        raise SignatureError(
            "a certificate signed this, and certificates are not supported"
            if certificate
            else "a key of this type signed this, and the type is not supported",
            fingerprint=key.fingerprint,
            expected=", ".join(KEY_TYPES),
            found=key.type,
            remedy="sign with a plain key" if certificate else "sign with a key of another type",
        )
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    except ImportError:
        raise SignatureError(
            "signatures are verified by cryptography, which is not installed",
            remedy="pip install 'mlstate[sign]'",
        ) from None
    try:
        verify(key, signature.signature, signature.signed_bytes(message))
    except WireError as error:
        raise _refused(key, str(error)) from None
    except InvalidSignature:
        raise SignatureError(
            "this is not what was signed: the file was changed after it was signed, or the "
            "signature is another file's",
            fingerprint=key.fingerprint,
            remedy="get both files again from their author, or have the manifest signed again",
        ) from None
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm) as error:
        raise _refused(key, str(error) or type(error).__name__) from None


def _refused(key: PublicKey, why: str) -> SignatureError:
    return SignatureError(
        "the key or the signature in a signature file is not valid",
        fingerprint=key.fingerprint,
        found=why,
        remedy="have the manifest signed again",
    )


def _fields(key: PublicKey) -> WireReader:
    """The values of a key, after the name of its type."""
    reader = WireReader(key.blob)
    reader.text()
    return reader


def _raw(data: bytes, *types: str) -> tuple[str, bytes, WireReader]:
    """The algorithm of a signature, its bytes, and what follows them."""
    reader = WireReader(data)
    algorithm = reader.text()
    if algorithm not in types:
        raise WireError(f"its algorithm is {algorithm}, where {' or '.join(types)} is to be")
    return algorithm, reader.string(), reader


def _ed25519(key: PublicKey, signature: bytes, signed: bytes) -> None:
    _, raw, rest = _raw(signature, key.type)
    rest.end()
    _check_ed25519(_fields(key), raw, signed)


def _check_ed25519(fields: WireReader, raw: bytes, signed: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = Ed25519PublicKey.from_public_bytes(fields.string())
    fields.end()
    public.verify(raw, signed)


def _ecdsa(key: PublicKey, signature: bytes, signed: bytes) -> None:
    _, raw, rest = _raw(signature, key.type)
    rest.end()
    fields = _fields(key)
    public = _ecdsa_key(fields, key.type.rpartition("-")[2])
    fields.end()
    _check_ecdsa(public, raw, signed)


def _ecdsa_key(fields: WireReader, curve_name: str) -> ec.EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    curves: dict[str, Callable[[], ec.EllipticCurve]] = {
        "nistp256": ec.SECP256R1,
        "nistp384": ec.SECP384R1,
        "nistp521": ec.SECP521R1,
    }
    if fields.text() != curve_name:
        raise WireError("the key is on another curve than its type says")
    point = fields.string()
    if point[:1] != b"\x04":  # as OpenSSH has it: both coordinates
        raise WireError("its point is not written out")
    return ec.EllipticCurvePublicKey.from_encoded_point(curves[curve_name](), point)


def _check_ecdsa(public: ec.EllipticCurvePublicKey, raw: bytes, signed: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    by_size = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    reader = WireReader(raw)
    r, s = reader.mpint(), reader.mpint()
    reader.end()
    public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(by_size[public.key_size]))


def _rsa(key: PublicKey, signature: bytes, signed: bytes) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    algorithm, raw, rest = _raw(signature, "rsa-sha2-512", "rsa-sha2-256")
    rest.end()
    fields = _fields(key)
    exponent, modulus = fields.mpint(), fields.mpint()
    fields.end()
    if modulus.bit_length() not in RSA_BITS:
        raise WireError(f"an RSA key of {modulus.bit_length()} bits, where 2048 to 16384 are taken")
    if exponent.bit_length() > 64:
        raise WireError("the exponent of an RSA key is too large")
    public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    hash_ = hashes.SHA512() if algorithm == "rsa-sha2-512" else hashes.SHA256()
    whole = raw.rjust((modulus.bit_length() + 7) // 8, b"\0")  # OpenSSH takes shorter ones, too
    public.verify(whole, signed, padding.PKCS1v15(), hash_)


def _sk_ed25519(key: PublicKey, signature: bytes, signed: bytes) -> None:
    _, raw, rest = _raw(signature, key.type)
    fields = _fields(key)
    public = fields.string()
    by_device = _signed_by_device(fields, rest, signed)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    Ed25519PublicKey.from_public_bytes(public).verify(raw, by_device)


def _sk_ecdsa(key: PublicKey, signature: bytes, signed: bytes) -> None:
    _, raw, rest = _raw(signature, key.type)
    fields = _fields(key)
    public = _ecdsa_key(fields, "nistp256")
    _check_ecdsa(public, raw, _signed_by_device(fields, rest, signed))


def _signed_by_device(fields: WireReader, rest: WireReader, signed: bytes) -> bytes:
    """What a hardware key signs: hashes of its application and of the bytes, with its counter."""
    application = fields.string()
    fields.end()
    flags_and_counter = rest.take(5)
    rest.end()
    hashed = hashlib.sha256(application).digest(), hashlib.sha256(signed).digest()
    return hashed[0] + flags_and_counter + hashed[1]


_METHODS: dict[str, Callable[[PublicKey, bytes, bytes], None]] = {
    "ssh-ed25519": _ed25519,
    "ecdsa-sha2-nistp256": _ecdsa,
    "ecdsa-sha2-nistp384": _ecdsa,
    "ecdsa-sha2-nistp521": _ecdsa,
    "ssh-rsa": _rsa,
    "sk-ssh-ed25519" + _SK: _sk_ed25519,
    "sk-ecdsa-sha2-nistp256" + _SK: _sk_ecdsa,
}
