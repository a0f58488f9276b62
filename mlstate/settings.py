"""Settings from the environment, read each time they are needed.

`SETTINGS` lists those of mlstate itself, `OTHERS` those that other tools share (tokens, proxies).
"""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from mlstate.errors import FormatError
from mlstate.phrases import Phrase

__all__ = [
    "OTHERS",
    "PINS",
    "SETTINGS",
    "STATISTICS",
    "Setting",
    "allowed_hosts",
    "cache_folder",
    "check_variables",
    "default_store",
    "extra_manifests",
    "low_speed",
    "offline",
    "patience",
    "peer_patience",
    "peers",
    "pins",
    "readonly_caches",
    "refuse_misspelt",
    "required_signature",
    "revoked_keys",
    "signing_key",
    "state_folder",
    "value_of",
]

PINS = ("first-use", "strict")
"""What may become of states without a digest: the first use pins it, or it is refused."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ADDRESS = re.compile(r"\A[A-Za-z][A-Za-z0-9+.-]*://|:[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Setting:
    """A variable of the environment, its meaning, and its default.

    The name of a family of variables ends in ``<...>``. The value of a secret is not shown.
    """

    name: str
    meaning: str
    default: str
    secret: bool = False

    def values(self) -> dict[str, str]:
        """The variables that are set, with their values; those of secrets are hidden."""
        start, family, _ = self.name.partition("<")
        named = [name for name in os.environ if name.startswith(start)] if family else [self.name]
        found = {name: os.environ[name] for name in sorted(named) if os.environ.get(name)}
        return {name: "(set)" if self.secret else value for name, value in found.items()}


SETTINGS = (
    Setting("MLSTATE_STORE", "the store of the command line", "Store()"),
    Setting(
        "MLSTATE_PROJECT",
        "the project file; none: no project file is looked for",
        "the nearest mlstate.toml or pyproject.toml",
    ),
    Setting("MLSTATE_CACHE", "the folder for what is fetched", "the user's cache folder"),
    Setting("MLSTATE_READONLY_CACHES", "folders that are looked at before it", "none"),
    Setting("MLSTATE_MANIFESTS", "manifests that Store() reads beside its own", "none"),
    Setting(
        "MLSTATE_PEERS",
        "the address of a cache that nodes share: it is asked before the stores of manifests",
        "none",
    ),
    Setting("MLSTATE_OFFLINE", "1: open no socket", "online"),
    Setting("MLSTATE_PATIENCE", "seconds that a server is waited for, if little comes", "600"),
    Setting(
        "MLSTATE_PEER_PATIENCE",
        "seconds without a heartbeat after which another rank of a job is given up",
        "60",
    ),
    Setting("MLSTATE_LOW_SPEED", "bytes a second that a server must give", "1024"),
    Setting(
        "MLSTATE_ALLOWED_HOSTS",
        "hosts and buckets that manifests from elsewhere may name, and redirects lead to",
        "none",
    ),
    Setting(
        "MLSTATE_REQUIRE_SIGNATURE",
        "an allowed-signers file: manifests and states need a signature of one of them",
        "none is needed",
    ),
    Setting("MLSTATE_REVOKED_KEYS", "public keys whose signatures are good no more", "none"),
    Setting(
        "MLSTATE_PINS",
        "strict: what a manifest gives no digest of is refused, whatever was pinned at a first use",
        "first-use",
    ),
    Setting("MLSTATE_SIGNING_KEY", "an SSH key: it signs what is saved", "nothing is signed"),
    Setting(
        "MLSTATE_CONFIG",
        "a TOML file with tokens, and who signs",
        "config.toml in the user's config folder",
    ),
    Setting("MLSTATE_TOKEN_<HOST>", "the token for a host", "none", secret=True),
)
OTHERS = (
    Setting("NETRC", "the file with logins", "~/.netrc"),
    Setting("HF_TOKEN", "the token for the Hugging Face hub", "none", secret=True),
    Setting("HF_ENDPOINT", "the address of the hub", "https://huggingface.co"),
    Setting("HF_HUB_OFFLINE", "1: the hub is not asked", "online"),
    Setting("GH_TOKEN", "the token for GitHub", "none", secret=True),
    Setting("GITHUB_TOKEN", "the token for GitHub, after GH_TOKEN", "none", secret=True),
    Setting("GH_API_BASIC_AUTH", "a login for GitHub", "none", secret=True),
    Setting("GITHUB_API_URL", "the address of an Enterprise server", "https://api.github.com"),
    Setting("AWS_PROFILE", "the profile for buckets", "default"),
    Setting("AWS_ENDPOINT_URL", "the address of a service that speaks S3", "AWS"),
    Setting("AWS_ACCESS_KEY_ID", "the key for buckets", "as the profile says", secret=True),
    Setting("HTTPS_PROXY", "the proxy", "none", secret=True),
    Setting("HTTP_PROXY", "the proxy for http", "none", secret=True),
    Setting("NO_PROXY", "hosts without a proxy", "none"),
    Setting("REQUESTS_CA_BUNDLE", "certificates to trust", "certifi's"),
    Setting("NO_COLOR", "no colour on the terminal", "colour"),
    Setting("CI", "neither colour nor bars", "both, on a terminal"),
)


def refuse_misspelt() -> None:
    """Refuse variables that are most likely meant to be settings, and are none.

    A misspelt setting would be ignored, and a signature not required. Names that are like none of
    a setting are another program's.

    Raises:
        FormatError: There is such a variable.
    """
    known = [setting.name for setting in SETTINGS if "<" not in setting.name]
    families = tuple(s.name.partition("<")[0] for s in SETTINGS if "<" in s.name)
    for variable in sorted(os.environ):
        if not variable.startswith("MLSTATE_") or variable.startswith(families):
            continue
        if variable not in known and (near := get_close_matches(variable, known, 1, 0.85)):
            raise FormatError(
                "this variable is no setting of mlstate, and is like one",
                found=variable,
                remedy=f"did you mean {near[0]}? If not, unset {variable} for mlstate",
            )


def value_of(variable: str) -> str:
    """What a variable says, without the space around it; empty if it is not set.

    A file that a secret or an address was read from ends with a line break, most often.

    Raises:
        FormatError: There is a line break or another control character within it.
    """
    value = os.environ.get(variable, "").strip()
    if _CONTROL.search(value):
        # Not repeated: it may be a secret.
        raise FormatError(
            f"{variable} has a line break or another control character in it",
            remedy=f"set {variable} anew, or unset it",
        )
    return value


def check_variables(*starts: str) -> None:
    """Refuse variables that a library reads by itself, and that have white space around the value.

    Args:
        starts: How the names of these variables start.

    Raises:
        FormatError: There is such a variable. Libraries send it as it is, or end the program.
    """
    for variable in sorted(os.environ):
        value = os.environ[variable]
        if variable.startswith(starts) and (value != value.strip() or _CONTROL.search(value)):
            raise FormatError(
                f"{variable} has white space or a line break around its value, or in it",
                remedy=f"set {variable} anew, without it",
            )


def default_store() -> str | None:
    """MLSTATE_STORE: the store of the command line; None: `Store()`."""
    return value_of("MLSTATE_STORE") or None


STATISTICS = "changes"
"""The folder below that of the cache which has the statistics of reports."""


def cache_folder() -> Path:
    """The cache: MLSTATE_CACHE, or the user's cache folder by the platform's convention.

    Raises:
        FormatError: It is an address, or there is no home folder.
    """
    if chosen := value_of("MLSTATE_CACHE"):
        return _path("MLSTATE_CACHE", chosen)
    from platformdirs import user_cache_path

    with suppress(RuntimeError):  # neither HOME nor an entry in the list of users
        folder = user_cache_path("mlstate", appauthor=False)
        if folder.is_absolute():  # older versions of platformdirs keep the ~
            return folder
    raise _no_home("MLSTATE_CACHE")


def readonly_caches() -> list[Path]:
    """MLSTATE_READONLY_CACHES, in order."""
    return _paths("MLSTATE_READONLY_CACHES")


def extra_manifests() -> list[Path]:
    """MLSTATE_MANIFESTS, in order."""
    return _paths("MLSTATE_MANIFESTS")


def peers() -> str | None:
    """MLSTATE_PEERS: the address of the nearest cache that nodes share; None: there is none.

    Raises:
        FormatError: It is no http(s) address.
    """
    address = value_of("MLSTATE_PEERS")
    if address and not address.lower().startswith(("http://", "https://")):
        raise FormatError(
            "MLSTATE_PEERS is no address",
            expected="http://127.0.0.1:9470, say",
            found=address.partition("?")[0][:80],
            remedy="set MLSTATE_PEERS to what mlstate peers said, or unset it",
        )
    return address.rstrip("/") or None


def offline() -> bool:
    """MLSTATE_OFFLINE: unset, empty, 0, false and no mean online."""
    return os.environ.get("MLSTATE_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def patience() -> float:
    """MLSTATE_PATIENCE: the seconds that a server is waited for in all, if little comes."""
    return _number("MLSTATE_PATIENCE", 600.0, least=0.001)


def peer_patience() -> float:
    """MLSTATE_PEER_PATIENCE: the seconds after which a silent rank of a job is given up."""
    return _number("MLSTATE_PEER_PATIENCE", 60.0, least=0.1)


def low_speed() -> float:
    """MLSTATE_LOW_SPEED: the bytes a second that a server must give on average."""
    return _number("MLSTATE_LOW_SPEED", 1024.0, least=0.0)


def allowed_hosts() -> list[str]:
    """MLSTATE_ALLOWED_HOSTS: its entries, which commas or white space are between."""
    return value_of("MLSTATE_ALLOWED_HOSTS").replace(",", " ").split()


def required_signature() -> Path | None:
    """MLSTATE_REQUIRE_SIGNATURE: the allowed-signers file; None: no signature is required."""
    return _optional_path("MLSTATE_REQUIRE_SIGNATURE")


def revoked_keys() -> Path | None:
    """MLSTATE_REVOKED_KEYS: the file of revoked public keys; None without one."""
    return _optional_path("MLSTATE_REVOKED_KEYS")


def pins(chosen: str | None = None) -> str:
    """What becomes of states without a digest: one of `PINS`.

    Args:
        chosen: What the program says; None: MLSTATE_PINS, or else ``"first-use"``.

    Raises:
        FormatError: It is another text.
    """
    value = (value_of("MLSTATE_PINS") or PINS[0]) if chosen is None else chosen
    if value not in PINS:
        said = "MLSTATE_PINS" if chosen is None else "pins="
        raise FormatError(
            f"{said} says what becomes of states without a digest",
            expected=" or ".join(PINS),
            found=str(value)[:40],
            remedy=f"set {said.rstrip('=')} to one of these",
        )
    return value


def signing_key() -> Path | None:
    """MLSTATE_SIGNING_KEY: the key that signs states as they are saved; None: none."""
    return _optional_path("MLSTATE_SIGNING_KEY")


def state_folder() -> Path:
    """Where mlstate keeps what it has seen: the user's state folder, by the platform's custom."""
    from platformdirs import user_state_path

    with suppress(RuntimeError):  # as in `cache_folder`
        folder = user_state_path("mlstate", appauthor=False)
        if folder.is_absolute():
            return folder
    raise _no_home("XDG_STATE_HOME")


def _number(variable: str, default: float, *, least: float) -> float:
    text = value_of(variable)
    try:
        number = float(text) if text else default
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        raise FormatError(
            f"{variable} is no number that can be used",
            expected=f"a number, such as {default:g}",
            found=text[:40],
            remedy=f"set {variable} anew, or unset it",
        )
    return number


def _optional_path(variable: str) -> Path | None:
    value = value_of(variable)
    return _path(variable, value) if value else None


def _paths(variable: str) -> list[Path]:
    value = value_of(variable)
    if _ADDRESS.search(value):  # before it is cut at its colon
        raise _address(variable)
    return [_path(variable, part.strip()) for part in value.split(os.pathsep) if part.strip()]


def _path(variable: str, value: str) -> Path:
    if _ADDRESS.search(value):
        raise _address(variable)
    try:
        return Path(value).expanduser()
    except RuntimeError:  # of ~, where there is no home folder
        raise _no_home(variable) from None


def _address(variable: str) -> FormatError:
    return FormatError(
        f"{variable} is an address, and a folder or file of this machine is needed",
        remedy=Phrase(
            f"set {variable} to a path; a store elsewhere is opened by open_store(address)",
            f"set {variable} to a path; a store elsewhere is given as --store ADDRESS",
        ),
    )


def _no_home(variable: str) -> FormatError:
    return FormatError(
        "there is no home folder: HOME is not set, and this user is not known to the system",
        remedy=f"set {variable} to a path that begins with /, or set HOME",
    )
