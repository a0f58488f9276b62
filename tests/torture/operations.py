"""The operations that are attacked: each prepares a folder, runs, and says what may be there.

None imports torch, so that a child process is a fork of a warm one, and one attack takes
milliseconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    adopt,
    bundle,
    copy,
    enlist,
    export,
    lock,
    sign,
    unbundle,
    unlist,
    verify,
    verify_signature,
)
from mlstate.format import layout
from mlstate.manifests.update import change_manifest
from mlstate.objects import FolderObjectStore
from mlstate.signatures.inline import is_signed
from mlstate.stores.prune_folder import prune_folder
from mlstate.stores.statefiles import FolderStateFiles
from tests.torture.shim import mark
from tests.torture.states import check_folder, key_of, known, save, whole, write_plain

__all__ = ["OPERATIONS", "Operation", "warm_up"]

Expected = Mapping[str, int | None]
_OLD = 30 * 24 * 3600


def _nothing(root: Path) -> None:
    pass


@dataclass(frozen=True)
class Operation:
    """One operation on the stores below a folder.

    Attributes:
        prepare: Makes what is there before.
        run: The operation.
        before: For the store ``store``: name -> number of the state that it has, None for none.
        after: The same once the operation is done.
        between: What there may be besides while it runs, where it has several steps.
        check: What must be true besides at any moment; raises an AssertionError.
        done: What must be true besides once it is done.
        sweep: What removes, an hour later, what a kill left beside files; by default the operation.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path], object]
    before: Expected = field(default_factory=dict)
    after: Expected = field(default_factory=dict)
    between: Mapping[str, Collection[int | None]] = field(default_factory=dict)
    check: Callable[[Path], None] = _nothing
    done: Callable[[Path], None] = _nothing
    sweep: Callable[[Path], object] | None = None

    def check_any(self, root: Path) -> None:
        """After a crash: each state is what it was or what it becomes; nothing is damaged."""
        names = self.before.keys() | self.after.keys()
        if names:
            allowed = {
                name: {self.before.get(name), self.after.get(name), *self.between.get(name, ())}
                for name in names
            }
            check_folder(root / "store", allowed)
        self.check(root)

    def check_done(self, root: Path) -> None:
        """After a success, or a second try: it is done."""
        names = self.before.keys() | self.after.keys()
        if names:
            check_folder(root / "store", {name: {self.after.get(name)} for name in names})
        self.check(root)
        self.done(root)

    def check_swept(self, root: Path) -> None:
        """After prunings an hour later that spare nothing: nothing is left, all is as it was."""
        for name in ("store", "cache"):
            if (root / name / layout.SETTINGS).exists():
                states, objects = FolderStateFiles(root / name), FolderObjectStore(root / name)
                # A temporary may be somebody's work for an hour, whatever the grace period.
                _age(root / name / layout.TEMPORARIES)
                for _ in range(2):
                    prune_folder(states, objects, grace_seconds=-60)
                for folder in (layout.TEMPORARIES, layout.TRASH):
                    left = list((root / name / folder).glob("*"))
                    assert left == [], f"left in {folder}/: {left}"
        self.check_done(root)
        if list(root.glob("**/.*.tmp")):  # beside the user's own files: gone an hour later
            _age(root)
            (self.sweep or self.run)(root)
            assert list(root.glob("**/.*.tmp")) == []


def _store(root: Path) -> LocalStateStore:
    return LocalStateStore(root / "store")


def _base(root: Path) -> None:
    save(_store(root), "base", 0)


def _two(root: Path) -> None:
    _base(root)
    save(_store(root), "gone", 1)


def _age(folder: Path) -> None:
    old = time.time() - _OLD
    for path in folder.rglob("*"):
        os.utime(path, (old, old), follow_symlinks=False)


