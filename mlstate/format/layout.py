"""The layout of a store's folder, and of a bucket's prefix: the same paths.

mlstate.toml                                              version and requirements
objects/ab/cdef...                                        an object, by its digest
states/<backend>/<architecture>/[<extra>.]*<training_id>.toml
encoded/ab/cdef...                                        an object in another form
encoded/states/ab/cdef...                                 which of a state's objects are encoded
tmp/ trash/ roots/                temporaries, removed things, what a cache keeps and why
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

from mlstate.digests import Digest
from mlstate.errors import FormatError
from mlstate.states import StateKey, StateType, keys_of
from mlstate.texts import load_toml

__all__ = [
    "CLAIMS",
    "DAMAGED_SUFFIX",
    "DONE_SUFFIX",
    "ENCODED",
    "ENCODED_OBJECTS",
    "LOCK_SUFFIX",
    "NEW_SETTINGS",
    "OBJECTS",
    "PARTIAL_SUFFIX",
    "PROJECT_KEYS",
    "REQUIREMENTS",
    "ROOTS",
    "SETTINGS",
    "SIGNATURE_SUFFIX",
    "STAGED_SUFFIX",
    "STATES",
    "STATE_SUFFIX",
    "TEMPORARIES",
    "TRASH",
    "TRASHED_ENCODED",
    "TRASHED_OBJECT",
    "TRASHED_STATE",
    "check_settings",
    "compacts",
    "digest_of_encoded_path",
    "digest_of_object_path",
    "digests_in_object_folder",
    "encoded_index_path",
    "encoded_path",
    "is_no_marker",
    "key_of_state_path",
    "key_of_trashed_state",
    "keys_in_state_folder",
    "object_path",
    "state_folder",
    "state_of_encoded_index",
    "state_path",
    "trashed_name",
    "trashed_state_name",
    "with_requirement",
]

SETTINGS = "mlstate.toml"
OBJECTS = "objects"
ENCODED = "encoded"
STATES = "states"
TEMPORARIES = "tmp"
TRASH = "trash"
ROOTS = "roots"
STATE_SUFFIX = ".toml"
SIGNATURE_SUFFIX = ".sig"

# Names in tmp/ that a later run looks for. All begin with 64 hex digits.
STAGED_SUFFIX = ".staged"
PARTIAL_SUFFIX = ".partial"
DONE_SUFFIX = ".done"
DAMAGED_SUFFIX = ".damaged"
TRASHED_OBJECT = re.compile(r"([0-9a-f]{64})\.[0-9a-f]{32}")
"""The name in trash/ of an object that pruning moved there."""
TRASHED_ENCODED = re.compile(r"([0-9a-f]{64})\.encoded\.[0-9a-f]{32}")
"""The name in trash/ of the encoded form of an object."""
TRASHED_STATE = re.compile(r"(.+)\.toml\.[0-9a-f]{32}")
"""The name in trash/ of the state file of a state that was deleted or replaced."""
LOCK_SUFFIX = ".lock"
CLAIMS = "claims.lock"
"""The name in tmp/ of the file by which several processes share the work of one cache."""

VERSION = 1
NEW_SETTINGS = b"version = 1\nrequires = []\n"
"""What a first save writes into mlstate.toml."""

ENCODED_OBJECTS = "encoded"
"""What a store requires that may have objects in encoded form only."""
REQUIREMENTS = frozenset({ENCODED_OBJECTS})
"""What this version knows of all that a store may require of its readers."""

PROJECT_KEYS = ("store", "manifests")
"""What a project file says, which may have the name of a store's settings."""


def object_path(digest: Digest) -> str:
    """The relative path of an object."""
    return f"{OBJECTS}/{digest[:2]}/{digest[2:]}"


def digest_of_object_path(path: str) -> Digest | None:
    """The digest of an object's relative path; None for any other path."""
    digest = _digest_in(path)
    return digest if digest is not None and path == object_path(digest) else None


