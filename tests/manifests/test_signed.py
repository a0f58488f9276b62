"""Manifests that need a signature: what is refused, and that nothing is read before the check."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlstate import (
    LocalStateStore,
    Manifest,
    ManifestStore,
    StateKey,
    Store,
    enlist,
    manifest_of,
    sign,
    unlist,
)
from mlstate.errors import FormatError, ManifestError, SignatureError
from mlstate.manifests import serials, signed
from mlstate.manifests.serials import Sighting, check_serials, keep_serials, serials_file
from mlstate.signatures import SignaturePolicy
from mlstate.signatures.inline import join_signature
from mlstate.stores import open_store
from tests.support.fetching import KEY, TENSORS
from tests.support.signing import Key, needs_ssh_keygen

pytestmark = needs_ssh_keygen

DIGEST = "1" * 64
ALICE, BOB = "alice@lab.example", "bob@lab.example"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {name: Key.make(folder, name) for name in (ALICE, BOB)}


@pytest.fixture
def lab(tmp_path, keys):
    return Lab(tmp_path, keys)


class Lab:
    """A folder with manifests, and who may sign them."""

    def __init__(self, folder, keys):
        self.folder, self.keys = folder, keys
        self.allowed = folder / "allowed_signers"
        self.allow(keys[ALICE].line())
        self.path = folder / "weights.toml"

    def allow(self, text):
        self.allowed.write_text(text)

    def write(self, head="", path=None, states=("p.net.a",)):
        path = path or self.path
        tables = [f'[states."{key}"]\nblake3 = "{DIGEST}"\n' for key in states]
        path.write_text("\n".join(["version = 1", head, *tables]))
        return path

    def sign(self, path=None, name=ALICE):
        path = path or self.path
        path.with_name(path.name + ".sig").write_bytes(self.keys[name].sign(path.read_bytes()))

    def signed(self, head="", path=None, name=ALICE, **more):
        path = self.write(head, path, **more)
        self.sign(path, name)
        return path

    def open(self, path=None, **more):
        return ManifestStore(path or self.path, require_signature=self.allowed, **more)

    def refused(self, path=None):
        with pytest.raises(SignatureError) as caught:
            self.open(path)
        assert caught.value.remedy
        assert caught.value.path
        return caught.value


def test_a_signed_manifest_is_read_as_any(lab):
    lab.signed()
    assert lab.open().get_state_keys() == ManifestStore(lab.path).get_state_keys()
    policy = SignaturePolicy(lab.allowed, signer=ALICE)
    assert ManifestStore(lab.path, require_signature=policy).get_state_keys()


def test_without_a_signature_nothing_is_read(lab):
    lab.write()
    error = lab.refused()
    assert "not signed" in error.message
    assert "weights.toml.sig" in error.expected
    assert "mlstate sign" in error.remedy.shell


def test_the_signer_and_the_reason_are_named(lab):
    lab.signed(name=BOB)
    assert lab.refused().fingerprint.startswith("SHA256:")
    lab.allow(lab.keys[BOB].line('valid-before="20200101Z"'))
    error = lab.refused()
    assert error.signer == BOB
    assert "2020-01-01" in error.found


def test_what_is_not_signed_is_not_even_parsed(lab, monkeypatch):
    monkeypatch.setattr(Manifest, "parse", lambda *_: pytest.fail("it was parsed"))
    lab.signed()
    lab.path.write_text("a." * 100 + "a = 1")
    lab.refused()


def test_a_signed_manifest_that_is_none_is_refused_as_such(lab):
    lab.path.write_text("version = 2")
    lab.sign()
    with pytest.raises(ManifestError, match="higher version"):
        lab.open()


@pytest.mark.parametrize("kind", ["folder", "fifo", "large", "dangling", "unreadable"])
def test_whatever_lies_in_the_place_of_a_signature_is_refused(lab, kind):
    lab.write()
    place = lab.folder / "weights.toml.sig"
    if kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "large":
        with place.open("wb") as file:
            file.truncate(1 << 30)
    elif kind == "dangling":
        place.symlink_to("nowhere")
    else:
        place.symlink_to("/proc/self/mem")
    with pytest.raises(SignatureError):
        lab.open()


def test_in_a_folder_each_file_needs_a_signature_of_its_own(lab):
    folder = lab.folder / "all"
    (folder / "deep").mkdir(parents=True)
    first = lab.signed(path=folder / "a.toml")
    second = lab.signed(path=folder / "deep" / "b.toml", states=["p.net.b"])
    assert len(lab.open(folder).get_state_keys()) == 2
    second.with_name("b.toml.sig").unlink()
    assert lab.refused(folder).path == str(second)
    second.with_name("b.toml.sig").write_bytes(first.with_name("a.toml.sig").read_bytes())
    assert "not what was signed" in lab.refused(folder).message


def test_revoked_keys_are_refused_by_policy_and_setting(lab, monkeypatch):
    lab.signed()
    revoked = lab.folder / "revoked"
    revoked.write_text(lab.keys[BOB].public)
    monkeypatch.setenv("MLSTATE_REVOKED_KEYS", str(revoked))
    assert lab.open()
    revoked.write_text(lab.keys[ALICE].public)
    assert "revoked" in lab.refused().message
    monkeypatch.delenv("MLSTATE_REVOKED_KEYS")
    policy = SignaturePolicy(lab.allowed, revoked)
    with pytest.raises(SignatureError, match="revoked"):
        ManifestStore(lab.path, require_signature=policy)


def test_a_file_of_signers_that_is_missing_or_wrong_is_no_permission(lab, monkeypatch):
    lab.signed()
    lab.allow(f"* cert-authority {lab.keys[ALICE].public}")
    with pytest.raises(FormatError, match="certificates"):
        lab.open()
    lab.allowed.unlink()
    with pytest.raises(FormatError, match="no file of allowed signers"):
        lab.open()
    lab.allowed.mkdir()
    with pytest.raises(FormatError):
        lab.open()
    lab.allowed.rmdir()
    lab.allow(lab.keys[ALICE].line())
    monkeypatch.setenv("MLSTATE_REVOKED_KEYS", str(lab.folder / "missing"))
    with pytest.raises(FormatError, match="no file of revoked keys"):
        lab.open()


@pytest.mark.parametrize("value", [True, "", 1])
def test_what_names_no_signers_is_refused(lab, value):
    lab.signed()
    with pytest.raises(FormatError, match="whose signature"):
        ManifestStore(lab.path, require_signature=value)


def test_the_setting_holds_for_every_store_of_manifests(lab, monkeypatch):
    lab.write()
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(lab.allowed))
    monkeypatch.setenv("MLSTATE_MANIFESTS", str(lab.path))
    for make in (lambda: ManifestStore(lab.path), Store, lambda: open_store(lab.path), open_store):
        with pytest.raises(SignatureError, match="not signed"):
            make()
    lab.sign()
    for make in (lambda: ManifestStore(lab.path), Store, lambda: open_store(lab.path), open_store):
        assert StateKey.parse("p.net.a") in make().get_state_keys()


def test_shipped_manifests_are_part_of_the_program(lab, monkeypatch):
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(lab.allowed))
    assert Store().get_state_keys()
    assert Store(require_signature=lab.allowed).get_state_keys()


def test_a_program_can_say_that_it_needs_none(lab, monkeypatch):
    lab.write()
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(lab.allowed))
    assert ManifestStore(lab.path, require_signature=False).get_state_keys()


def test_a_manifest_that_is_a_value_has_no_signature(lab, monkeypatch):
    lab.signed()
    read = Manifest.read(lab.path)
    with pytest.raises(SignatureError, match="read or made already"):
        ManifestStore(read, require_signature=lab.allowed)
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(lab.allowed))
    with pytest.raises(SignatureError, match="read or made already"):
        ManifestStore(read)
    assert ManifestStore(read, require_signature=False).get_state_keys()
    assert not ManifestStore(Manifest({})).get_state_keys()  # adopt fetches through such a one


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data + b"\n",
        lambda data: data + b" ",
        lambda data: data + b"\0",
        lambda data: data.removesuffix(b"\n"),
        lambda data: data.replace(b" = ", b"="),
        lambda data: data.decode().encode("utf-16"),
    ],
)
def test_bytes_that_say_the_same_are_not_those_that_were_signed(lab, change):
    lab.signed()
    lab.path.write_bytes(change(lab.path.read_bytes()))
    assert "not what was signed" in lab.refused().message


def test_what_is_read_is_what_was_checked(lab, monkeypatch):
    """The file is read once: whoever exchanges it between a check and a second look finds none."""
    lab.signed()
    read, reads = signed.content_of, []

    def once(path):
        reads.append(path)
        content = read(path)
        path.write_text('version = 1\n[states."p.net.evil"]\n')
        return content

    monkeypatch.setattr(signed, "content_of", once)
    assert list(map(str, lab.open().get_state_keys())) == ["p.net.a"]
    assert reads == [lab.path]


def test_a_signature_at_the_end_is_that_of_the_bytes_before_it(lab, tmp_path):
    """As of a state file that was taken out of a store; then a file beside it says nothing."""
    lab.write()
    content = lab.path.read_bytes()
    lab.path.write_bytes(join_signature(content, lab.keys[ALICE].sign(content)))
    assert lab.open().get_state_keys()
    lab.sign()  # of all bytes, those at the end too
    assert lab.open().get_state_keys()
    lab.path.write_bytes(join_signature(content, lab.keys[BOB].sign(content)))
    lab.sign()
    assert "not allowed" in lab.refused().message
    with pytest.raises(ManifestError, match="signature at its end"):
        sign(lab.path, lab.keys[ALICE].path)


@pytest.mark.parametrize("way", ["link", "folder", "linked folder", "setting", "several"])
def test_no_other_way_leads_to_a_manifest_without_its_check(lab, tmp_path, monkeypatch, way):
    """The signature is looked for beside the name that is given, and is there or is not."""
    folder = tmp_path / "all"
    folder.mkdir()
    lab.write(path=folder / "weights.toml")
    (tmp_path / "link.toml").symlink_to(folder / "weights.toml")
    (tmp_path / "linked").symlink_to(folder)
    good = lab.signed(path=tmp_path / "good.toml", states=("p.net.b",))
    monkeypatch.setenv("MLSTATE_MANIFESTS", f"{good}:{folder}")
    if way == "several":
        (folder / "good.toml").write_bytes(good.read_bytes())
        lab.sign(folder / "good.toml")
    opened = {
        "link": lambda: lab.open(tmp_path / "link.toml"),
        "folder": lambda: lab.open(folder),
        "linked folder": lambda: lab.open(tmp_path / "linked"),
        "setting": lambda: Store(require_signature=lab.allowed),
        "several": lambda: lab.open(folder),
    }
    with pytest.raises(SignatureError, match="not signed"):
        opened[way]()


def test_a_manifest_of_a_store_that_is_not_signed_cannot_be_made(lab, tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(TENSORS, KEY)
    careful = LocalStateStore(tmp_path / "store", require_signature=lab.allowed)
    for make in (
        lambda: manifest_of(careful),
        lambda: enlist(tmp_path / "new.toml", careful),
    ):
        with pytest.raises(SignatureError):
            make()
    assert not (tmp_path / "new.toml").exists()


def test_an_edit_says_that_the_signature_is_stale_and_leaves_it(lab, tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(TENSORS, KEY)
    lab.signed(states=())
    before = (lab.folder / "weights.toml.sig").read_bytes()
    with pytest.warns(UserWarning, match="sign it again"):
        enlist(lab.path, store)
    with pytest.warns(UserWarning, match="sign it again"):
        unlist(lab.path, [KEY])
    enlist(tmp_path / "other.toml", store)  # which has no signature: no warning
    assert (lab.folder / "weights.toml.sig").read_bytes() == before


def test_an_edit_that_changes_nothing_keeps_the_signature_good(lab, tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(TENSORS, KEY)
    enlist(lab.path, store)
    lab.sign()
    enlist(lab.path, store)
    assert lab.open().get_state_keys() == [KEY]


def test_an_older_manifest_is_refused(lab):
    lab.signed("serial = 2")
    assert lab.open()
    old = lab.path.read_bytes(), (lab.folder / "weights.toml.sig").read_bytes()
    lab.signed("serial = 3")
    assert lab.open()
    assert lab.open()
    lab.path.write_bytes(old[0])
    (lab.folder / "weights.toml.sig").write_bytes(old[1])
    error = lab.refused()
    assert "older than one" in error.message
    assert (error.expected, error.found) == ("serial = 3 or higher", "serial = 2")
    assert str(serials_file()) in error.remedy
    assert ManifestStore(lab.path).get_state_keys()  # where none is required it is not looked at


def test_a_manifest_without_a_serial_is_older_than_one_with(lab):
    lab.signed()
    assert lab.open()
    assert not serials_file().exists()
    lab.signed("serial = 0")
    assert lab.open()
    lab.signed()
    assert lab.refused().found == "no serial"


def test_another_signer_cannot_bring_an_older_one_back(lab):
    lab.allow(lab.keys[ALICE].line() + lab.keys[BOB].line())
    lab.signed("serial = 5", name=ALICE)
    assert lab.open()
    lab.signed("serial = 4", name=BOB)
    lab.refused()


def test_a_name_protects_wherever_the_file_lies(lab):
    lab.signed('name = "lab/nets"\nserial = 5')
    assert lab.open()
    other = lab.signed('name = "lab/nets"\nserial = 4', lab.folder / "other.toml")
    assert "older" in lab.refused(other).message
    unrelated = lab.signed("serial = 1", lab.folder / "unrelated.toml")
    assert lab.open(unrelated)
    lab.signed('name = "lab/more"\nserial = 1')  # another manifest, in the same place
    assert lab.open()
    lab.signed("serial = 4")
    assert "older" in lab.refused().message


def test_a_folder_that_became_a_store_brings_no_older_manifest_back(lab):
    """Who may change a folder of manifests may give it the shape of a store, too."""
    folder = lab.folder / "manifests"
    folder.mkdir()
    path = lab.signed('name = "lab/nets"\nserial = 5', folder / "weights.toml")
    assert lab.open(folder)
    path.unlink()
    (folder / "objects").mkdir()
    (folder / "states" / "p" / "net").mkdir(parents=True)
    older = lab.signed('name = "lab/nets"\nserial = 4', folder / "states" / "p" / "net" / "a.toml")
    assert "older" in lab.refused(folder).message
    older.rename(older.with_name("b.toml"))
    lab.sign(older.with_name("b.toml"))
    with pytest.raises(ManifestError, match="its path names"):
        lab.open(folder)


def test_a_state_file_under_another_name_in_its_store_brings_no_older_version_back(lab):
    store = lab.folder / "store"
    (store / "objects").mkdir(parents=True)
    (store / "states" / "p" / "net").mkdir(parents=True)
    newer = lab.signed("serial = 5", store / "states" / "p" / "net" / "a.toml")
    assert lab.open(store)
    newer.unlink()
    lab.signed("serial = 4", store / "states" / "p" / "net" / "b.toml")
    with pytest.raises(ManifestError, match="its path names"):
        lab.open(store)


def test_a_name_that_is_new_takes_no_protection_away(lab):
    lab.signed("serial = 5")
    assert lab.open()
    lab.signed('name = "lab/nets"\nserial = 4')
    lab.refused()
    lab.signed('name = "lab/nets"\nserial = 6')
    assert lab.open()


def test_without_a_name_the_place_counts_however_it_is_named(lab, monkeypatch):
    lab.signed("serial = 5")
    assert lab.open()
    link = lab.folder / "link.toml"
    link.symlink_to(lab.path)
    lab.signed("serial = 4")
    (lab.folder / "link.toml.sig").symlink_to("weights.toml.sig")
    lab.refused(link)
    monkeypatch.chdir(lab.folder)
    lab.refused("weights.toml")


@pytest.mark.parametrize(
    "head",
    [
        "serial = -1",
        'serial = "2"',
        "serial = true",
        "serial = 1.0",
        "serial = 9223372036854775808",
        "name = 3",
        'name = ""',
    ],
)
def test_a_serial_and_a_name_that_are_none_are_refused(lab, head):
    lab.signed(head)
    with pytest.raises(ManifestError, match=r"serial|name"):
        lab.open()
    assert ManifestStore(lab.path).get_state_keys()


def test_a_serial_stays_when_a_manifest_is_edited(lab, tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict(TENSORS, KEY)
    lab.write('name = "nets"\nserial = 7')
    enlist(lab.path, store)
    assert Manifest.read(lab.path).unknown == {"serial": 7, "name": "nets"}


def test_nothing_is_kept_of_what_is_refused(lab):
    folder = lab.folder / "all"
    folder.mkdir()
    lab.signed("serial = 3", folder / "a.toml")
    lab.write("serial = 3", folder / "b.toml", states=["p.net.b"])
    lab.refused(folder)
    assert not serials_file().exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"seen": 3}',
        '{"seen": [{}]}',
        "[" * 100_000,
        '{"seen": [{"signer": 1, "name": 1, "path": 1, "serial": 1}]}',
        '{"seen": [{"signer": "a", "name": null, "path": "p", "serial": "x"}]}',
    ],
)
def test_a_damaged_file_of_serials_is_no_permission(lab, text):
    lab.signed("serial = 1")
    serials_file().parent.mkdir(parents=True)
    serials_file().write_text(text)
    with pytest.raises(FormatError, match="damaged") as caught:
        lab.open()
    assert caught.value.remedy


def test_where_nothing_can_be_kept_there_is_a_warning(lab, monkeypatch):
    lab.signed("serial = 1")
    (lab.folder / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(lab.folder / "file"))
    with pytest.warns(UserWarning, match="could not be kept"):
        lab.open()


def test_the_file_of_serials_can_be_read_by_people(lab):
    lab.signed('name = "lab/nets"\nserial = 5')
    lab.open()
    (row,) = json.loads(serials_file().read_text())["seen"]
    path = os.path.realpath(lab.path)
    assert row == {"signer": ALICE, "name": "lab/nets", "path": path, "serial": 5}
    assert os.listdir(serials_file().parent) == [serials_file().name]


def keep(numbers):
    for number in numbers:
        keep_serials([Sighting("alice", None, f"/m/{number % 5}", number)])


def test_no_serial_is_lost_where_several_processes_see_them():
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=keep, args=(range(n, 60, 4),)) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    for number in range(5):
        check_serials([Sighting("alice", None, f"/m/{number}", 55 + number)])
        with pytest.raises(SignatureError):
            check_serials([Sighting("alice", None, f"/m/{number}", 54 + number)])


STOPPED = """
import os, signal
from mlstate.manifests import serials
from tests.manifests.test_signed import keep
real, stops = serials.write_over, [True]
def stopped(*arguments, **named):
    if stops.pop() if stops else False:
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*arguments, **named)
serials.write_over = stopped
keep([1])
"""


def test_a_process_that_was_stopped_loses_no_serial_of_others(monkeypatch):
    monkeypatch.setattr(serials, "_PATIENCE", 0.2)
    child = subprocess.Popen([sys.executable, "-c", STOPPED], cwd=Path(__file__).parents[2])
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        keep([2])  # nobody waits for it longer than the patience
    finally:
        child.send_signal(signal.SIGCONT)
    assert child.wait(30) == 0
    for number in (1, 2):
        with pytest.raises(SignatureError, match="older"):
            check_serials([Sighting("alice", None, f"/m/{number}", number - 1)])


def test_a_file_of_serials_may_be_a_link(tmp_path):
    serials_file().parent.mkdir(parents=True, exist_ok=True)
    keep([1])
    serials_file().rename(tmp_path / "elsewhere.json")
    serials_file().symlink_to(tmp_path / "elsewhere.json")
    keep([6])
    assert serials_file().is_symlink()
    with pytest.raises(SignatureError, match="older"):
        check_serials([Sighting("alice", None, "/m/1", 5)])


def test_a_serial_that_is_known_writes_nothing(lab, monkeypatch):
    lab.signed("serial = 5")
    lab.open()
    monkeypatch.setattr(serials, "write_over", lambda *_, **__: pytest.fail("it was written"))
    lab.open()


def test_what_needs_no_signature_imports_no_cryptography(lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    lab.signed()
    assert ManifestStore(lab.path).get_state_keys()
    with pytest.raises(SignatureError, match="not installed"):
        lab.open()
