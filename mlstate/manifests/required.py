"""Whether a store needs signatures, and reading manifests accordingly.

A program says it for one store. Otherwise the user's config file does, by the address of the store,
or else MLSTATE_REQUIRE_SIGNATURE. Nothing in a store, a manifest or a repository is asked.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlstate import settings
from mlstate.config import config_path, read_config
from mlstate.errors import FormatError, SignatureError
from mlstate.locations import local_path
from mlstate.manifests import Manifest, content_of, is_store, listed_files
from mlstate.phrases import Phrase
from mlstate.signatures.policy import ManifestFile, SignaturePolicy

if TYPE_CHECKING:
    from mlstate.manifests.state_signatures import StateSignatures

__all__ = [
    "RequiredSignature",
    "SigningKey",
    "places_of",
    "read_required",
    "refuse_unsigned",
    "required_policy",
    "signature_is_required",
    "state_signatures",
]

RequiredSignature = str | os.PathLike[str] | SignaturePolicy | bool | None
"""An allowed-signers file or a policy; False: none; None: as the settings say."""

SigningKey = str | os.PathLike[str] | Literal[False] | None
"""The path of a key; False: nothing is signed; None: as the settings say."""

_RULE = (
    'false, the path of an allowed-signers file, or a table of "allowed_signers", "revoked_keys" '
    'and "signer"'
)


def required_policy(required: RequiredSignature, *places: str) -> SignaturePolicy | None:
    """The policy that holds for a store; None where no signature is needed.

    Args:
        required: What the program says.
        places: The names of the store: its address; of a path all that lead there. Where one of
            them needs a signature it is needed, whatever is said of the others.

    Raises:
        FormatError: The program or the config file says what makes no sense.
    """
    if required is None:
        return _configured(places)
    if required is False:
        return None
    if isinstance(required, SignaturePolicy):
        return required
    if not isinstance(required, str | os.PathLike) or not os.fspath(required):
        raise FormatError(
            "require_signature says whose signature is needed",
            expected="the path of an allowed-signers file, a SignaturePolicy, False or None",
            found=repr(required),
        )
    return SignaturePolicy(required)


def state_signatures(
    required: RequiredSignature, key: SigningKey, *places: str
) -> StateSignatures | None:
    """How the state files of a store are signed, from its arguments and the settings; or None.

    Args:
        required: See `RequiredSignature`.
        key: See `SigningKey`.
        places: As for `required_policy`.

    Raises:
        FormatError: The files of those who may sign cannot be read, or the config file.
    """
    policy = required_policy(required, *places)
    signing = _signing_key() if key is None else key
    if policy is None and not signing:
        return None
    from mlstate.manifests.signed import signers_of
    from mlstate.manifests.state_signatures import StateSignatures

    signers = None if policy is None else signers_of(policy)
    return StateSignatures(signers, local_path(signing) if signing else None)


def places_of(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The names of a path on this machine: as it is given, and where its links lead."""
    local = local_path(path)
    return os.path.abspath(local), os.path.realpath(local)  # which differ in what .. means


def _signing_key() -> Path | None:
    """The key that signs what is saved: MLSTATE_SIGNING_KEY, or that of the config file; or None.

    Raises:
        FormatError: The config file cannot be read.
    """
    return settings.signing_key() or _path(_table().get("signing_key"), "signing_key")


def _configured(
    places: Iterable[str], table: Mapping[str, Any] | None = None
) -> SignaturePolicy | None:
    """The policy of the config file for a store, or else that of the variable."""
    table = _table() if table is None else table
    rules = table.get("stores", {})
    if not isinstance(rules, dict):
        raise _refused("stores", "a table of addresses")
    default = _default(table)
    found = [
        next((rule for rule in rules.items() if _fits(rule[0], place)), None) for place in places
    ] or [None]
    policies = [default if rule is None else _policy(*rule, default, table) for rule in found]
    return next((policy for policy in policies if policy is not None), None)


def _table() -> Mapping[str, Any]:
    settings.refuse_misspelt()  # it would require nothing
    table = read_config().get("signatures", {})
    if not isinstance(table, dict):
        raise _refused("", "a table")
    return table


def _default(table: Mapping[str, Any]) -> SignaturePolicy | None:
    allowed = settings.required_signature() or _path(
        table.get("allowed_signers"), "allowed_signers"
    )
    return None if allowed is None else SignaturePolicy(allowed, _revoked(table))


