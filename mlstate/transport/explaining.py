"""What goes wrong below, in our words: which never show a whole address."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from urllib3 import exceptions as problems

from mlstate.errors import TransportError

__all__ = ["explained"]


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what urllib3 raises into errors of ours, which never show a whole address.

    Raises:
        TransportError: Instead of urllib3's error.
    """
    try:
        yield
    except (problems.HTTPError, OSError, http.client.HTTPException) as error:
        if isinstance(error, TransportError):
            raise
        found = _explain(error)
        found.path = address
        raise found from None  # urllib3's errors have the whole address in them


def _explain(error: BaseException) -> TransportError:
    cause = _cause(error)
    match error:
        case problems.ProxyError():
            refused = next((code for code in ("407", "403") if code in str(cause)), None)
            return TransportError(
                "the proxy does not let us through",
                transient=refused is None,
                found=None if refused is None else f"HTTP {refused} from the proxy",
                remedy="look at HTTP_PROXY, HTTPS_PROXY and NO_PROXY",
            )
        case problems.NameResolutionError():
            again = getattr(cause, "errno", None) == socket.EAI_AGAIN
            return TransportError("the host name is not known", transient=again)
        case problems.NewConnectionError():
            reason = getattr(cause, "strerror", None)
            return TransportError("the server cannot be reached", transient=True, found=reason)
        case problems.ConnectTimeoutError():
            return TransportError("the server cannot be reached in time", transient=True)
        case problems.TimeoutError() | TimeoutError():
            return TransportError("the server went silent, or is too slow", transient=True)
        case problems.SSLError() | ssl.SSLError():
            return _explain_tls(cause)
        case problems.InvalidHeader():
            return TransportError("the reply makes no sense", found="HTTP headers that disagree")
        case problems.LocationValueError():
            return TransportError("the address cannot be understood")
    reason = getattr(cause, "strerror", None)
    return TransportError("the connection broke", transient=True, found=reason)


def _explain_tls(cause: BaseException) -> TransportError:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TransportError(
            "the server's certificate cannot be verified",
            found=cause.verify_message,
            remedy="name the certificates to trust in REQUESTS_CA_BUNDLE",
        )
    return TransportError("the secure connection failed", transient=True)


def _cause(error: BaseException) -> BaseException:
    """The innermost error of those that urllib3 wraps into one another."""
    for _ in range(8):
        inner = error.__cause__ or next(
            (value for value in reversed(error.args) if isinstance(value, BaseException)), None
        )
        if inner is None:
            break
        error = inner
    return error
