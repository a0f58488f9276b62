"""A signature at the end of the text that it is of: that of a state file, or of a pointer.

It is in the same file, so that no crash and no race leaves one without the other. Each line of the
file that ssh-keygen writes stands in a comment of TOML::

    # -----BEGIN SSH SIGNATURE-----
    # U1NIU0lHAAAAAQ...
    # -----END SSH SIGNATURE-----

What is signed are all bytes before these lines.
"""

from __future__ import annotations

from mlstate.errors import SignatureError

__all__ = ["is_signed", "join_signature", "split_signature"]

_MARK = b"# "
_BEGIN = b"# -----BEGIN SSH SIGNATURE-----\n"
_END = b"# -----END SSH SIGNATURE-----\n"


def split_signature(data: bytes, origin: str) -> tuple[bytes, bytes | None]:
    r"""The bytes that are signed, and the signature file; None if no signature is in the text.

    Args:
        data: The content of a file.
        origin: Where it is from, for errors.

    Raises:
        SignatureError: A signature begins in it, and what follows is not one to the last byte.

    Example:
        >>> split_signature(b"version = 1\n", "weights.toml")
        (b'version = 1\n', None)
    """
    start = data.rfind(b"\n" + _BEGIN) + 1
    if not start and not data.startswith(_BEGIN):
        return data, None
    lines = data[start:].splitlines(keepends=True)
    whole = data.endswith(_END) and data.count(_END, start) == 1
    if not whole or not all(line.startswith(_MARK) and line.endswith(b"\n") for line in lines):
        raise SignatureError(
            "the signature at the end of this file is damaged, or something follows it",
            path=origin,
            expected="lines of a comment, down to END SSH SIGNATURE, and nothing after it",
            remedy="get the file again, or have it signed again",
        )
    return data[:start], b"".join(line.removeprefix(_MARK) for line in lines)


def is_signed(data: bytes) -> bool:
    """Whether a text has a signature at its end, good or not."""
    try:
        return split_signature(data, "")[1] is not None
    except SignatureError:
        return False


def join_signature(content: bytes, signature: bytes) -> bytes:
    """A text with its signature at the end: the inverse of `split_signature`.

    Args:
        content: What was signed; it ends with a line break.
        signature: The file that ``ssh-keygen -Y sign`` writes.
    """
    return content + b"".join(_MARK + line + b"\n" for line in signature.strip().split(b"\n"))
