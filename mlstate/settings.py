"""Settings from the environment, read each time they are needed.

`SETTINGS` lists those of mlstate itself, `OTHERS` those that other tools share (tokens, proxies).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "OTHERS",
    "SETTINGS",
    "Setting",
    "cache_folder",
    "default_store",
    "extra_manifests",
    "offline",
    "readonly_caches",
    "required_signature",
    "revoked_keys",
    "state_folder",
]


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
    Setting("MLSTATE_CACHE", "the folder for what is fetched", "the user's cache folder"),
    Setting("MLSTATE_READONLY_CACHES", "folders that are looked at before it", "none"),
    Setting("MLSTATE_MANIFESTS", "manifests that Store() reads beside its own", "none"),
    Setting("MLSTATE_OFFLINE", "1: open no socket", "online"),
    Setting(
        "MLSTATE_REQUIRE_SIGNATURE",
        "an allowed-signers file: manifests need a signature of one of them",
        "none is needed",
    ),
    Setting("MLSTATE_REVOKED_KEYS", "public keys whose signatures are good no more", "none"),
    Setting("MLSTATE_CONFIG", "a TOML file with tokens", "config.toml in the user's config folder"),
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


def default_store() -> str | None:
    """MLSTATE_STORE: the store of the command line; None: `Store()`."""
    return os.environ.get("MLSTATE_STORE") or None


def cache_folder() -> Path:
    """The cache: MLSTATE_CACHE, or the user's cache folder by the platform's convention."""
    if chosen := os.environ.get("MLSTATE_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("mlstate", appauthor=False)


def readonly_caches() -> list[Path]:
    """MLSTATE_READONLY_CACHES, in order."""
    return _paths("MLSTATE_READONLY_CACHES")


def extra_manifests() -> list[Path]:
    """MLSTATE_MANIFESTS, in order."""
    return _paths("MLSTATE_MANIFESTS")


def offline() -> bool:
    """MLSTATE_OFFLINE: unset, empty, 0, false and no mean online."""
    return os.environ.get("MLSTATE_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def required_signature() -> Path | None:
    """MLSTATE_REQUIRE_SIGNATURE: the allowed-signers file; None: no signature is required."""
    return _path("MLSTATE_REQUIRE_SIGNATURE")


def revoked_keys() -> Path | None:
    """MLSTATE_REVOKED_KEYS: the file of revoked public keys; None without one."""
    return _path("MLSTATE_REVOKED_KEYS")


def state_folder() -> Path:
    """Where mlstate keeps what it has seen: the user's state folder, by the platform's custom."""
    from platformdirs import user_state_path

    return user_state_path("mlstate", appauthor=False)


def _path(variable: str) -> Path | None:
    text = os.environ.get(variable)
    return Path(text).expanduser() if text else None


def _paths(variable: str) -> list[Path]:
    return [
        Path(part).expanduser() for part in os.environ.get(variable, "").split(os.pathsep) if part
    ]
