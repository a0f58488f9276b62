"""Web addresses as values, parsed in one strict way, and shown without what may be secret."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from mlstate.errors import AddressError, TransportError

__all__ = ["Url"]

_PORTS = {"http": 80, "https": 443}
_NETLOC = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
# What may stand in a request line as it is. A "%" stays: a signature covers the text as written.
_PLAIN = "%!$&'()*+,-./:;=?@_~[]"


@dataclass(frozen=True, repr=False)
class Url:
    """An http or https address without user name, password and fragment.

    Two parsers that read one address differently have sent many a credential to the wrong host.
    So it is taken apart once, here, and only host names that nobody can misread are accepted.

    Attributes:
        scheme: ``"http"`` or ``"https"``.
        host: In lower case; an IPv6 address without its brackets.
        port: Always a number.
        target: The path with the query, quoted as a request line needs it.
    """

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """Read an address.

        Raises:
            AddressError: It is not http(s), not well formed, or has a user name in it.
        """
        try:
            parts = urlsplit(text)
        except ValueError:
            raise AddressError("an address cannot be understood") from None
        scheme = parts.scheme.lower()
        if scheme not in _PORTS:
            raise AddressError("not an http or https address", found=f"{scheme[:20]}://...")
        match = _NETLOC.fullmatch(parts.netloc)
        if match is None or int(match[2] or 1) not in range(1, 65536):
            # Not repeated: there may be a password in it.
            raise AddressError(
                "the host of an address cannot be understood",
                remedy="write a plain host name (an international one as xn--...), without user "
                "name and password",
            )
        target = parts.path or "/"
        if parts.query:
            target += "?" + parts.query
        return cls(
            scheme=scheme,
            host=match[1].lower().strip("[]"),
            port=int(match[2] or _PORTS[scheme]),
            target=quote(target, safe=_PLAIN),
        )

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: who gets a request."""
        return (self.scheme, self.host, self.port)

    @property
    def root(self) -> str:
        """The address of the server itself."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"

    @property
    def secret_text(self) -> str:
        """The whole address, query included, which may be a signature: never to be shown."""
        return self.root + self.target

    @property
    def shown(self) -> str:
        """The address for people: without the query."""
        return self.root + self.target.partition("?")[0]

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine for certain."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def join(self, location: str) -> Url:
        """Where a redirect from here leads.

        Raises:
            TransportError: It is not an address that can be used.
        """
        try:
            return Url.parse(urljoin(self.secret_text, location))
        except ValueError:
            raise TransportError("an address cannot be understood") from None

    def __repr__(self) -> str:
        return f"Url({self.shown!r})"

    __str__ = __repr__