def _prunable(root: Path) -> None:
    """Objects of a deleted state, an object in trash/ that is in use, and a temporary, all old."""
    _two(root)
    store = _store(root)
    store.delete(key_of("gone"))
    entry = store.get(key_of("base")).entry
    victim = next(iter(entry.files.values())).digest
    objects = FolderObjectStore(root / "store")
    (root / "store" / layout.TRASH / f"{victim}.{'0' * 32}").write_bytes(
        objects.path(victim).read_bytes()
    )
    objects.path(victim).unlink()
    (root / "store" / layout.TEMPORARIES / ("1" * 32)).write_bytes(b"left by a crash")
    _age(root / "store")


def _prune(root: Path) -> object:
    return _store(root).prune().deleted.keys()


def _web(root: Path) -> None:
    """A store and a plain file of a state, and manifests that name them."""
    web = LocalStateStore(root / "web")
    save(web, "a", 2)
    write_plain(root / "a.safetensors", 2)
    entry = web.get(key_of("a")).entry
    Manifest({key_of("a"): entry}, objects=("web",)).write(root / "objects.toml")
    table = f'version = 1\n# a comment\n[states."{key_of("a")}"]\n'
    (root / "unpinned.toml").write_text(f'{table}mirrors = ["a.safetensors"]\n')
    (root / "file.toml").write_text(
        f'{table}blake3 = "{entry.digest}"\nmirrors = ["a.safetensors"]\n'
    )


def _fetch(name: str) -> Callable[[Path], object]:
    def run(root: Path) -> object:
        return ManifestStore(root / name, cache=root / "cache").fetch(key_of("a")).fetched

    return run


def _check_cache(root: Path) -> None:
    """All that the cache has is right."""
    if (root / "cache").exists():
        report = verify(ManifestStore(root / "objects.toml", cache=root / "cache"))
        assert report.findings == (), str(report.findings[0])


def _fetched(files: bool) -> Callable[[Path], None]:
    def check(root: Path) -> None:
        store = ManifestStore(root / "objects.toml", cache=root / "cache")
        if files:
            assert whole(store, "a") == 2
        else:
            report = verify(store)
            held = list(FolderObjectStore(root / "cache").digests())
            assert set(known(2).encoded.sizes()) <= set(held), "not all is there"
            assert report.absent == ()

    return check


def _source(root: Path) -> None:
    _base(root)
    other = LocalStateStore(root / "other")
    save(other, "new", 1)
    write_plain(root / "new.safetensors", 1)
    bundle(other, [key_of("new")], root / "new.tar")


def _copy(root: Path) -> object:
    return copy(LocalStateStore(root / "other"), _store(root), [key_of("new")]).copied


def _adopt(root: Path) -> object:
    state = known(1)
    return adopt(root / "new.safetensors", key_of("new"), _store(root), files=dict(state.files)).key


def _check_manifest(*texts: str) -> Callable[[Path], None]:
    """The manifest is one that somebody wrote, whole."""

    def check(root: Path) -> None:
        keys = {str(key) for key in Manifest.read(root / "m.toml").states}
        wanted = [{str(key_of(name)) for name in text.split()} for text in texts]
        assert keys in wanted, keys
        assert "# a comment" in (root / "m.toml").read_text()

    return check


def _listed(root: Path) -> None:
    _base(root)
    save(_store(root), "new", 1)
    Manifest({}).write(root / "m.toml")
    enlist(root / "m.toml", _store(root), [key_of("base")])
    text = (root / "m.toml").read_text()
    (root / "m.toml").write_text(f"# a comment\n{text}")


def _locked(root: Path) -> None:
    assert Manifest.read(root / "unpinned.toml").states[key_of("a")].digest == (
        known(2).encoded.digest
    )


def _check_unpinned(root: Path) -> None:
    entry = Manifest.read(root / "unpinned.toml").states[key_of("a")]
    assert entry.digest in (None, known(2).encoded.digest)
    assert "# a comment" in (root / "unpinned.toml").read_text()
    _check_cache(root)