def _digest_in(path: str) -> Digest | None:
    """The digest that the names below the first one make."""
    try:
        return Digest("".join(path.split("/")[1:]))
    except FormatError:
        return None


def digests_in_object_folder(folder: str, names: Iterable[str]) -> Iterator[Digest]:
    """The digests of the objects among ``names`` in one folder below objects/."""
    if len(folder) == 2:
        for name in names:
            with suppress(FormatError):
                yield Digest(folder + name)


def encoded_path(digest: Digest) -> str:
    """The relative path of the encoded form of an object."""
    return f"{ENCODED}/{digest[:2]}/{digest[2:]}"


def encoded_index_path(state: Digest) -> str:
    """The relative path of what says which objects of a state are encoded."""
    return f"{ENCODED}/{STATES}/{state[:2]}/{state[2:]}"


def state_of_encoded_index(path: str) -> Digest | None:
    """The inverse of `encoded_index_path`; None for any other path."""
    digest = _digest_in(path.removeprefix(f"{ENCODED}/"))
    return digest if digest is not None and path == encoded_index_path(digest) else None


def digest_of_encoded_path(path: str) -> Digest | None:
    """The inverse of `encoded_path`; None for any other path."""
    digest = _digest_in(path)
    return digest if digest is not None and path == encoded_path(digest) else None


def trashed_name(digest: Digest, *, encoded: bool = False) -> str:
    """A new name in trash/ for an object, or for its encoded form."""
    return f"{digest}{'.encoded' * encoded}.{uuid.uuid4().hex}"


def state_folder(state_type: StateType) -> str:
    """The relative path of the folder of all states that are compatible with a type."""
    return f"{STATES}/{state_type.backend}/{state_type.architecture}"


def state_path(key: StateKey) -> str:
    """The relative path of a state file."""
    name = ".".join((*key.state_type.extra, key.training_id))
    return f"{state_folder(key.state_type)}/{name}{STATE_SUFFIX}"


def key_of_state_path(path: str) -> StateKey | None:
    """The key of a state file's relative path; None for any other (an editor's backup, say)."""
    parts = path.split("/")
    if len(parts) != 4 or parts[0] != STATES or not parts[3].endswith(STATE_SUFFIX):
        return None
    try:
        *extra, training_id = parts[3].removesuffix(STATE_SUFFIX).split(".")
        return StateKey(StateType(parts[1], parts[2], tuple(extra)), training_id)
    except FormatError:
        return None


def trashed_state_name(key: StateKey) -> str:
    """A new name in trash/ for the state file of a key."""
    return f"{key}{STATE_SUFFIX}.{uuid.uuid4().hex}"


def key_of_trashed_state(name: str) -> StateKey | None:
    """The key of a state file's name in trash/; None for any other name."""
    match = TRASHED_STATE.fullmatch(name)
    try:
        return None if match is None else StateKey.parse(match[1])
    except FormatError:
        return None


def keys_in_state_folder(folder: str, names: Iterable[str]) -> list[StateKey]:
    """The keys of the state files among ``names`` in one folder of states, sorted.

    States of one type share the type's object, and are checked together: to make, check and compare
    everything anew for each of thousands would take most of the time.
    """
    _, backend, architecture = folder.split("/")
    stems = _stems(list(names))
    dotted = [stem for stem in stems if "." in stem]
    plain = [stem for stem in stems if "." not in stem] if dotted else stems
    by_extra = {"": plain} if plain else {}
    for stem in dotted:
        extra, dot, training_id = stem.rpartition(".")
        by_extra.setdefault(extra + dot, []).append(training_id)
    types: list[tuple[StateType, list[str]]] = []
    for extra, training_ids in by_extra.items():
        with suppress(FormatError):
            parts = tuple(extra.split(".")[:-1])
            types.append((StateType(backend, architecture, parts), training_ids))
    return list(chain.from_iterable(keys_of(*item) for item in sorted(types)))


