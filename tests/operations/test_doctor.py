"""What `diagnose` finds, on real servers and file systems, and that it leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mlstate import (
    GitHubReleaseStore,
    LocalStateStore,
    ManifestStore,
    S3StateStore,
    locks,
    open_store,
)
from mlstate.digests import Digest
from mlstate.errors import FormatError, IntegrityError
from mlstate.objects.cache import write_root
from mlstate.operations.doctor import folders, network, traits
from mlstate.operations.doctor.check import Check, failed, reason_of
from mlstate.operations.doctor.doctor import Diagnosis, diagnose
from mlstate.operations.doctor.network import MOST_PLACES, ask_all
from mlstate.operations.doctor.places import Place
from mlstate.operations.doctor.traits import file_system_of, probe
from tests.servers.nginx import Nginx
from tests.servers.ports import HOST, closed_port
from tests.servers.recording import RecordingServer
from tests.support.buckets import bucket_store
from tests.support.fetching import FILE, KEY, Published, write_manifest
from tests.support.machine import mounted

SECRET = "s3cr3t-t0ken-of-a-test"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch):
    """A busy machine is no finding."""
    for name in ("SECONDS", "_CONNECT", "_READ"):
        monkeypatch.setattr(network, name, 60.0)


@pytest.fixture
def nginx(published: Published, start_nginx: Callable[..., Nginx]) -> Nginx:
    return start_nginx(published.folder, password=SECRET)


def check(found: Diagnosis, name: str) -> Check:
    """The one check of a name."""
    (only,) = [one for one in found.checks if one.name == name]
    return only


def everything(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def of_mirror(published: Published, folder: Path, *mirrors: str, **options: object) -> Diagnosis:
    manifest = write_manifest(folder / "m.toml", published, mirrors=mirrors)
    return diagnose(ManifestStore(manifest, cache=folder / "cache"), **options)


# Versions and settings.


def test_versions_are_those_that_are_installed(tmp_path: Path):
    versions = diagnose(LocalStateStore(tmp_path), reach=False).versions
    assert versions["torch"] == torch.__version__
    assert versions["mlstate"]
    assert versions["Python"]
    assert list(versions)[3:] == [
        *("torch", "safetensors", "blake3", "obstore"),
        *("boto3", "huggingface_hub", "rich", "typer"),
    ]


def test_settings_have_values_or_defaults_and_secrets_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLSTATE_TOKEN_CDN_EXAMPLE_ORG", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", f"https://user:{SECRET}@hub.example.org")
    monkeypatch.setenv("MLSTATE_OFFLINE", "1")
    found = diagnose(LocalStateStore(tmp_path), reach=False)
    values = {setting.name: setting.value for setting in found.settings}
    assert values["MLSTATE_OFFLINE"] == "1"
    assert values["MLSTATE_STORE"] is None
    assert values["MLSTATE_TOKEN_CDN_EXAMPLE_ORG"] == values["HF_TOKEN"] == "(set)"
    assert values["HF_ENDPOINT"] == "https://(hidden)@hub.example.org"
    assert "MLSTATE_TOKEN_<HOST>" not in values
    assert "AWS_PROFILE" not in values  # of other tools those that are set
    assert SECRET not in repr(found)


# The cache.


def test_a_cache_is_counted_and_nothing_is_left(published: Published, tmp_path: Path):
    mirror = str(published.folder / FILE)
    manifest = write_manifest(tmp_path / "m.toml", published, mirrors=[mirror], files={})
    store = ManifestStore(manifest, cache=tmp_path / "cache")
    store.fetch(KEY)
    (tmp_path / "cache" / "tmp" / "left.partial").write_bytes(b"12345")
    write_root(tmp_path / "cache", Digest.of(b"of a fetch that was killed"), str(KEY), [])
    before = everything(tmp_path / "cache" / "objects")
    names = set(os.listdir(tmp_path / "cache"))
    found = diagnose(store)
    objects = list((tmp_path / "cache").glob("objects/*/*"))
    nbytes = sum(path.stat().st_size for path in objects)
    counted = check(found, "cache: contents").found
    assert counted == f"{len(objects)} objects, {nbytes / 1000:.1f} kB; 1 fetched state kept"
    assert check(found, "cache: tmp").found.startswith("1 files, 5 B")
    assert check(found, "cache").ok
    assert check(found, str(published.folder)) == Check(str(published.folder), True, "can be read")
    assert found.ok
    assert everything(tmp_path / "cache" / "objects") == before
    assert set(os.listdir(tmp_path / "cache")) == names


def test_a_missing_cache_stays_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "not" / "yet"))
    found = diagnose(reach=False)
    assert check(found, "cache").ok
    assert "not there yet" in check(found, "cache").found
    assert check(found, "cache: locks").found == "yes"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_a_file_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLSTATE_CACHE", str(tmp_path / "file"))
    found = diagnose(reach=False)
    assert check(found, "store").ok is False  # it cannot be opened with such a cache
    assert "this is a file" in check(found, "cache").found
    assert not found.ok


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to."""
    folder = tmp_path / "folder"
    LocalStateStore(folder).save_state_dict({"w": torch.ones(9000)}, KEY)
    done = subprocess.run(["mount", "--bind", folder, folder], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("this user cannot mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_read_only_cache_is_a_finding_and_is_not_probed(
    read_only: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLSTATE_CACHE", str(read_only))
    before = everything(read_only)
    found = diagnose(reach=False)
    assert check(found, "cache").ok is False
    assert "cannot be written" in check(found, "cache").found
    assert "MLSTATE_READONLY_CACHES" in str(check(found, "cache").remedy)
    assert check(found, "cache: contents").found.startswith("2 objects, 40.")
    assert not [one for one in found.checks if one.name == "cache: locks"]
    assert everything(read_only) == before


def test_a_read_only_cache_may_be_read_only(read_only: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLSTATE_READONLY_CACHES", str(read_only))
    found = check(diagnose(reach=False), f"read-only cache {read_only}")
    assert found.ok
    assert found.found.startswith("2 objects, 40.")


def test_a_read_only_cache_that_is_no_store_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "other" / "objects").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    folders = [tmp_path / "missing", tmp_path / "other", tmp_path / "file"]
    monkeypatch.setenv("MLSTATE_READONLY_CACHES", os.pathsep.join(map(str, folders)))
    found = diagnose(reach=False)
    checks = [check(found, f"read-only cache {folder}") for folder in folders]
    assert [one.ok for one in checks] == [False, False, False]
    assert "is not there" in checks[0].found
    assert "not a store" in checks[1].found
    assert "is no folder" in checks[2].found


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
AS_ANOTHER = """
import os, sys
from mlstate.operations.doctor.doctor import diagnose
diagnose(sys.argv[1], reach=False)  # imports what this user may read
os.setgroups([]); os.setgid(12345); os.setuid(12345)
os.environ["MLSTATE_CACHE"] = sys.argv[1]
for check in diagnose(sys.argv[1], reach=False).checks:
    print(check.name, check.ok, check.found, sep="|")
"""


def as_another(cache: Path) -> dict[str, list[str]]:
    """What another user is told of a cache."""
    command = [sys.executable, "-W", "error", "-c", AS_ANOTHER, str(cache)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("|") for line in done.stdout.splitlines()]
    return {name: rest for name, *rest in lines}


@ROOT
def test_what_another_user_left_is_told(tmp_path: Path):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cache"
        LocalStateStore(folder).save_state_dict({"w": torch.ones(9000)}, KEY)
        Path(name).chmod(0o755)
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, 12345 if path.is_dir() else 54321, -1)
        said = as_another(folder)
        assert said["cache: permissions"][0] == "None"
        assert said["cache: permissions"][1].startswith("2 objects of other users")
        for path in (folder / "objects").rglob("*"):
            os.chown(path, 0, -1)
            path.chmod(0o755 if path.is_dir() else 0o400)
        said = as_another(folder)
        trouble = "2 objects cannot be read and 2 folders cannot be written"
        assert said["cache: permissions"] == ["False", trouble]
        (folder / "objects").chmod(0o700)
        os.chown(folder / "objects", 0, -1)
        trouble = "1 folders cannot be read and 1 folders cannot be written"
        assert as_another(folder)["cache: permissions"] == ["False", trouble]
        folder.chmod(0o700)
        os.chown(folder, 0, -1)
        said = as_another(folder)
        assert said["cache"][0] == "False"
        assert said["store"][0] == "False"


# Its disk.


Disk = namedtuple("Disk", "f_frsize f_blocks f_bavail f_files f_favail")
GB = 10**9


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (
            Disk(1, 100 * GB, 50 * GB, 10**6, 10**5),
            ("free disk", True, "50.0 GB of 100.0 GB (50 %)"),
        ),
        (Disk(1, 100 * GB, 4 * GB, 10**6, 10**5), ("free disk", False, "4.0 GB of 100.0 GB (4 %)")),
        (Disk(1, 4 * GB, GB - 1, 10**6, 10**5), ("free disk", False, "1.0 GB of 4.0 GB (25 %)")),
        (Disk(1, 4 * GB, 0, 10**6, 10**5), ("free disk", False, "0 B of 4.0 GB (0 %)")),
        (Disk(1, 0, 0, 0, 0), ("free disk", None, "not told by this file system")),
        (Disk(1, 9 * GB, 9 * GB, 10**6, 99), ("free files", False, "room for 99 more (inodes)")),
    ],
)
def test_a_disk_that_is_nearly_full_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk, expected: tuple[str, object, str]
):
    name, ok, found = expected
    monkeypatch.setattr(folders.os, "statvfs", lambda _: disk)
    one = check(diagnose(LocalStateStore(tmp_path), reach=False), f"cache: {name}")
    assert (one.ok, one.found) == (ok, found)
    assert (one.remedy is not None) == (ok is False)


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A real one, which takes not even the probe."""
    mount = tmp_path / "mount"
    mount.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"]
    done = subprocess.run(["mount", *options, mount], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("this user cannot mount")
    try:
        (mount / "full").write_bytes(bytes(60_000))
        monkeypatch.setenv("MLSTATE_CACHE", str(mount))
        found = diagnose(reach=False)
        assert check(found, "cache").ok is False
        assert "No space left" in check(found, "cache").found
        assert check(found, "cache: free disk").ok is False
        assert check(found, "cache: file system").found == "tmpfs"
        assert os.listdir(mount) == ["full"]
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


# Its file system.


def test_btrfs_shares_blocks(tmp_path: Path):
    with mounted("btrfs", tmp_path, 200 << 20) as mount:
        able = probe(mount)
        assert able.shares_blocks
        assert able.hard_links
        assert able.exclusive_rename
        assert able.case_sensitive
        assert able.locks
        assert able.maps
        assert able.flush_seconds > 0
        assert file_system_of(mount) == "btrfs"
        assert list(mount.iterdir()) == []


def test_the_deepest_and_latest_mount_counts(tmp_path: Path):
    folder = tmp_path.resolve() / "a b" / "c"
    folder.mkdir(parents=True)
    escaped = str(folder.parent).replace(" ", r"\040")
    lines = [
        "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        f"30 21 0:40 / {escaped} rw - tmpfs tmpfs rw",
        f"31 30 0:41 / {escaped} rw shared:9 master:1 - nfs4 server:/x rw",
        f"32 21 0:42 / {escaped}/cc rw - xfs /dev/sdb rw",
        "nonsense",
    ]
    mounts = tmp_path / "mountinfo"
    mounts.write_text("\n".join(lines))
    assert file_system_of(folder, mounts) == "nfs4"
    assert file_system_of(Path("/"), mounts) == "ext4"
    assert file_system_of(folder, tmp_path / "none") is None


def test_a_network_mount_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mounts").write_text("21 1 8:1 / / rw - nfs4 server:/ rw")
    monkeypatch.setattr(
        folders, "file_system_of", lambda folder: file_system_of(folder, tmp_path / "mounts")
    )
    one = check(diagnose(LocalStateStore(tmp_path), reach=False), "cache: file system")
    assert one.ok is None
    assert one.found.startswith("nfs4, a network mount")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_probe_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    def fail(*_: object) -> bool:
        raise error

    monkeypatch.setattr(traits, "clone_range", fail)
    with pytest.raises(type(error)):
        probe(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_locks_that_everybody_gets_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "try_lock", lambda _: True)
    monkeypatch.setattr(traits, "rename_exclusively", os.replace)  # which asks nobody
    able = probe(tmp_path)
    assert not able.locks
    assert not able.exclusive_rename


# Places.


def test_a_server_that_answers(published: Published, nginx: Nginx, tmp_path: Path):
    found = of_mirror(published, tmp_path, nginx.url(FILE), nginx.url("other"))
    one = check(found, f"http://{HOST}:{nginx.port}")
    assert one.ok
    size = (published.folder / FILE).stat().st_size / 1000
    assert one.found.startswith(f"{size:.1f} kB offered, ranges: yes, no token, ")
    assert one.found.endswith(" ms")
    requests = nginx.log()
    assert [(request.path, request.range) for request in requests] == [
        (f"/plain/{FILE}", "bytes=0-0")  # one place, one request
    ]


def test_a_server_without_ranges(published: Published, nginx: Nginx, tmp_path: Path):
    found = of_mirror(published, tmp_path, nginx.url(FILE, "no-ranges"))
    assert " kB offered, ranges: no, " in check(found, f"http://{HOST}:{nginx.port}").found


def test_a_server_that_is_down(published: Published, nginx: Nginx, tmp_path: Path):
    address = nginx.url(FILE)
    nginx.close()
    one = check(of_mirror(published, tmp_path, address), f"http://{HOST}:{nginx.port}")
    assert one.ok is False
    assert one.found.startswith("the server cannot be reached: Connection refused (http://")


def test_a_server_that_is_busy(published: Published, nginx: Nginx, tmp_path: Path):
    one = check(
        of_mirror(published, tmp_path, nginx.url(FILE, "busy")), f"http://{HOST}:{nginx.port}"
    )
    assert one.ok is False
    assert "HTTP 503" in one.found
    assert len(nginx.log()) == 2


@pytest.mark.parametrize("password", [SECRET, f"not-{SECRET}", None])
def test_a_login_is_used_and_never_shown(
    published: Published, nginx: Nginx, tmp_path: Path, password: str | None
):
    if password is not None:
        netrc = Path(os.environ["NETRC"])
        netrc.write_text(f"machine {HOST} login user password {password}\n")
        netrc.chmod(0o600)
    found = of_mirror(published, tmp_path, nginx.url(FILE, "auth"))
    one = check(found, f"http://{HOST}:{nginx.port}")
    assert SECRET not in repr(found)
    if password == SECRET:
        assert one.ok
        assert "with a login" in one.found
    else:
        assert one.ok is False
        assert "HTTP 401" in one.found
        assert "netrc" in str(one.remedy)


def test_a_wrong_token_is_told_and_never_shown(
    published: Published, nginx: Nginx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(f"MLSTATE_TOKEN_{HOST.replace('.', '_')}", SECRET)
    found = of_mirror(published, tmp_path, nginx.url(FILE, "auth") + f"?signature={SECRET}")
    one = check(found, f"http://{HOST}:{nginx.port}")
    assert one.ok is False
    assert "HTTP 401" in one.found
    assert SECRET not in repr(found)


def test_a_copy_of_a_store_need_not_have_everything(
    published: Published, nginx: Nginx, tmp_path: Path
):
    for name, ok in (("store", True), ("elsewhere", None)):
        manifest = write_manifest(tmp_path / "m.toml", published, objects=[nginx.url(name)])
        one = check(diagnose(manifest), f"http://{HOST}:{nginx.port}")
        assert one.ok is ok, one
    assert one.found == f"answers; it lacks {KEY}"
    assert check(of_mirror(published, tmp_path, nginx.url("no")), one.name).ok is False


def test_a_local_mirror_that_is_gone(published: Published, tmp_path: Path):
    manifest = write_manifest(tmp_path / "m.toml", published, mirrors=["gone/a"], objects=["no"])
    found = diagnose(manifest, offline=True)
    assert check(found, str(tmp_path / "gone")).ok is False
    assert "is not there" in check(found, str(tmp_path / "no")).found


def test_a_mirror_of_a_later_version(published: Published, tmp_path: Path):
    mirror = {"url": "https://example.org/a", "format": "newer"}
    manifest = write_manifest(tmp_path / "m.toml", published, mirrors=[mirror])
    found = diagnose(manifest)
    assert "unknown format 'newer'" in check(found, "mirrors").found


@pytest.mark.filterwarnings("ignore:the server of .* ignores conditional writes")
@pytest.mark.parametrize("kind", ["moto", "rclone", "ceph"])
def test_a_bucket(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    server = request.getfixturevalue(kind)
    bucket = server.new_bucket()
    store = bucket_store(server, bucket, cache=tmp_path / "cache")
    one = check(diagnose(store), f"s3://{bucket}")
    assert (one.ok, one.found) == (None, "answers; no store is there yet")
    store.save_state_dict({"w": torch.ones(9000)}, KEY)
    one = check(diagnose(store), f"s3://{bucket}")
    assert one.ok
    assert "with credentials" in one.found
    none = check(diagnose(bucket_store(server, f"{bucket}-x")), f"s3://{bucket}-x")
    assert none.ok is False
    wrong = {**server.session_kwargs, "aws_access_key_id": SECRET, "aws_secret_access_key": SECRET}
    if kind != "moto":  # which lets everybody in
        found = diagnose(S3StateStore(bucket, wrong, server.url, cache=tmp_path / "cache"))
        assert check(found, f"s3://{bucket}").ok is False
        assert SECRET not in repr(found)


def test_a_bucket_out_of_reach_is_a_finding_and_no_key_is_shown(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    bucket = "some-bucket"
    with closed_port() as port:
        for endpoint in (f"http://{HOST}:{port}", "http://not a host"):
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            found = diagnose(f"s3://{bucket}")
            assert check(found, f"s3://{bucket}").ok is False
            assert SECRET not in repr(found)


@pytest.mark.parametrize("gated", [False, True])
def test_a_repository_on_the_hub(
    published: Published, hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gated: bool
):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.add("org/model", {FILE: published.folder / FILE}, gated=gated)
    mirrors = ["hf://org/model", f"hf://org/model@main/{FILE}", "hf://org/none"]
    found = of_mirror(published, tmp_path, *mirrors)
    assert check(found, "hf://org/none").ok is False
    one = check(found, "hf://org/model")
    if not gated:
        assert one.ok
        assert " kB offered, ranges: yes, no token, " in one.found
        return
    assert one.ok is False
    assert "HF_TOKEN" in str(one.remedy)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    found = of_mirror(published, tmp_path, *mirrors)
    assert "with a token" in check(found, "hf://org/model").found
    assert hub.token not in repr(found)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = of_mirror(published, tmp_path, *mirrors)
    assert check(found, "hf://org/model").found == "not asked: offline"


def test_releases(github, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = diagnose(open_store("github:org/models", cache=tmp_path / "cache"))
    assert check(found, "github:org/models").ok
    assert "with a token" in check(found, "github:org/models").found
    assert github.token not in repr(found)
    monkeypatch.setenv("GH_TOKEN", SECRET)
    found = diagnose(GitHubReleaseStore("org", "models", cache=tmp_path / "cache"))
    assert check(found, "github:org/models").ok is False
    assert SECRET not in repr(found)


def test_many_places_and_silent_ones(
    recording_server: RecordingServer, monkeypatch: pytest.MonkeyPatch
):
    """A server that takes connections and says nothing; nobody is waited for very long."""
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        recording_server.files["a"] = b"abc"
        places = [
            Place("silent", f"http://{HOST}:{port}/a"),
            Place("good", f"{recording_server.url}/a"),
        ]
        checks = ask_all(places, offline=False, seconds=5)
    assert [one.name for one in checks] == ["silent", "good"]
    assert checks[0] == Check("silent", False, "no answer within 5 s", "check the network")
    assert checks[1].ok
    many = [Place(f"p{n}", f"http://{HOST}:1/") for n in range(MOST_PLACES + 5)]
    checks = ask_all(many, offline=True)
    assert [one.found for one in checks[:-1]] == ["not asked: offline"] * MOST_PLACES
    assert checks[-1].found == "5 more: not asked"


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "_size", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        ask_all([Place("a", f"http://{HOST}:1/")], offline=False)


def test_offline_and_unasked(published: Published, nginx: Nginx, tmp_path: Path):
    name = f"http://{HOST}:{nginx.port}"
    found = of_mirror(published, tmp_path, nginx.url(FILE), offline=True)
    assert check(found, name) == Check(name, None, "not asked: offline")
    found = of_mirror(published, tmp_path, nginx.url(FILE), reach=False)
    assert check(found, name) == Check(name, None, "not asked")
    assert found.ok
    assert nginx.log() == []


# The store.


@pytest.mark.parametrize("where", ["nothing", "empty", "m.toml", "ftp://example.org/x"])
def test_a_store_that_cannot_be_opened_is_a_finding(tmp_path: Path, where: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.toml").write_text("version = [")
    found = diagnose(where if "://" in where else tmp_path / where)
    assert check(found, "store").ok is False
    assert check(found, "cache").ok  # of the settings
    assert not found.ok


def test_a_folder_is_looked_at_as_the_cache_is(tmp_path: Path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict({"w": torch.ones(9000)}, KEY)
    found = diagnose(tmp_path / "store")
    assert check(found, "store: contents").found.startswith("2 objects, 40.")
    assert check(found, "cache: locks").found == "yes"
    assert found.ok


# Errors in one line.


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FormatError("a\n b", found="c\td"), "a b: c d"),
        (IntegrityError("a", path="/b"), "a (/b)"),
        (OSError(2, "No such file", "/x"), "No such file (/x)"),
        (OSError("odd"), "odd"),
        (FormatError("x" * 999), "x" * 300 + "..."),
    ],
)
def test_reasons_are_of_one_line(error: OSError, line: str):
    assert reason_of(error) == line
    assert failed("n", error) == Check("n", False, line)