def _touch(name: str) -> Callable[[Path], object]:
    """An edit of a manifest that changes nothing."""
    return lambda root: change_manifest(root / name, lambda manifest: manifest)


def _exported(root: Path) -> None:
    from mlstate import file_digest

    if (root / "out.safetensors").exists():
        assert file_digest(root / "out.safetensors") == known(0).encoded.digest


def _materialized(root: Path) -> None:
    from mlstate import file_digest

    assert file_digest(root / "plain" / "model.safetensors") == known(0).encoded.digest
    assert (root / "plain" / "labels.json").read_bytes() == known(0).files["labels.json"]


def _filled(root: Path) -> None:
    """A cache with two states, one of them not used for long."""
    _web(root)
    web = LocalStateStore(root / "web")
    save(web, "b", 3)
    entries = {key_of(name): web.get(key_of(name)).entry for name in "ab"}
    Manifest(entries, objects=("web",)).write(root / "objects.toml")
    store = ManifestStore(root / "objects.toml", cache=root / "cache")
    store.fetch(key_of("b"))
    _age(root / "cache")
    store.fetch(key_of("a"))


def _evict(root: Path) -> object:
    store = ManifestStore(root / "objects.toml", cache=root / "cache")
    return list(store.prune(older_than=24 * 3600).states.values())


BASE: Expected = {"base": 0}
NEW: Expected = {"base": 0, "new": 1}


def _history(root: Path) -> object:
    """Several changes, one after the other; after each a mark says which states there are."""
    store, states = _store(root), dict[str, int | None]()

    def say(**now: int | None) -> None:
        states.update(now)
        mark(json.dumps(states))

    save(store, "a", 0, overwrite=True)  # of an earlier try there may be another
    say(a=0)
    save(store, "b", 1)
    say(b=1)
    save(store, "a", 4, overwrite=True)
    say(a=4)
    store.delete(key_of("b"))
    say(b=None)
    for _ in range(2):
        store.prune(grace_seconds=-60)
    save(store, "b", 1)
    say(b=1)
    save(store, "c", 2)
    say(c=2)
    return states


def _key(root: Path) -> None:
    _base(root)
    key = root / "id_ed25519"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    public = key.with_suffix(".pub").read_text()
    (root / "allowed").write_text(f"alice@lab.example {public}")
    Manifest({}).write(root / "m.toml")
    enlist(root / "m.toml", _store(root), [key_of("base")])


def _sign(root: Path) -> object:
    (root / "id_ed25519").chmod(0o600)  # a replayed folder has no rights
    sign(root / "m.toml", root / "id_ed25519")
    return len(sign(_store(root), root / "id_ed25519"))


def _signed(root: Path) -> None:
    for target in (_store(root), root / "m.toml"):
        (found,) = verify_signature(target, allowed_signers=root / "allowed")
        assert found.signer == "alice@lab.example"


def _check_signed(root: Path) -> None:
    """What is signed is signed well."""
    if (root / "m.toml.sig").exists():
        verify_signature(root / "m.toml", allowed_signers=root / "allowed")
    assert Manifest.read(root / "m.toml").states.keys() == {key_of("base")}
    if is_signed((root / "store" / layout.state_path(key_of("base"))).read_bytes()):
        verify_signature(_store(root), allowed_signers=root / "allowed")


def _damaged(root: Path) -> None:
    """A cache with damaged objects, and a mirror that is whole."""
    _web(root)
    ManifestStore(root / "objects.toml", cache=root / "cache").fetch(key_of("a"))
    objects = FolderObjectStore(root / "cache")
    for digest in sorted(known(2).encoded.sources)[:2]:
        objects.path(digest).chmod(0o644)
        objects.path(digest).write_bytes(b"rot")


def _repair(root: Path) -> object:
    store = ManifestStore(root / "objects.toml", cache=root / "cache")
    verify(store, repair=True)
    return store.fetch(key_of("a")).fetched  # what a kill left set aside