def _stems(names: list[str]) -> list[str]:
    """The parts before the suffix of state files, of all names that have it."""
    lines = "\n".join([*names, ""])
    if lines.count(f"{STATE_SUFFIX}\n") == lines.count("\n") == len(names):  # almost always
        return lines.replace(f"{STATE_SUFFIX}\n", "\n").split("\n")[:-1]
    return [name.removesuffix(STATE_SUFFIX) for name in names if name.endswith(STATE_SUFFIX)]


def is_no_marker(table: Mapping[str, Any]) -> bool:
    """Whether the content of an `mlstate.toml` is not a store's: then it is a project's.

    A store's settings say their version. An empty file is what a crash may leave of them.
    """
    says_version = bool({"version", "requires"} & table.keys())
    return bool(table) and (not says_version or bool(table.keys() & set(PROJECT_KEYS)))


def check_settings(data: bytes, path: str, known: frozenset[str] = REQUIREMENTS) -> frozenset[str]:
    """Refuse, by a FormatError, the settings of a store of a newer version.

    Args:
        data: The text.
        path: Where it is, for errors.
        known: What a store may require here.

    Returns:
        What the store requires.
    """
    try:
        settings = load_toml(data, "a store's settings")
    except FormatError as error:
        raise FormatError(
            "a store's settings cannot be read",
            path=path,
            line=error.line,
            expected=error.expected,
            found=error.found or error.message,
        ) from None
    if is_no_marker(settings):
        raise FormatError(
            f"this folder is a project, not a store: its {SETTINGS} is a project file",
            path=path,
            remedy="give the store a folder of its own, weights/ in the project say",
        )
    version, requires = settings.get("version"), settings.get("requires", [])
    if type(version) is not int or version < 1 or not isinstance(requires, list):
        raise FormatError(
            "a store's settings are not valid", path=path, expected="version = 1, requires = []"
        )
    unknown = [word for word in requires if not isinstance(word, str) or word not in known]
    if version > VERSION or unknown:
        some = f"no requirements but {', '.join(sorted(known))}" if known else "no requirements"
        raise FormatError(
            "this store was made by a newer mlstate",
            path=path,
            expected=f"version {VERSION} and {some}",
            found=f"version {version if version < 1000 else 'very high'}, requires {requires}",
            remedy="install a newer mlstate; nothing was changed",
        )
    return frozenset(requires)


def compacts(data: bytes, path: str) -> bool:
    """Whether the settings of a store, valid ones, say that what is saved is encoded at once.

    Raises:
        FormatError: They say neither ``compact = true`` nor ``compact = false``.
    """
    if b"compact" not in data:  # almost always
        return False
    value = load_toml(data, "a store's settings").get("compact", False)
    if not isinstance(value, bool):
        raise FormatError(
            "a store's settings are not valid", path=path, expected="compact = true", found=value
        )
    return value


def with_requirement(data: bytes, word: str, *, wanted: bool) -> bytes:
    """The settings of a store, changed to require a word of readers or not; all else stays.

    Raises:
        FormatError: They are not valid, or written in a style that cannot be edited.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    before = load_toml(data, "a store's settings")
    if (word in before.get("requires", [])) == wanted:
        return data
    try:
        document = tomlkit.parse(data.decode())
        if "requires" not in document:
            document.add("requires", tomlkit.array())
        requires = document["requires"]
        assert isinstance(requires, list)
        if wanted:
            requires.append(word)
        while not wanted and word in requires:
            requires.remove(word)
        changed = tomlkit.dumps(document).encode()
    except (TOMLKitError, RecursionError) as error:
        raise FormatError(f"a store's settings cannot be edited: {error}") from None
    others = [one for one in before.get("requires", []) if one != word]
    meant = {**before, "requires": others + [word] * wanted}
    if load_toml(changed, "a store's settings") != meant:
        raise FormatError("a store's settings are written in a style that cannot be edited")
    return changed
