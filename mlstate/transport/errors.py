"""The errors of urllib3 as errors of mlstate, with what to do about them."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from urllib3 import exceptions as problems

from mlstate.errors import TransportError

__all__ = ["PROXY_LOGIN", "PROXY_REMEDY", "translated_errors"]


PROXY_LOGIN = "the proxy wants to know who is asking"
PROXY_REMEDY = (
    "put name and password into the proxy's address: HTTPS_PROXY=http://name:password@host:port, "
    "and HTTP_PROXY likewise"
)


@contextmanager
def translated_errors(address: str) -> Iterator[None]:
    """Raise a `TransportError` in place of what urllib3 raises, which has a whole address in it."""
    try:
        yield
    except (problems.HTTPError, OSError, http.client.HTTPException) as error:
        if isinstance(error, TransportError):
            raise
        translated = _translate(error)
        translated.path = address
        raise translated from None


def _translate(error: BaseException) -> TransportError:
    cause = _cause(error)
    match error:
        case problems.ProxyError():
            refused = next((code for code in ("407", "403") if code in str(cause)), None)
            if refused == "407":
                return TransportError(
                    PROXY_LOGIN, status=407, found="HTTP 407 from the proxy", remedy=PROXY_REMEDY
                )
            return TransportError(
                "the proxy does not let us through",
                transient=refused is None,
                unreachable=refused is None,
                found=None if refused is None else f"HTTP {refused} from the proxy",
                remedy="look at HTTP_PROXY, HTTPS_PROXY and NO_PROXY",
            )
        case problems.NameResolutionError():
            again = getattr(cause, "errno", None) == socket.EAI_AGAIN
            return TransportError("the host name is not known", transient=again, unreachable=True)
        case problems.NewConnectionError():
            reason = getattr(cause, "strerror", None)
            return TransportError(
                "the server cannot be reached", transient=True, unreachable=True, found=reason
            )
        case problems.ConnectTimeoutError():
            return TransportError(
                "the server cannot be reached in time", transient=True, unreachable=True
            )
        case problems.TimeoutError() | TimeoutError():
            return TransportError("the server went silent, or is too slow", transient=True)
        case problems.SSLError() | ssl.SSLError():
            return _translate_tls(cause)
        case problems.InvalidHeader():
            return TransportError("the reply makes no sense", found="HTTP headers that disagree")
        case problems.LocationValueError():
            return TransportError("the address cannot be understood")
    reason = getattr(cause, "strerror", None)
    return TransportError("the connection broke", transient=True, found=reason)


def _translate_tls(cause: BaseException) -> TransportError:
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
