"""Where GitHub is, and in whose name it is asked, as the environment says.

GH_TOKEN, GITHUB_TOKEN  a token
GH_API_BASIC_AUTH       instead of one: "user:token"
GITHUB_API_URL          the API, by default https://api.github.com
GITHUB_SERVER_URL       the web pages and downloads, by default https://github.com

Of an Enterprise server one of the two addresses is enough.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass

from mlstate.errors import FormatError
from mlstate.transport.credentials import Credential, checked_token
from mlstate.transport.urls import Url

__all__ = ["GitHub", "find_credential"]

_PUBLIC = "https://github.com"


@dataclass(frozen=True)
class GitHub:
    """Where GitHub is.

    Attributes:
        api: The address of the API, without a slash at the end.
        server: That of the web pages and downloads.
    """

    api: str
    server: str

    @classmethod
    def from_environment(cls) -> GitHub:
        """As GITHUB_API_URL and GITHUB_SERVER_URL say, one of which is enough.

        Raises:
            TransportError: One is no http(s) address.
        """
        api = os.environ.get("GITHUB_API_URL", "").rstrip("/")
        server = os.environ.get("GITHUB_SERVER_URL", "").rstrip("/")
        for address in filter(None, (api, server)):
            Url.parse(address)
        return cls(api or _api_of(server or _PUBLIC), server or _server_of(api))


def _api_of(server: str) -> str:
    if server == _PUBLIC or server.endswith(".ghe.com"):
        return server.replace("://", "://api.", 1)
    return f"{server}/api/v3"


def _server_of(api: str) -> str:
    return api.removesuffix("/api/v3").replace("://api.", "://", 1) or _PUBLIC


def find_credential() -> Credential | None:
    """The credential that the environment has, or None.

    Raises:
        FormatError: It is malformed.
    """
    for variable in ("GH_TOKEN", "GITHUB_TOKEN"):
        if token := os.environ.get(variable):
            return Credential(variable, f"Bearer {checked_token(token, variable)}")
    variable = "GH_API_BASIC_AUTH"
    if login := os.environ.get(variable):
        if ":" not in login:
            raise FormatError("a login has no colon", path=variable, expected="user:token")
        encoded = base64.b64encode(login.strip().encode()).decode("ascii")
        return Credential(variable, f"Basic {encoded}")
    return None
