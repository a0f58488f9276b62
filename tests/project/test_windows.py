"""What works where a system lacks what Windows lacks, each in a process of its own.

This is a stand-in: see `tests.support.windows` for what it shows, and what it cannot.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PureWindowsPath

import pytest

from mlstate import LocalStateStore, ManifestStore, StateKey, manifest_of, verify
from mlstate.errors import FormatError, StoreNotFoundError
from mlstate.locations import check_file_names, check_url, local_path
from mlstate.stores.open import open_store
from mlstate.transport.local import _path_of
from tests.support.fetching import FILE, STORE, publish, write_manifest
from tests.support.models import net, same, values
from tests.support.windows import on_windows

KEY = StateKey.parse("pytorch.net.one")


def printed(code: str, *arguments: object, links: bool = True) -> str:
    """What code prints there."""
    done = on_windows(code, *arguments, links=links)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The stand-in.

REFUSALS = """
import errno, pathlib
os.chdir(folder)
pathlib.Path("file").write_bytes(b"1")
pathlib.Path("other").write_bytes(b"2")
os.mkdir("folder")

def refused(kind, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except kind:
        return
    raise SystemExit(f"{call} of {arguments} is not refused")

binary = os.O_RDONLY | os.O_BINARY
refused(AssertionError, os.open, "file", os.O_RDONLY)
refused(PermissionError, os.open, "folder", binary)
refused(PermissionError, open, "folder", "rb")
refused(NotImplementedError, os.open, "file", binary, dir_fd=3)
refused(FileExistsError, os.rename, "file", "other")
refused(TypeError, os.listdir, 3)
refused(NotImplementedError, os.utime, "file", follow_symlinks=False)
refused(OSError, os.symlink, "file", "link")
descriptor = os.open("file", binary)
refused(OSError, os.fsync, descriptor)
refused(PermissionError, os.unlink, "file")
refused(PermissionError, pathlib.Path("file").unlink)
refused(PermissionError, os.replace, "other", "file")
refused(PermissionError, os.rename, "file", "third")
refused(TypeError, mmap.mmap, descriptor, 1, prot=1)
view = mmap.mmap(descriptor, 1, access=mmap.ACCESS_READ)
os.close(descriptor)
refused(PermissionError, os.unlink, "file")
view.close()
os.close(os.open("sealed", os.O_CREAT | os.O_RDWR | os.O_BINARY, 0o444))
refused(PermissionError, os.unlink, "sealed")
refused(PermissionError, os.replace, "other", "sealed")
os.replace("other", "file")
for name in ("O_CLOEXEC", "O_NOFOLLOW", "geteuid", "fork", "pread", "writev", "statvfs", "fchmod"):
    assert not hasattr(os, name), name
for name in ("fcntl", "resource", "pwd"):
    refused(ImportError, __import__, name, globals())
assert sys.platform == "win32", sys.platform
"""


def test_the_stand_in_refuses_what_windows_refuses(tmp_path: Path):
    code = f"""
        scope = {{"__name__": "mlstate.trial", "folder": sys.argv[1]}}
        exec("import os, mmap, sys\\n" + {REFUSALS!r}, scope)
        print("all of it")
    """
    assert printed(code, tmp_path) == "all of it"


# What is said of it.


def test_windows_is_said_to_be_untested_and_no_classifier_says_otherwise():
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    systems = [text for text in project["classifiers"] if text.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]
    assert any(
        re.fullmatch(r"filelock.*sys_platform == 'win32'", d) for d in project["dependencies"]
    )
    for page in ("README.md", "docs/filesystems.md"):
        text = (root / page).read_text().replace("\n", " ")
        assert re.search(r"Windows is \*\*untested\*\*|has never run on Windows", text), page


def test_the_pythons_in_classifiers_are_those_that_ci_runs():
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.M)
    makefile = (root / "Makefile").read_text()
    main = re.search(r"^PYTHON \?= python(.*)$", makefile, re.M)
    others = re.search(r"^PYTHONS \?= (.*)$", makefile, re.M)
    assert main is not None
    assert others is not None
    assert named == [main[1], *others[1].split()]


# The package.

_ASKED = re.compile(
    r"os\.(O_(?!RDONLY|WRONLY|RDWR|CREAT|EXCL)\w+|get(e?uid|e?gid)|pread\w*|pwrite\w*|readv|writev|"
    r"fchmod|fchown|chown|supports_\w+)|dir_fd=|PROT_READ"
)


def test_what_windows_lacks_is_asked_for_in_one_place():
    package = Path(__file__).parents[2] / "mlstate"
    texts = {path: path.read_text() for path in package.rglob("*.py")}
    asking = {path.relative_to(package).as_posix() for path in texts if _ASKED.search(texts[path])}
    assert asking == {"system.py"}


def test_every_module_can_be_imported():
    code = """
        import importlib, pkgutil
        import mlstate
        count = 0
        for module in pkgutil.walk_packages(mlstate.__path__, "mlstate."):
            if not module.name.startswith(("mlstate.integrations", "mlstate.__main__")):
                importlib.import_module(module.name)
                count += 1
        print(count)
    """
    assert int(printed(code)) > 250


SAVE = """
from pathlib import Path
from mlstate import LocalStateStore, verify
from tests.support.models import net, same, values
store = LocalStateStore(sys.argv[1])
first = store.save(net(), "one", files={"lines.txt": b"1\\n2\\r\\n\\x1a3"})
store.save(net(), "one", files={"lines.txt": b"1\\n2\\r\\n\\x1a3"}, overwrite=True)
second = store.save(net(1, width=600), "two")
back = store.load_state_dict(second)
assert same(back, values(net(1, width=600)))
assert verify(store).ok
for path, mode in ((p, p.stat().st_mode) for p in Path(sys.argv[1]).rglob("*") if p.is_file()):
    assert mode & 0o200, path  # a read-only file could be neither replaced nor removed
del back
store.delete(second)
report = store.prune(grace_seconds=0)
assert report.trashed and store.get_state_keys() == [first], report
assert not store.prune(grace_seconds=0).trashed and verify(store).ok
"""


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_what_is_saved_there_is_what_is_saved_here(tmp_path: Path, links: bool):
    printed(SAVE, tmp_path / "there", links=links)
    here = LocalStateStore(tmp_path / "here")
    here.save(net(), "one", files={"lines.txt": b"1\n2\r\n\x1a3"})
    there = LocalStateStore(tmp_path / "there")
    assert same(there.load_state_dict(KEY), values(net()))
    assert there.get(KEY).entry == here.get(KEY).entry
    assert verify(there).ok


def test_ls_fetch_verify_and_load_work_by_reading_and_copying(tmp_path: Path, start_recording):
    """From a store, a plain file and a torch checkpoint on the web: without one map of a file."""
    large = net(width=30_000)  # larger than what is asked for at once, and than what is mapped
    found = publish(tmp_path / "web", KEY, values(large), files={"labels.txt": b"a\nb\n"})
    here_files = {
        path.relative_to(tmp_path / "web").as_posix(): path.read_bytes()
        for path in (tmp_path / "web").rglob("*")
        if path.is_file()
    }
    server = start_recording(here_files)
    write_manifest(tmp_path / "m.toml", found, objects=[f"{server.url}/{STORE}"])
    write_manifest(tmp_path / "plain.toml", found, mirrors=[f"{server.url}/{FILE}"], files={})
    code = """
        import os
        from mlstate import ManifestStore, StateKey, verify
        from mlstate.cli.app import run
        from tests.support.models import net, same, values
        key, expected = StateKey.parse(sys.argv[2]), values(net(width=30_000))
        os.chdir(sys.argv[1])
        for manifest in ("m.toml", "plain.toml"):
            os.environ["MLSTATE_CACHE"] = f"cache of {manifest}"
            for command in (["ls"], ["fetch", "--all"], ["verify"]):
                code = run([*command, "--store", manifest])
                assert code == 0, (command, manifest, code)
            store = ManifestStore(manifest)
            found = store.load_state_dict(key)
            assert same(found, expected), manifest
            model = net(seed=3, width=30_000)
            store.load(model, key)
            assert same(values(model), expected)
            assert verify(store).ok
        with open("/proc/self/maps") as maps:
            assert not [line for line in maps if "cache of" in line]
    """
    done = printed(code, tmp_path, KEY)
    assert "all as they should be" in done
    for manifest in ("m.toml", "plain.toml"):
        cache = tmp_path / f"cache of {manifest}"
        assert verify(ManifestStore(tmp_path / manifest, cache=cache, offline=True)).ok


def test_what_was_interrupted_goes_on_and_nobody_else_writes_to_it(tmp_path: Path):
    code = """
        from pathlib import Path
        from mlstate.digests import Digest
        from mlstate.objects.folder import FolderObjectStore
        from mlstate.objects.partial import BLOCK
        from mlstate.objects.receiving import Receiver
        data = bytes(range(256)) * (3 * BLOCK // 256)
        receiver = Receiver(FolderObjectStore(sys.argv[1]))
        first = receiver.partial("a" * 64, len(data))
        first.write(0, data[:BLOCK])
        first.mark(0, BLOCK)
        second = receiver.partial("a" * 64, len(data))
        assert not second.resumed and second.path != first.path
        second.close()
        assert not second.path.exists()
        first.close()
        again = receiver.partial("a" * 64, len(data))
        assert again.resumed and again.missing() == [(BLOCK, 3 * BLOCK)], again.missing()
        again.write(BLOCK, data[BLOCK:])
        again.mark(BLOCK, 3 * BLOCK)
        digest = again.digest()
        assert again.claim() and digest == Digest.of(data)
        receiver.publish_partial(again, digest)
        receiver.flush()
        assert receiver.store.open(digest).read() == data
        third = receiver.partial("b" * 64, len(data))
        third.write(0, b"1")
        third.forget()  # others may be writing to it
        third.write(0, b"2")
        third.close()
        names = {path.name for path in receiver.temporaries.iterdir()}
        assert {name for name in names if not name.endswith(".lock")} == set(), names
    """
    printed(code, tmp_path / "cache")


def test_who_reads_a_file_that_is_replaced_is_waited_for_a_while(tmp_path: Path):
    code = """
        from pathlib import Path
        from mlstate import system
        target, new = Path(sys.argv[1], "target"), Path(sys.argv[1], "new")
        target.write_bytes(b"old")
        new.write_bytes(b"new")
        really, refused = system.os.replace, []

        def until_it_is_read(source, target):
            try:
                really(source, target)
            except PermissionError:
                refused.append(source)
                reader.close()
                raise

        reader = target.open("rb")
        system.os.replace, system._PATIENCE = really, 0
        try:
            system.replace(new, target)
        except PermissionError:
            assert reader.read() == b"old" and new.read_bytes() == b"new"
        else:
            raise SystemExit("nobody was waited for, or refused")
        system.os.replace, system._PATIENCE = until_it_is_read, 60
        system.replace(new, target)
        assert refused == [new] and target.read_bytes() == b"new"
    """
    printed(code, tmp_path)


def test_a_damaged_object_is_set_aside_and_fetched_again(tmp_path: Path):
    here = LocalStateStore(tmp_path / "store")
    here.save(net(width=9000), "one")
    manifest_of(here, objects=[str(tmp_path / "store")]).write(tmp_path / "m.toml")
    code = """
        import warnings
        from pathlib import Path
        from mlstate import ManifestStore, StateKey, verify
        from tests.support.models import net, same, values
        key = StateKey.parse("pytorch.net.one")
        store = ManifestStore(sys.argv[1], cache=sys.argv[2])
        store.load_state_dict(key)
        largest = max(Path(sys.argv[2]).rglob("objects/*/*"), key=lambda p: p.stat().st_size)
        warnings.simplefilter("ignore")
        data = bytearray(largest.read_bytes())
        data[-1] ^= 1
        largest.write_bytes(data)
        assert not verify(store).ok
        assert same(ManifestStore(sys.argv[1], cache=sys.argv[2]).load_state_dict(key),
                    values(net(width=9000)))
        assert verify(store).ok
    """
    printed(code, tmp_path / "m.toml", tmp_path / "cache")


def test_threads_read_and_write_one_file_at_many_positions(tmp_path: Path):
    code = """
        import os, random
        from concurrent.futures import ThreadPoolExecutor
        from mlstate.system import open_at, pread, pwrite, readinto_at
        blocks = [random.randbytes(4096) for _ in range(300)]
        descriptor = open_at(sys.argv[1], os.O_RDWR | os.O_CREAT)
        def write(n):
            assert pwrite(descriptor, blocks[n], 4096 * n) == 4096
        def read(n):
            buffer = bytearray(4096)
            assert readinto_at(descriptor, memoryview(buffer), 4096 * n) == 4096
            return bytes(buffer) == blocks[n] == pread(descriptor, 4096, 4096 * n)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, random.sample(range(300), 300)))
            assert all(pool.map(read, random.sample(range(300), 300)))
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        os.close(descriptor)
    """
    printed(code, tmp_path / "file")
    assert (tmp_path / "file").stat().st_size == 4096 * 300


def test_folders_are_written_replaced_and_refused_names_of_devices(tmp_path: Path):
    code = """
        import os
        from mlstate import LocalStateStore, StateKey
        from mlstate.errors import FormatError
        from tests.support.models import net
        os.chdir(sys.argv[1])
        store = LocalStateStore("store")
        for seed in (1, 2):
            store.save(net(seed), "one", files={"sub/labels.txt": b"%d" % seed}, overwrite=True)
            store.materialize(StateKey.parse("pytorch.net.one"), "folder")
            with open("folder/sub/labels.txt", "rb") as file:
                assert file.read() == b"%d" % seed
        store.delete(StateKey.parse("pytorch.net.one"))
        for n, name in enumerate(["aux.json", "sub/NUL", "config.json:x", "ends. /a", "what?"]):
            key = store.save(net(), f"odd{n}", files={name: b""})
            try:
                store.materialize(key, f"odd{n}")
            except FormatError:
                assert not os.path.isdir(f"odd{n}") or not os.listdir(f"odd{n}")
            else:
                raise SystemExit(name)
    """
    printed(code, tmp_path)


def test_a_manifest_that_two_threads_change_loses_nothing(tmp_path: Path):
    code = """
        from concurrent.futures import ThreadPoolExecutor
        from dataclasses import replace
        from mlstate import Manifest
        from mlstate.manifests.update import change_manifest
        path = sys.argv[1]
        Manifest({}).write(path)
        def add(n):
            change_manifest(path, lambda m: replace(m, objects=(*m.objects, f"place{n}")))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(12)))
        print(len(Manifest.read(path).objects))
    """
    assert printed(code, tmp_path / "m.toml") == "12"


def test_doctor_says_what_this_system_lacks_and_leaves_nothing(tmp_path: Path):
    LocalStateStore(tmp_path / "store").save(net(), "one")
    code = """
        import os
        from mlstate.cli.app import run
        os.chdir(sys.argv[1])
        code = run(["doctor", "--store", "store"])
        assert code == 0, code
    """
    said = printed(code, tmp_path)
    assert "store: memory maps           no" in said
    assert not list(tmp_path.rglob(".mlstate-probe*"))


# Paths of Windows, where these are only texts.

PATHS = [r"C:\weights", "C:/weights", r"\\server\share\weights", r"D:weights", r".\weights"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_windows_is_no_address(path: str):
    assert str(local_path(path)) == path
    assert check_url(path) is None
    with pytest.raises(StoreNotFoundError):
        open_store(path)


@pytest.mark.parametrize("name", [r"a\b", "C:/a", "c:a", r"\\server\a", "/a", "../a"])
def test_a_name_that_leads_elsewhere_on_windows_is_no_name_of_a_file(name: str):
    with pytest.raises(FormatError):
        check_file_names([name])


@pytest.mark.parametrize(
    "path", [r"C:\w\a b.safetensors", "C:/w/x.pt", r"Z:\ä", "/home/x/C:/y", "/w/a%20b"]
)
def test_a_file_url_of_windows_leads_to_its_file(path: str):
    windows = not path.startswith("/")
    url = (PureWindowsPath(path) if windows else Path(path)).as_uri()
    found = _path_of(url.removeprefix("file://"), drives=windows)
    assert (PureWindowsPath(found) if windows else Path(found)) == (
        PureWindowsPath(path) if windows else Path(path)
    )
