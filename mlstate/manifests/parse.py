"""Reading a manifest from TOML. Every error names the file, the line and the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from mlstate.digests import Digest
from mlstate.errors import FormatError, ManifestError
from mlstate.locations import Mirror, UnusableMirror, check_file_names, check_url, parse_mirror
from mlstate.manifests.entries import FileEntry, ManifestContent, StateEntry, check_alias
from mlstate.manifests.layouts import parse_layout
from mlstate.phrases import OVERWRITE
from mlstate.states import StateKey
from mlstate.texts import decoded, load_toml
from mlstate.toml_keys import line_of

__all__ = [
    "VERSION",
    "check_state_content",
    "parse_manifest",
    "parse_state_content",
    "parse_state_file",
]

VERSION = 1

_Kind = TypeVar("_Kind")


def parse_manifest(data: bytes, origin: str) -> ManifestContent:
    """Read the text of one manifest file.

    Args:
        data: Its content.
        origin: Where it is from, for errors and entries.

    Raises:
        ManifestError: It is not TOML, of a higher version, or says something that is not valid.
    """
    return _Parser(data, origin).parse()


def parse_state_file(data: bytes, key: StateKey, origin: str) -> StateEntry:
    """The entry of a state file; a ManifestError if it does not have exactly this state."""
    return parse_state_content(data, key, origin).states[key]


def parse_state_content(data: bytes, key: StateKey, origin: str) -> ManifestContent:
    """All of a state file; a ManifestError if it does not have exactly this state."""
    content = parse_manifest(data, origin)
    check_state_content(content, key, origin)
    return content


def check_state_content(content: ManifestContent, key: StateKey | None, origin: str) -> None:
    """Raise a ManifestError if a state file does not have exactly the state that its path names."""
    if content.states.keys() != {key}:
        raise ManifestError(
            "a state file has exactly the state that its path names",
            path=origin,
            expected="none" if key is None else key,
            found=", ".join(map(str, content.states)) or "none",
            remedy="restore the file from a copy, or bring the state again with " + OVERWRITE,
        )


class _Parser:
    """Reads one manifest's text; keeps the text, so that an error can name a line."""

    def __init__(self, data: bytes, origin: str) -> None:
        self.origin = origin
        try:
            self.text = decoded(data, "a manifest")
            self.table = load_toml(self.text, "a manifest")
        except FormatError as error:
            raise ManifestError(
                error.message,
                path=origin,
                line=error.line,
                expected=error.expected,
                found=error.found,
                remedy=error.remedy,
            ) from None

    def parse(self) -> ManifestContent:
        table = dict(self.table)
        version = table.pop("version", None)
        if type(version) is not int or version < 1:
            self.fail(
                "this manifest does not say its version",
                *([] if version is None else ["version"]),
                expected=f"version = {VERSION}",
                found=None if version is None else repr(version),
                remedy=f"write version = {VERSION} at its top",
            )
        if version > VERSION:
            self.fail(
                "this manifest is of a higher version",
                "version",
                expected=f"version = {VERSION}",
                found=version,
                remedy="install a newer mlstate",
            )
        objects = self.objects(table.pop("objects", []))
        aliases = self.aliases(table.pop("aliases", {}))
        tables = self.typed(dict, table.pop("states", {}), "states is a table", "states")
        states: dict[StateKey, StateEntry] = {}
        folded: dict[str, StateKey] = {}
        for text, value in tables.items():
            entry = self.entry(text, value, objects)
            other = folded.setdefault(text.lower(), entry.key)
            if other != entry.key:
                self.fail("two state keys differ only in case", text, found=f"{other} and {text}")
            states[entry.key] = entry
        return ManifestContent(states, objects, table, aliases)

    def objects(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(url, str) for url in value):
            self.fail("objects is a list of addresses", "objects", found=value)
        for url in value:
            self.checked(lambda url=url: check_url(url), "objects")
        return tuple(value)

    def aliases(self, value: Any) -> dict[str, StateKey]:
        aliases = {}
        for name, item in self.typed(dict, value, "aliases is a table", "aliases").items():
            self.checked(lambda name=name: check_alias(name), "aliases", name)
            text = self.typed(str, item, "an alias is the key of a state", "aliases", name)
            aliases[name] = self.checked(lambda text=text: StateKey.parse(text), "aliases", name)
        return aliases

    def entry(self, text: str, value: Any, objects: tuple[str, ...]) -> StateEntry:
        if "." not in text and isinstance(value, dict):
            self.fail(
                "not a state key",
                text,
                found=f"states.{text}",
                remedy='a key with dots is quoted: [states."backend.architecture.training_id"]',
            )
        key = self.checked(lambda: StateKey.parse(text), text)
        table = dict(self.typed(dict, value, "a state is a table", text))
        digest, size = table.pop("blake3", None), table.pop("size", None)
        if digest is not None:
            digest = self.digest(digest, text, "blake3")
        if size is not None and (type(size) is not int or not 0 <= size < 2**63):
            self.fail("size is a number of bytes", text, "size", expected="below 2^63", found=size)
        mirrors = self.mirrors(table.pop("mirrors", []), text)
        files = self.files(table.pop("files", {}), text)
        meta = self.typed(dict, table.pop("meta", {}), "meta is a table", text, "meta")
        said = table.pop("layout", None)
        layout = {}
        if said is not None:
            layout = self.checked(lambda: parse_layout(said), text, "layout")
        return StateEntry(
            key, digest, size, mirrors, files, meta, table, objects, self.origin, layout
        )

    def mirrors(self, value: Any, *where: str) -> tuple[Mirror | UnusableMirror, ...]:
        where = (*where, "mirrors")
        items = self.typed(list, value, "mirrors is a list", *where)
        return tuple(self.checked(lambda item=item: parse_mirror(item), *where) for item in items)

    def files(self, value: Any, text: str) -> Mapping[str, FileEntry]:
        self.typed(dict, value, "files is a table", text, "files")
        self.checked(lambda: check_file_names(value), text, "files")
        entries = {}
        for name, item in value.items():
            if not isinstance(item, str | dict) or (
                isinstance(item, dict) and "blake3" not in item
            ):
                self.fail("a file has a digest", text, "files", name, found=item)
            table = {"blake3": item} if isinstance(item, str) else dict(item)
            digest = self.digest(table.pop("blake3"), text, "files", name)
            mirrors = self.mirrors(table.pop("mirrors", []), text, "files", name)
            entries[name] = FileEntry(digest, mirrors, table)
        return entries

    def digest(self, value: Any, *where: str) -> Digest:
        if not isinstance(value, str):
            self.fail("a digest is a text", *where, found=value)
        digest: Digest = self.checked(lambda: Digest(value), *where)
        return digest

    def typed(self, kind: type[_Kind], value: Any, rule: str, *where: str) -> _Kind:
        if not isinstance(value, kind):
            self.fail(rule, *where, found=type(value).__name__)
        return value

    def checked(self, make: Any, *where: str) -> Any:
        """Return what a call returns; an error of it says where in this file it belongs."""
        try:
            return make()
        except FormatError as error:
            self.fail(
                error.message,
                *where,
                expected=error.expected,
                found=error.found,
                remedy=error.remedy,
            )

    def fail(self, message: str, *where: str, **fields: Any) -> NoReturn:
        raise ManifestError(
            message,
            path=self.origin,
            line=line_of(self.text, where),
            key=".".join(where) or None,
            **fields,
        ) from None