def _over(root: Path) -> None:
    """A folder that holds another state."""
    _two(root)
    _store(root).materialize(key_of("gone"), root / "plain")


OPERATIONS: dict[str, Operation] = {
    "save into nothing": Operation(
        _nothing, lambda root: save(_store(root), "base", 0), {"base": None}, BASE
    ),
    "save": Operation(_base, lambda root: save(_store(root), "new", 1), BASE, NEW),
    "history": Operation(
        _nothing,
        _history,
        {"a": None, "b": None, "c": None},
        {"a": 4, "b": 1, "c": 2},
        between={"a": [0]},
    ),
    "save again": Operation(_base, lambda root: save(_store(root), "base", 0), BASE, BASE),
    "save over": Operation(
        _base, lambda root: save(_store(root), "base", 4, overwrite=True), BASE, {"base": 4}
    ),
    "delete": Operation(
        _two,
        lambda root: (
            key_of("gone") in _store(root).get_state_keys() and _store(root).delete(key_of("gone"))
        ),
        {"base": 0, "gone": 1},
        BASE,
    ),
    "prune": Operation(_prunable, _prune, BASE, BASE),
    "copy": Operation(_source, _copy, BASE, NEW),
    "adopt": Operation(_source, _adopt, BASE, NEW),
    "unbundle": Operation(
        _source, lambda root: unbundle(root / "new.tar", _store(root)), BASE, NEW
    ),
    "fetch objects": Operation(
        _web, _fetch("objects.toml"), check=_check_cache, done=_fetched(True)
    ),
    "fetch from a file": Operation(
        _web, _fetch("file.toml"), check=_check_cache, done=_fetched(False)
    ),
    "prune a cache": Operation(_filled, _evict, check=_check_cache, done=_fetched(True)),
    "lock": Operation(
        _web,
        lambda root: lock(root / "unpinned.toml", cache=root / "cache"),
        check=_check_unpinned,
        done=_locked,
        sweep=_touch("unpinned.toml"),
    ),
    "enlist": Operation(
        _listed,
        lambda root: enlist(root / "m.toml", _store(root), [key_of("new")]),
        NEW,
        NEW,
        check=_check_manifest("base", "base new"),
        done=_check_manifest("base new"),
    ),
    "unlist": Operation(
        _listed,
        lambda root: (
            key_of("base") in Manifest.read(root / "m.toml").states
            and unlist(root / "m.toml", [key_of("base")])
        ),
        NEW,
        NEW,
        check=_check_manifest("base", ""),
        done=_check_manifest(""),
        sweep=_touch("m.toml"),
    ),
    "bundle": Operation(
        _base,
        lambda root: bundle(_store(root), [key_of("base")], root / "out.tar", overwrite=True),
        BASE,
        BASE,
    ),
    "export": Operation(
        _base,
        lambda root: export(_store(root), key_of("base"), root / "out.safetensors", overwrite=True),
        BASE,
        BASE,
        check=_exported,
    ),
    "materialize": Operation(
        _base,
        lambda root: _store(root).materialize(key_of("base"), root / "plain"),
        BASE,
        BASE,
        done=_materialized,
    ),
    "materialize over": Operation(
        _over,
        lambda root: _store(root).materialize(key_of("base"), root / "plain"),
        {"base": 0, "gone": 1},
        {"base": 0, "gone": 1},
        done=_materialized,
    ),
    "repair": Operation(_damaged, _repair, done=_fetched(True)),
}
if shutil.which("ssh-keygen"):
    OPERATIONS["sign"] = Operation(_key, _sign, BASE, BASE, check=_check_signed, done=_signed)
"""The operations, by their names."""


def warm_up() -> None:
    """Run each once, so that all is imported that they need."""
    for operation in OPERATIONS.values():
        root = Path(tempfile.mkdtemp())
        try:
            operation.prepare(root)
            operation.run(root)
            operation.check_done(root)
        finally:
            shutil.rmtree(root)
