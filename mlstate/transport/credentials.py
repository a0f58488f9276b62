"""The credentials of this user: which token or login is sent to which host.

MLSTATE_TOKEN_<HOST>  a token; in the host "." is written "_" and "-" is written "__"
MLSTATE_CONFIG        a TOML file (by default config.toml in the user's config folder), whose table
                      [tokens] has a token for each "host" or "host:port"
HF_TOKEN              the token for the Hugging Face hub, at HF_ENDPOINT
NETRC                 the logins, by default ~/.netrc; only a host's own entry counts

A credential is sent over https only, or to this machine itself.
"""

from __future__ import annotations

import base64
import netrc
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from mlstate.config import config_path, read_config
from mlstate.errors import FormatError
from mlstate.files import UnfitFileError, open_input, read_input
from mlstate.settings import value_of
from mlstate.transport.urls import Url
from mlstate.warn import warn

__all__ = ["Credential", "Credentials", "NoCredentials", "hub_endpoint", "token_variable"]

_TOKEN = re.compile(r"[\x21-\x7e]+")
_LARGEST = 1 << 20
"""The largest file with tokens or logins that is read, in bytes."""


def hub_endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or the public one; without a slash at the end."""
    return (value_of("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def token_variable(host: str) -> str:
    """The environment variable that holds a host's token."""
    return "MLSTATE_TOKEN_" + host.replace("-", "__").replace(".", "_").upper()


@dataclass(frozen=True)
class Credential:
    """What a server is sent to know who asks.

    Attributes:
        source: Where it is from, for people: a variable or a file.
        header: The value of the Authorization header.
    """

    source: str
    header: str = field(repr=False)

    @classmethod
    def bearer(cls, token: str, source: str) -> Credential:
        """The credential of a token.

        Raises:
            FormatError: It has characters that no token has.
        """
        return cls(source, f"Bearer {_checked_token(token, source)}")

    @classmethod
    def basic(cls, login: str, source: str) -> Credential:
        """The credential of a login, ``name:password``."""
        return cls(source, f"Basic {base64.b64encode(login.encode()).decode('ascii')}")


class Credentials:
    """The credentials of this user, as environment and files have them; each file is read once."""

    def authorization(self, url: Url, via: Sequence[Url] = ()) -> str | None:
        """The value of the Authorization header for a request, or None; as `find`."""
        found = self.find(url, via)
        return None if found is None else found.header

    def find(self, url: Url, via: Sequence[Url] = ()) -> Credential | None:
        """The credential for a request, or None.

        Args:
            url: Where the request goes.
            via: The addresses that redirected to it. An entry that names a host without a port
                does not follow a redirect to another port of that host: who may redirect there
                need not be who runs it.

        Raises:
            FormatError: A token or the config file is malformed.
        """
        if url.scheme != "https" and not url.is_loopback:
            return None
        any_port = all(_same_server(before, url) for before in via if before.host == url.host)
        found = self._token(url, any_port)
        if found is None and any_port and (login := self._logins.get(url.host)):
            found = Credential.basic(":".join(login), str(_netrc_path()))
        return found

    def _token(self, url: Url, any_port: bool) -> Credential | None:
        tokens = self._tokens
        host = f"[{url.host}]" if ":" in url.host else url.host
        if (token := tokens.get(f"{host}:{url.port}")) is not None:
            return Credential.bearer(token, str(config_path()))
        if any_port:
            variable = token_variable(url.host)
            # A "_" in a host name could pass for the "." of another.
            if "_" not in url.host and (token := os.environ.get(variable)):
                return Credential.bearer(token, variable)
            if (token := tokens.get(host, tokens.get(url.host))) is not None:
                return Credential.bearer(token, str(config_path()))
        return _hub_token(url)

    @cached_property
    def _tokens(self) -> Mapping[str, str]:
        return _read_config()

    @cached_property
    def _logins(self) -> Mapping[str, tuple[str, str]]:
        return _read_netrc()


class NoCredentials(Credentials):
    """None, for anybody."""

    def find(self, url: Url, via: Sequence[Url] = ()) -> None:
        """None; see `Credentials.find`."""


def _same_server(before: Url, url: Url) -> bool:
    upgraded = (before.scheme, before.port, url.scheme, url.port) == ("http", 80, "https", 443)
    return upgraded or before.origin == url.origin


def _checked_token(token: str, where: str) -> str:
    """A token without the space around it; http.client would show one with a line break in it."""
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise FormatError("a token is empty or has characters that no token has", path=where)
    return token


def _hub_token(url: Url) -> Credential | None:
    if url.origin != Url.parse(hub_endpoint()).origin:
        return None
    if token := os.environ.get("HF_TOKEN"):
        return Credential.bearer(token, "HF_TOKEN")
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import get_token

    token = get_token()
    return None if token is None else Credential.bearer(token, "the token file of huggingface_hub")


def _read_config() -> dict[str, str]:
    table = read_config()
    tokens = table.get("tokens", {})
    if not isinstance(tokens, dict) or not all(isinstance(value, str) for value in tokens.values()):
        raise FormatError(
            "[tokens] of the config file is not a table of texts",
            path=config_path(),
            expected='"host" = "token", with the host in quotes',
        )
    path = str(config_path()) if tokens else ""
    return {host.lower(): _checked_token(token, path) for host, token in tokens.items()}


def _netrc_path() -> Path:
    return Path(value_of("NETRC") or "~/.netrc")


def _parse_netrc(path: Path) -> Mapping[str, tuple[str | None, str | None, str | None]]:
    """The entries of a netrc file: the parser, which opens it itself, meets no pipe nobody fills.

    Raises:
        OSError: It is no file, or larger than any that a person has.
        netrc.NetrcParseError: It cannot be understood.
    """
    with open_input(path) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST:
            raise UnfitFileError(f"one of more than {_LARGEST} bytes", path)
        return netrc.netrc(path).hosts


def _is_marked(path: Path) -> bool:
    """Whether a file begins with a byte order mark, or is no UTF-8."""
    try:
        data = read_input(path.expanduser(), _LARGEST)
        return data.decode().startswith("\ufeff")
    except UnicodeDecodeError:
        return True
    except OSError:
        return False


def _read_netrc() -> dict[str, tuple[str, str]]:
    path = _netrc_path()
    try:
        hosts = _parse_netrc(path.expanduser())
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # RuntimeError: no home folder
        return {}
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        # What the parser says may quote a password.
        line = getattr(error, "lineno", None)
        where = f"{path}, line {line}" if line else f"{path}"
        said = "is not in plain UTF-8" if _is_marked(path) else "cannot be read"
        warn(f"{where}: {said}, so no login of it is used")
        return {}
    return {
        host.lower(): (login or "", password or "")
        for host, (login, _, password) in hosts.items()
        if host != "default"  # the entry for all hosts: a mirror is not to be told it
    }