def _revoked(table: Mapping[str, Any]) -> Path | None:
    return settings.revoked_keys() or _path(table.get("revoked_keys"), "revoked_keys")


def _policy(
    pattern: str, rule: object, default: SignaturePolicy | None, table: Mapping[str, Any]
) -> SignaturePolicy | None:
    where = f'stores."{pattern}"'
    if rule is False:
        return None
    said: Mapping[str, Any] = {"allowed_signers": rule} if isinstance(rule, str) else {}
    if isinstance(rule, dict):
        said = rule
    if not said or said.keys() - {"allowed_signers", "revoked_keys", "signer"}:
        raise _refused(where, _RULE)
    allowed = _path(said.get("allowed_signers"), where)
    if allowed is None and default is not None:
        allowed = Path(default.allowed_signers)
    signer = said.get("signer")
    if allowed is None or not isinstance(signer, str | None):
        raise _refused(where, _RULE + "; allowed_signers here or above")
    revoked = _path(said.get("revoked_keys"), where) or _revoked(table)
    return SignaturePolicy(allowed, revoked, signer)


def _fits(pattern: str, place: str) -> bool:
    """Whether a pattern is that of a place, or of what it is in."""
    if pattern.startswith("~"):
        pattern = str(local_path(pattern))
    if place.startswith("github:"):  # whose names differ not in case alone
        pattern, place = pattern.lower(), place.lower()
    if fnmatch.fnmatchcase(place, pattern):
        return True
    return fnmatch.fnmatchcase(place, f"{pattern.rstrip('/')}/*")


def _path(value: object, name: str) -> Path | None:
    """A path of the config file: relative to its folder."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise _refused(name, "a path")
    return config_path().parent / local_path(value)


def _refused(name: str, expected: str) -> FormatError:
    where = "[signatures]" + (f" {name}" if name else "")
    return FormatError(
        f"{where} of the config file is not valid",
        path=config_path(),
        expected=expected,
    )


def read_required(
    paths: Iterable[str | os.PathLike[str]],
    required: RequiredSignature,
    *,
    shipped: Path | None = None,
) -> Manifest:
    """Read manifests, as `Manifest.read` does, of which each file needs a signature if one is due.

    Args:
        paths: Files and folders.
        required: See `RequiredSignature`.
        shipped: A file or folder more, which needs no signature.

    Raises:
        SignatureError: A signature is needed, and a file has no good one.
        ManifestError: As for `Manifest.read`.
    """
    table = _table() if required is None else {}

    def policy_of(path: str | os.PathLike[str], file: Path) -> SignaturePolicy | None:
        # The config file may speak of one file in a folder, and such a file may be a link.
        places = (*places_of(file), *places_of(path))
        return required_policy(required) if required is not None else _configured(places, table)

    files = [
        ManifestFile(
            file, policy_of(path, file), local_path(path) if is_store(local_path(path)) else None
        )
        for path in paths
        for file in listed_files(local_path(path))
    ]
    if shipped is not None:
        files += [ManifestFile(file) for file in listed_files(shipped)]
    if all(file.policy is None for file in files):
        return Manifest.joined(
            [Manifest.parse(content_of(file.path), str(file.path)) for file in files]
        )
    from mlstate.manifests.signed import read_signed

    return read_signed(files)


def signature_is_required(
    paths: Iterable[str | os.PathLike[str]], required: RequiredSignature
) -> bool:
    """Whether a file of these manifests needs a signature; of none at all, whether any would.

    Args:
        paths: Files and folders.
        required: See `RequiredSignature`.
    """
    files = [file for path in paths for file in (path, *listed_files(local_path(path)))]
    places = [place for file in files for place in places_of(file)]
    return required_policy(required, *places) is not None


def refuse_unsigned(manifest: Manifest, required: RequiredSignature) -> None:
    """Refuse a manifest that is a value already, where a signature is needed.

    Raises:
        SignatureError: It lists states, and the bytes that a signature would be of are not known.
    """
    origins = {entry.origin for entry in manifest.states.values() if entry.origin}
    places = [
        place
        for origin in origins
        for place in ([origin] if "://" in origin else (origin, *places_of(origin)))
    ]
    if manifest.states and required_policy(required, *places) is not None:
        raise SignatureError(
            "a manifest that was read or made already has no signature that could be checked",
            expected="the path of a signed manifest",
            found=f"a Manifest of {len(manifest.states)} states",
            remedy=Phrase(
                "give the path; or, for states that your own program vouches for, "
                "require_signature=False",
                "give the path",
            ),
        )
