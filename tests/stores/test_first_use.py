"""The first use of a state without a digest pins it, by what its publisher gives of its files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    StateKey,
    StateType,
    Store,
    bundle,
    copy,
    describe,
    diff,
    list_pins,
    load_pretrained_model,
    lock,
    open_store,
    remove_pins,
    state_digest,
    usage,
    verify,
    with_state_type,
)
from mlstate.errors import (
    FetchError,
    FormatError,
    OfflineError,
    PinMismatchError,
    UnpinnedStateError,
)
from mlstate.fetch.plan import LARGE
from mlstate.manifests import StateEntry
from mlstate.stores import manifest as manifest_module
from tests.project.test_torchvision_manifest import DENSENETS, densenet_names
from tests.servers.recording import Reply
from tests.support.fetching import check_cache, leftovers
from tests.support.models import net, same, values

KEY = StateKey.parse("pytorch.net.a")
SHIPPED = Path(__file__).parents[2] / "manifests" / "torchvision.toml"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Site:
    """A web server with a checkpoint under the name that torch.hub gives it, and a manifest."""

    def __init__(self, server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.files = server.files = folder / "web"
        self.files.mkdir()
        self.manifest = folder / "mine.toml"
        self.cache = folder / "cache"
        self.name = ""

    def publish(self, state, *, digits: int = 8, wrong: bool = False, form: str = "torch") -> str:
        """Put a checkpoint there; its address."""
        path = self.files / "unnamed"
        torch.save(state, path) if form == "torch" else save_file(state, path)
        found = sha256(path.read_bytes())[:digits]
        if wrong:
            found = "".join("0123456789abcdef"[15 - int(digit, 16)] for digit in found)
        self.name = f"net-{found}.pth"
        path.rename(self.files / self.name)
        return f"{self.server.url}/{self.name}"

    def list(self, *mirrors, path: Path | None = None, key: object = KEY) -> Path:
        """Write a manifest that lists them under a key without a digest."""
        path = self.manifest if path is None else path
        said = ", ".join(mirrors)
        path.write_text(f'version = 1\n\n[states."{key}"]\nmirrors = [{said}]\n')
        return path

    def store(self, path: Path | None = None, cache: str = "cache", **options) -> ManifestStore:
        path = self.manifest if path is None else path
        return ManifestStore(path, cache=self.folder / cache, **options)


@pytest.fixture
def site(recording_server, tmp_path):
    return Site(recording_server, tmp_path)


def torch_mirror(url: str, more: str = "") -> str:
    return f'{{url = "{url}", format = "torch"{more}}}'


def pins_file() -> Path:
    return Path(os.environ["XDG_CONFIG_HOME"]) / "mlstate" / "pins.toml"


def check_nothing_was_done(site: Site, cache: str = "cache") -> None:
    assert list_pins() == []
    folder = site.folder / cache
    if folder.exists():
        assert check_cache(folder) == 0
        assert leftovers(folder) == {}


@pytest.fixture
def listed(site):
    """The site with a checkpoint whose name has 8 digits of its sum, and a manifest of it."""
    site.list(torch_mirror(site.publish(values(net(1)))))
    return site


# The first use


def test_the_first_use_fetches_compares_and_pins(listed, capsys):
    model = net(2)
    result = listed.store().load(model, KEY)
    assert result.pinned_now
    assert same(values(model), values(net(1)))
    assert result.digest == state_digest(values(net(1)))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"first use of {KEY}" in said
    assert "the first 8 digits" in said
    assert str(result.digest) in said
    assert str(pins_file()) in said
    [pin] = list_pins()
    assert (pin.key, pin.digest, pin.digits) == (KEY, result.digest, 8)
    assert pin.sha256 == (sha256((listed.files / listed.name).read_bytes()),)
    assert pin.urls == (f"{listed.server.url}/{listed.name}",)
    assert pin.manifest == str(listed.manifest.resolve())


def test_ever_after_it_is_a_pinned_state_and_nothing_is_asked(listed, capsys):
    listed.store().load(net(2), KEY)
    capsys.readouterr()
    listed.server.reset()
    store = listed.store(offline=True)
    model = net(2)
    result = store.load(model, KEY)
    assert not result.pinned_now
    assert same(values(model), values(net(1)))
    assert capsys.readouterr().err == ""
    assert store.digest(KEY) == result.digest
    report = store.fetch(KEY)
    assert (report.fetched, report.pinned_now) == (0, False)
    assert store.exists(KEY)
    assert listed.server.requests == []


def test_all_of_the_file_came_once_and_only_once(listed):
    report = listed.store().fetch(KEY)
    assert report.pinned_now
    size = (listed.files / listed.name).stat().st_size
    assert listed.server.bytes_sent - size in (0, 1)  # one byte tells whether there are ranges
    assert (report.fetched, report.spared) == (size, 0)


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("digits", [8, 20, 64])
def test_digits_of_the_manifest_do_as_well(site, form, digits):
    site.publish(values(net(1)), form=form)
    path = site.files / site.name
    plain = path.rename(site.files / "plain")
    more = f', format = "{form}", sha256 = "{sha256(plain.read_bytes())[:digits]}"'
    site.list(f'{{url = "{site.server.url}/plain"{more}}}')
    assert site.store().load(net(2), KEY).pinned_now
    [pin] = list_pins()
    assert pin.digits == digits
    assert pin.sha256 == (sha256(plain.read_bytes()),)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_large_checkpoint_is_read_whole_whatever_the_server_can(site, ranges):
    site.server.ranges = ranges
    state = {"w": torch.randn(LARGE // 4 + 100), "v": torch.randn(3000)}
    site.list(torch_mirror(site.publish(state)))
    assert site.store().fetch(KEY).pinned_now
    assert same(site.store().load_state_dict(KEY), state)


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("given", ["name", "manifest"])
def test_wrong_digits_are_refused_and_nothing_is_pinned_or_kept(site, form, given):
    url = site.publish(values(net(1)), form=form, wrong=True)
    more = f', sha256 = "{"0" * 64}"' if given == "manifest" else ""
    site.list(f'{{url = "{url}", format = "{form}"{more}}}')
    model = net(2)
    with pytest.raises(FetchError) as caught:
        site.store().load(model, KEY)
    [(_, said)] = caught.value.attempts
    assert "SHA-256" in said
    assert same(values(model), values(net(2)))
    check_nothing_was_done(site)


def test_bytes_that_only_begin_right_are_refused(listed):
    """Ranges would show what tensors there are; the sum says that the rest is another."""
    path = listed.files / listed.name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FetchError):
        listed.store().fetch(KEY)
    check_nothing_was_done(listed)


def test_a_mirror_without_digits_is_not_asked_first(site):
    url = site.publish(values(net(1)))
    shutil.copy(site.files / site.name, site.files / "other.pth")
    site.list(torch_mirror(f"{site.server.url}/other.pth"), torch_mirror(url))
    site.store().fetch(KEY)
    assert {record.name for record in site.server.requests} == {site.name}
    # Then its digest is known, and every mirror may give it.
    (site.files / site.name).unlink()
    store = site.store(cache="another")
    assert same(store.load_state_dict(KEY), values(net(1)))


@pytest.mark.parametrize(
    "mirror",
    [
        '"{url}/plain.safetensors"',
        '{url = "{url}/plain", format = "torch", sha256 = "1234567"}',
        '{url = "{url}/net-abc.pth", format = "torch"}',
        '{url = "{url}/net-1234567.pth", format = "torch"}',
        '{url = "{url}/net-1234ABCD.pth", format = "torch"}',
        '{parts = [{url = "{url}/net-12345678.pth", format = "torch"}, "{url}/plain"]}',
    ],
    ids=["none", "seven in the manifest", "three", "seven in the name", "no hex", "one of two"],
)
def test_without_eight_digits_of_each_file_it_is_refused(site, mirror):
    site.list(mirror.replace("{url}", site.server.url))
    with pytest.raises(UnpinnedStateError, match=r"mlstate\.lock") as caught:
        site.store().fetch(KEY)
    assert "8 or more digits" in caught.value.found
    assert site.server.requests == []
    check_nothing_was_done(site)


def test_parts_are_each_compared(site):
    first, second = {"a": torch.randn(90, 90)}, {"b": torch.randn(90, 90)}
    urls = [site.publish(state) for state in (first, second)]
    site.list(f"{{parts = [{', '.join(map(torch_mirror, urls))}]}}")
    assert site.store().fetch(KEY).pinned_now
    [pin] = list_pins()
    assert list(pin.urls) == urls
    assert list(pin.sha256) == [
        sha256((site.files / u.rpartition("/")[2]).read_bytes()) for u in urls
    ]
    assert same(site.store().load_state_dict(KEY), {**first, **second})


def test_a_misspelt_digest_is_not_pinned_by_something_else(listed):
    text = listed.manifest.read_text()
    listed.manifest.write_text(text.replace("mirrors =", f'blake = "{"0" * 64}"\nmirrors ='))
    with pytest.warns(UserWarning, match="blake3"):
        store = listed.store()
    with pytest.raises(UnpinnedStateError, match="call it blake3"):
        store.fetch(KEY)
    check_nothing_was_done(listed)


def test_where_the_manifest_gives_the_digest_no_pin_is_looked_at(listed):
    listed.store().fetch(KEY)
    lock(listed.manifest, cache=listed.cache)
    pins_file().write_text("damaged = [")
    assert not listed.store().load(net(2), KEY).pinned_now


def test_offline_the_first_use_is_refused_and_says_so(listed):
    with pytest.raises(OfflineError):
        listed.store(offline=True).load(net(2), KEY)
    check_nothing_was_done(listed)


def test_offline_a_file_of_this_machine_can_be_pinned(site):
    site.publish(values(net(1)))
    site.list(torch_mirror(f"web/{site.name}"))
    assert site.store(offline=True).load(net(2), KEY).pinned_now


def test_every_way_of_reading_is_a_first_use(listed, tmp_path):
    def fresh():
        if list_pins():
            remove_pins([KEY])
        return listed.store()

    target = LocalStateStore(tmp_path / "target")
    assert copy(fresh(), target).copied == (KEY,)
    assert list_pins()
    usage(fresh())
    assert list_pins() == []
    file = listed.files / listed.name
    assert diff((fresh(), KEY), file).first == state_digest(values(net(1)))
    assert list_pins()
    bundle(fresh(), [KEY], tmp_path / "a.tar")
    assert list_pins()
    fresh().materialize(KEY, tmp_path / "folder")
    assert list_pins()
    assert same(fresh().load_state_dict(KEY), values(net(1)))
    assert list_pins()


def test_looking_is_no_use(listed):
    store = listed.store()
    assert describe(store, KEY).digest is None
    assert describe(store, KEY).first_use
    assert [state.digest for state in usage(store).states] == [None]
    assert verify(store).unpinned == (KEY,)
    with pytest.raises(UnpinnedStateError):
        store.digest(KEY)
    assert listed.server.requests == []
    check_nothing_was_done(listed)


def test_looking_shows_what_is_pinned(listed):
    digest = listed.store().load(net(2), KEY).digest
    store = listed.store()
    described = describe(store, KEY)
    assert (described.digest, described.first_use) == (digest, False)
    assert described.pinned_on == list_pins()[0].date[:10]
    assert [state.digest for state in usage(store).states] == [digest]
    report = verify(store)
    assert (report.unpinned, report.states) == ((), (KEY,))


# What is required ever after


def test_a_file_that_changes_later_is_refused_and_the_pin_is_named(listed):
    digest = listed.store().load(net(2), KEY).digest
    torch.save(values(net(3)), listed.files / listed.name)  # whoever did it: another sum, too
    model = net(2)
    with pytest.raises(FetchError) as caught:
        listed.store(cache="another").load(model, KEY)
    assert same(values(model), values(net(2)))
    [pin] = list_pins()
    assert pin.digest == digest
    assert str(digest) in caught.value.expected
    assert f"{pins_file()}, line {pin.line}" in caught.value.expected
    assert pins_file().read_text().split("\n")[pin.line - 1] == "[[pins]]"
    assert caught.value.remedy.shell.endswith(f"mlstate pins rm {KEY}")


def test_a_file_with_the_same_leading_digits_is_refused_later(site):
    """Eight digits are 32 bits: who made such a file could pass the first use, and no later one."""
    urls = [site.publish(values(net(seed))) for seed in (1, 2)]
    first, second = (url.rpartition("/")[2] for url in urls)
    site.list(torch_mirror(urls[0]))
    site.store().load(net(3), KEY)
    (site.files / second).rename(site.files / first)
    with pytest.raises(FetchError, match="pinned"):
        site.store(cache="another").load(net(3), KEY)


def test_an_outage_does_not_say_that_a_pin_should_go(listed):
    listed.store().load(net(2), KEY)
    (listed.files / listed.name).unlink()
    with pytest.raises(FetchError) as caught:
        listed.store(cache="another").load(net(2), KEY)
    assert caught.value.remedy is None


def test_the_remedy_helps(listed):
    listed.store().load(net(2), KEY)
    url = listed.publish(values(net(3)))
    listed.list(torch_mirror(url))
    with pytest.raises(PinMismatchError) as caught:
        listed.store().load(net(2), KEY)
    code = caught.value.remedy.partition("mlstate.remove_pins")[2]
    assert eval(f"remove_pins{code}")[0].key == KEY
    model = net(2)
    assert listed.store().load(model, KEY).pinned_now
    assert same(values(model), values(net(3)))


@pytest.mark.parametrize("change", ["sum", "name", "select", "mirrors"])
def test_a_manifest_that_leads_elsewhere_is_refused(site, change):
    url = site.publish({"net": values(net(1))})
    more = ', select = "net"'
    site.list(torch_mirror(url, more))
    site.store().fetch(KEY)
    site.server.reset()
    other = site.publish({"net": values(net(2)), "other": values(net(3))})
    site.list(
        *{
            "sum": [torch_mirror(url, f'{more}, sha256 = "{"1" * 64}"')],
            "name": [torch_mirror(other, more)],
            "select": [torch_mirror(url, ', select = "other"')],
            "mirrors": [],
        }[change]
    )
    store = site.store()
    assert describe(store, KEY).digest is None
    with pytest.raises(PinMismatchError) as caught:
        store.fetch(KEY)
    assert (caught.value.path, caught.value.line) == (str(pins_file()), list_pins()[0].line)
    assert url in caught.value.expected
    assert site.server.requests == []


@pytest.mark.parametrize("change", ["longer", "shorter", "none", "moved", "one more"])
def test_a_manifest_that_says_the_same_otherwise_is_not_refused(site, change):
    url = site.publish(values(net(1)))
    plain = f"{site.server.url}/plain"
    found = sha256((site.files / site.name).read_bytes())
    shutil.copy(site.files / site.name, site.files / "plain")

    def mirror(address: str, digits: int) -> str:
        return torch_mirror(address, f', sha256 = "{found[:digits]}"' if digits else "")

    site.list(mirror(plain, 16))
    digest = site.store().load(net(2), KEY).digest
    said = {
        "longer": [mirror(plain, 64)],
        "shorter": [mirror(plain, 8)],
        "none": [mirror(plain, 0)],
        "moved": [mirror(url, 0)],
        "one more": [torch_mirror(f"{site.server.url}/new-12345678.pth"), mirror(plain, 16)],
    }[change]
    site.list(*said)
    result = site.store().load(net(2), KEY)
    assert (result.digest, result.pinned_now) == (digest, False)


def test_a_longer_sum_is_compared_with_that_of_the_file_that_was_pinned(site):
    """Of eight digits alone nobody could say whether the 64 of a later manifest agree."""
    url = site.publish(values(net(1)))
    site.list(torch_mirror(url))
    site.store().fetch(KEY)
    found = sha256((site.files / site.name).read_bytes())
    site.list(torch_mirror(url, f', sha256 = "{found[:8]}{"0" * 56}"'))
    with pytest.raises(PinMismatchError):
        site.store().fetch(KEY)


def test_a_clone_of_the_manifest_has_the_pin(listed):
    digest = listed.store().load(net(2), KEY).digest
    elsewhere = listed.folder / "clone" / "theirs.toml"
    elsewhere.parent.mkdir()
    shutil.copy(listed.manifest, elsewhere)
    result = listed.store(elsewhere).load(net(2), KEY)
    assert (result.digest, result.pinned_now) == (digest, False)


def test_another_project_may_have_the_same_key(listed):
    one = listed.store().load(net(2), KEY).digest
    other = listed.list(
        torch_mirror(listed.publish(values(net(3)))), path=listed.folder / "other.toml"
    )
    result = listed.store(other).load(net(2), KEY)
    assert result.pinned_now
    assert result.digest != one
    assert [pin.digest for pin in list_pins()] == [one, result.digest]
    assert listed.store().load(net(2), KEY).digest == one
    assert len(remove_pins([KEY])) == 2


def test_relative_paths_of_two_projects_are_not_taken_for_one(site):
    folders = [site.folder / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        (folder / "w").mkdir(parents=True)
        torch.save(values(net(seed)), folder / "w" / "net.pth")
        digits = sha256((folder / "w" / "net.pth").read_bytes())[:8]
        mirror = torch_mirror("w/net.pth", f', sha256 = "{digits}"')
        site.list(mirror, path=folder / "m.toml")
        site.store(folder / "m.toml").fetch(KEY)
        site.list(torch_mirror("w/net.pth"), path=folder / "m.toml")  # the same, without a sum
    for seed, folder in enumerate(folders):
        assert site.store(folder / "m.toml").digest(KEY) == state_digest(values(net(seed)))


def test_a_relative_path_to_the_manifest_stays_what_it_was(listed, monkeypatch):
    monkeypatch.chdir(listed.folder)
    store = listed.store(Path("mine.toml"))
    monkeypatch.chdir("/")
    assert store.load(net(2), KEY).pinned_now
    assert list_pins()[0].manifest == str(listed.manifest.resolve())
    assert not listed.store().load(net(2), KEY).pinned_now


# Who does not trust on first use


def test_strict_refuses_whatever_is_pinned(listed, monkeypatch):
    listed.store().fetch(KEY)
    with pytest.raises(UnpinnedStateError, match="pin it"):
        listed.store(pins="strict").load(net(2), KEY)
    monkeypatch.setenv("MLSTATE_PINS", "strict")
    with pytest.raises(UnpinnedStateError):
        listed.store().load(net(2), KEY)
    with pytest.raises(UnpinnedStateError):
        open_store(listed.manifest, cache=listed.cache).load(net(2), KEY)
    assert not listed.store(pins="first-use").load(net(2), KEY).pinned_now
    pins_file().write_text("damaged = [")  # and it is not even read
    with pytest.raises(UnpinnedStateError):
        listed.store().load(net(2), KEY)


@pytest.mark.parametrize("value", ["stricter", "first use", "0"])
def test_another_word_is_an_error(listed, monkeypatch, value):
    with pytest.raises(FormatError, match="first-use or strict"):
        listed.store(pins=value)
    monkeypatch.setenv("MLSTATE_PINS", value)
    with pytest.raises(FormatError, match="MLSTATE_PINS"):
        listed.store()


def test_who_requires_signatures_trusts_no_first_use(listed, monkeypatch):
    allowed = listed.folder / "allowed_signers"
    allowed.write_text("")
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(allowed))
    store = Store(cache=listed.cache)
    with pytest.raises(UnpinnedStateError):
        store.fetch(StateKey.parse("pytorch.resnet18.cls1000.imagenet"))
    monkeypatch.delenv("MLSTATE_REQUIRE_SIGNATURE")
    store = Store(cache=listed.cache, require_signature=str(allowed))
    with pytest.raises(UnpinnedStateError):
        store.fetch(StateKey.parse("pytorch.resnet18.cls1000.imagenet"))
    assert listed.store(require_signature=False).fetch(KEY).pinned_now


def test_a_manifest_from_elsewhere_is_not_believed(listed):
    from dataclasses import replace

    read = Manifest.read(listed.manifest)
    entry = replace(read.states[KEY], source="https://elsewhere.example.org/m.toml")
    store = ManifestStore(Manifest({KEY: entry}), cache=listed.cache)
    with pytest.raises(UnpinnedStateError):
        store.fetch(KEY)
    assert listed.server.requests == []


def test_a_manifest_of_no_file_can_be_used(listed):
    entry = Manifest.read(listed.manifest).states[KEY]
    made = StateEntry(KEY, None, mirrors=entry.mirrors)
    store = ManifestStore(Manifest({KEY: made}), cache=listed.cache)
    assert store.fetch(KEY).pinned_now
    assert not store.fetch(KEY).pinned_now
    assert list_pins()[0].manifest is None


# Where the pin cannot be kept


def test_without_a_home_folder_it_is_refused_before_anything_comes(listed, monkeypatch):
    monkeypatch.setattr("mlstate.manifests.pins.config_folder", lambda: None)
    with pytest.raises(UnpinnedStateError, match="no home folder"):
        listed.store().fetch(KEY)
    assert listed.server.requests == []


def test_where_no_file_can_be_written_it_is_refused_before_anything_comes(listed, monkeypatch):
    (listed.folder / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(listed.folder / "file"))
    with pytest.raises(UnpinnedStateError) as caught:
        listed.store().fetch(KEY)
    assert str(listed.folder / "file" / "mlstate" / "pins.toml") in caught.value.found
    assert listed.server.requests == []


def test_a_disk_that_is_full_at_the_end_pins_nothing(listed, monkeypatch):
    from mlstate.objects import durable

    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_over", full)
    model = net(2)
    with pytest.raises(UnpinnedStateError, match="No space left"):
        listed.store().load(model, KEY)
    assert same(values(model), values(net(2)))
    assert list_pins() == []


def test_the_file_is_for_its_user_alone(listed):
    before = os.umask(0)
    try:
        listed.store().fetch(KEY)
    finally:
        os.umask(before)
    assert stat.S_IMODE(pins_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(pins_file().parent.stat().st_mode) == 0o700


# Several at once

CHILD = """
import json, sys
from mlstate import ManifestStore, StateKey
store = ManifestStore(sys.argv[1], cache=sys.argv[2])
sys.stdin.read()
done = [store.fetch(StateKey.parse(key)) for key in sys.argv[3:]]
print(json.dumps([[str(report.digest), report.pinned_now] for report in done]))
"""


def run_at_once(commands: list[list[object]]) -> list[list[list[object]]]:
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CHILD, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in commands
    ]
    for child in children:
        child.stdin.close()  # all begin now
        child.stdin = None
    results = []
    for child in children:
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        results.append(json.loads(out))
    return results


def test_of_processes_with_one_cache_one_fetches_and_pins(listed):
    done = run_at_once([[listed.manifest, listed.cache, KEY]] * 3)
    assert len({digest for [[digest, _]] in done}) == 1
    assert sorted(now for [[_, now]] in done) == [False, False, True]
    assert listed.server.bytes_sent - (listed.files / listed.name).stat().st_size in (0, 1)
    assert len(list_pins()) == 1


def test_processes_that_pin_at_once_lose_no_pin(site):
    keys = [StateKey.parse(f"pytorch.net.s{number}") for number in range(4)]
    words: list[list[object]] = []
    for number, key in enumerate(keys):
        url = site.publish(values(net(number)))
        path = site.list(torch_mirror(url), path=site.folder / f"{number}.toml", key=key)
        words.append([path, site.folder / f"cache{number}", key])
    done = run_at_once(words)
    assert {pin.key: pin.digest for pin in list_pins()} == {
        key: digest for key, [[digest, _]] in zip(keys, done, strict=True)
    }
    assert all(now for [[_, now]] in done)


@pytest.mark.parametrize("other_file", [True, False])
def test_who_pins_other_weights_at_the_same_moment_is_refused(listed, other_file):
    """The mirror gives each of two caches another file with the same eight digits."""
    other = listed.folder / "other.pth"
    torch.save(values(net(3)), other)
    digits = sha256(other.read_bytes())[:8]
    listed.list(f'{{url = "{listed.server.url}/w-{digits}.pth", format = "torch"}}')
    (listed.files / f"w-{digits}.pth").write_bytes(other.read_bytes())
    asked, go_on = threading.Event(), threading.Event()

    def before(record):
        if not asked.is_set():
            asked.set()
            go_on.wait(60)

    listed.server.before = before
    failures: list[BaseException] = []

    def slow() -> None:
        try:
            listed.store(cache="slow").fetch(KEY)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=slow)
    thread.start()
    assert asked.wait(60)
    listed.store(cache="fast").fetch(KEY)
    [pin] = list_pins()
    text = pins_file().read_text().replace(pin.digest, "0" * 64)  # as if it had been given another
    if other_file:
        text = text.replace(pin.sha256[0], pin.sha256[0][:8] + "0" * 56)
    pins_file().write_text(text)
    go_on.set()
    thread.join(60)
    [error] = failures
    assert isinstance(error, PinMismatchError)
    assert error.expected == "0" * 64
    assert len(list_pins()) == 1


# The manifests that come with mlstate


@pytest.fixture
def shipped(site, monkeypatch):
    """The shipped manifest of torchvision, with other weights under its own names."""
    text = SHIPPED.read_text().replace("https://download.pytorch.org/models", site.server.url)

    def publish(name: str, state) -> None:
        nonlocal text
        site.publish(state)
        sums = sha256((site.files / site.name).read_bytes())[:8]
        [old] = re.findall(rf"/{name}-([0-9a-f]{{8}})\.pth", text)
        (site.files / site.name).rename(site.files / f"{name}-{sums}.pth")
        text = text.replace(old, sums)
        (folder / "torchvision.toml").write_text(text)

    folder = site.folder / "shipped"
    folder.mkdir()
    monkeypatch.setattr(manifest_module, "shipped_manifests", lambda: folder)
    return publish


def test_load_pretrained_model_works_at_once(shipped, site, capsys):
    type_ = StateType("pytorch", "resnet18", ("cls1000",))
    model = with_state_type(torch.nn.Linear(70, 70), type_)
    shipped("resnet18", values(torch.nn.Linear(70, 70)))
    assert load_pretrained_model(model, "imagenet") is model
    assert "first use of pytorch.resnet18.cls1000.imagenet" in capsys.readouterr().err
    [pin] = list_pins()
    assert pin.manifest == "mlstate:torchvision.toml"
    site.server.reset()
    load_pretrained_model(model)
    assert site.server.requests == []


def test_the_renames_of_densenet_are_part_of_what_is_pinned(shipped):
    state = {name: torch.randn(3) for name in densenet_names(DENSENETS["densenet121"], old=True)}
    shipped("densenet121", state)
    key = StateKey.parse("pytorch.densenet121.cls1000.imagenet")
    loaded = Store().load_state_dict(key)
    assert loaded.keys() == set(densenet_names(DENSENETS["densenet121"], old=False))
    assert Store(pins="first-use", offline=True).load_state_dict(key).keys() == loaded.keys()


def test_an_installation_elsewhere_has_the_pins(shipped, site, monkeypatch):
    shipped("resnet18", values(net(1)))
    key = StateKey.parse("pytorch.resnet18.cls1000.imagenet")
    assert Store().fetch(key).pinned_now
    elsewhere = shutil.copytree(site.folder / "shipped", site.folder / "venv2")
    monkeypatch.setattr(manifest_module, "shipped_manifests", lambda: elsewhere)
    assert not Store().fetch(key).pinned_now
    text = (elsewhere / "torchvision.toml").read_text()
    url = site.publish(values(net(4)))
    name = list_pins()[0].urls[0].rpartition("/")[2]
    sums = name.rpartition("-")[2][:8]
    text = text.replace(name, url.rpartition("/")[2]).replace(sums, site.name[4:12])
    (elsewhere / "torchvision.toml").write_text(text)
    with pytest.raises(PinMismatchError):  # a later mlstate with other weights under this key
        Store().fetch(key)


def test_a_redirect_to_other_bytes_is_found_out(listed):
    torch.save(values(net(5)), listed.files / "evil.pth")
    listed.server.before = lambda record: (
        Reply(302, {"Location": "/evil.pth"}) if record.name == listed.name else None
    )
    with pytest.raises(FetchError):
        listed.store().fetch(KEY)
    check_nothing_was_done(listed)
