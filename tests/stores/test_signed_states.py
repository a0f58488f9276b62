"""State files and pointers that need a signature: in folders, buckets and releases."""

from __future__ import annotations

import gzip
import io
import os
import threading
from contextlib import suppress

import pytest
import torch

from mlstate import LocalStateStore, ManifestStore, StateKey, copy, manifest_of, sign, verify
from mlstate.errors import FormatError, MlstateError, SignatureError, StateExistsError
from mlstate.manifests.state_serials import serial_file
from mlstate.operations.describe import describe
from mlstate.operations.sign import verify_signature
from mlstate.operations.usage import usage
from mlstate.signatures import SignaturePolicy
from mlstate.signatures.inline import join_signature, split_signature
from mlstate.stores import open_store
from tests.servers.recording import Reply
from tests.support.buckets import bucket_store, contents, put
from tests.support.github_stores import TAG, asset_of, github_store
from tests.support.models import LINEAR, net
from tests.support.signing import Key, needs_ssh_keygen, ssh_accepts

pytestmark = needs_ssh_keygen

ALICE, BOB = "alice@lab.example", "bob@lab.example"
KEY, OTHER = StateKey(LINEAR, "a"), StateKey(LINEAR, "b")


def weights(value=1.0):
    return {"weight": torch.full((3,), value)}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {name: Key.make(folder, name) for name in (ALICE, BOB)}


@pytest.fixture
def allowed(tmp_path, keys):
    path = tmp_path / "allowed_signers"
    path.write_text(keys[ALICE].line('namespaces="mlstate"'))
    return path


class Folder:
    """A folder, and what someone who can write to it can do."""

    def __init__(self, tmp_path):
        self.folder = tmp_path / "store"

    def open(self, **options):
        return LocalStateStore(self.folder, **options)

    def path(self, key):
        return self.folder / "states" / "pytorch" / "net" / f"{key.training_id}.toml"

    def read(self, key):
        return self.path(key).read_bytes()

    def write(self, key, data, suffix=""):
        path = self.path(key).with_name(self.path(key).name + suffix)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def plant_checkpoint(self, key, data):
        self.path(key).unlink(missing_ok=True)
        (self.folder / f"{key}.pt").write_bytes(data)


class Bucket:
    def __init__(self, server):
        self.server, self.bucket = server, server.new_bucket()

    def open(self, **options):
        return bucket_store(self.server, self.bucket, **options)

    def path(self, key):
        return f"models/states/pytorch/net/{key.training_id}.toml"

    def read(self, key):
        return contents(self.server, self.bucket)[self.path(key)]

    def write(self, key, data, suffix=""):
        put(self.server, self.bucket, self.path(key) + suffix, data)

    def plant_checkpoint(self, key, data):
        self.server.boto.delete_object(Bucket=self.bucket, Key=self.path(key))
        put(self.server, self.bucket, f"models/pytorch/net.{key.training_id}.pt", data)


class Release:
    def __init__(self, github, tmp_path):
        self.github, self.cache = github, tmp_path / "cache"

    def open(self, **options):
        return github_store(self.cache, **options)

    def read(self, key):
        return asset_of(self.github, f"{key.training_id}.toml").data

    def write(self, key, data, suffix=""):
        self.remove(name := f"{key.training_id}.toml{suffix}")
        self.github.put(self.github.repos["org/models"], TAG, name, data)

    def remove(self, name):
        release = self.github.repos["org/models"].tagged(TAG)
        if asset := release.named(name):
            del release.assets[asset.id]

    def plant_checkpoint(self, key, data):
        self.remove(f"{key.training_id}.toml")
        self.github.put(
            self.github.repos["org/models"],
            TAG,
            f"{key.training_id}.state.gzip",
            gzip.compress(data),
        )


@pytest.fixture(params=["folder", "bucket", "release"])
def place(request, tmp_path):
    if request.param == "folder":
        return Folder(tmp_path)
    if request.param == "bucket":
        return Bucket(request.getfixturevalue("moto"))
    return Release(request.getfixturevalue("github"), tmp_path)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def signing(place, keys, name=ALICE):
    return place.open(signing_key=keys[name].path)


def refused(store, match=None, key=KEY):
    with pytest.raises(SignatureError, match=match) as caught:
        store.load_state_dict(key)
    assert caught.value.path
    return caught.value


def test_what_is_saved_signed_loads_where_that_is_required(place, keys, allowed, tmp_path):
    signing(place, keys).save_state_dict(weights(), KEY)
    careful = place.open(require_signature=allowed)
    assert torch.equal(careful.load_state_dict(KEY)["weight"], weights()["weight"])
    assert verify(careful).ok
    content, signature = split_signature(place.read(KEY), "it")
    assert ssh_accepts(content, signature, keys[ALICE].line(), ALICE, tmp_path)
    # Who requires nothing reads it as ever.
    assert place.open().digest(KEY) == careful.digest(KEY)


def test_nothing_unsigned_is_read_in_any_way(place, keys, allowed, tmp_path):
    signing(place, keys).save_state_dict(weights(), KEY)
    place.open().save_state_dict(weights(2), OTHER)
    place.open().load_state_dict(OTHER)  # of a store elsewhere it is in the cache now
    careful = place.open(require_signature=allowed)
    error = refused(careful, "not signed", OTHER)
    assert error.key == OTHER
    assert error.remedy
    for read in (
        lambda: careful.load(net(), OTHER),
        lambda: careful.load(net(), OTHER, digest=place.open().digest(OTHER)),
        lambda: careful.digest(OTHER),
        lambda: careful.meta(OTHER),
        lambda: careful.files(OTHER),
        lambda: careful.fetch(OTHER),
        lambda: careful.materialize(OTHER, tmp_path / "plain"),
        lambda: copy(careful, LocalStateStore(tmp_path / "copy"), [OTHER]),
        lambda: manifest_of(careful, [OTHER]),
        lambda: describe(careful, OTHER),
    ):
        with pytest.raises(SignatureError, match="not signed"):
            read()
    assert not (tmp_path / "plain").exists()
    assert LocalStateStore(tmp_path / "copy").get_state_keys() == []
    assert describe(careful, KEY).digest == careful.digest(KEY)


def test_a_list_says_which_state_is_not_signed(place, keys, allowed):
    signing(place, keys).save_state_dict(weights(), KEY)
    place.open().save_state_dict(weights(2), OTHER)
    careful = place.open(require_signature=allowed)
    assert careful.get_state_keys() == [KEY, OTHER]  # names, which say nothing of what they name
    good, bad = usage(careful).states
    assert (good.unsigned, good.error) == (False, None)
    assert bad.unsigned
    assert "not signed" in bad.error
    assert bad.digest is None
    (finding,) = verify(careful).findings
    assert (finding.keys, finding.kind) == ((OTHER,), "unsigned")
    assert "not signed" in finding.found


def test_a_signature_is_good_for_its_own_key_alone(place, keys, allowed):
    store = signing(place, keys)
    store.save_state_dict(weights(), KEY)
    store.save_state_dict(weights(2), OTHER)
    place.write(KEY, place.read(OTHER))
    with pytest.raises(FormatError, match="exactly the state that its path names"):
        place.open(require_signature=allowed).load_state_dict(KEY)


def test_an_older_version_is_refused_once_a_newer_one_was_seen(place, keys, allowed):
    store = signing(place, keys)
    store.save_state_dict(weights(), KEY)
    old = place.read(KEY)
    place.open(require_signature=allowed).digest(KEY)
    store.save_state_dict(weights(2), KEY, overwrite=True)
    new = place.read(KEY)
    careful = place.open(require_signature=allowed)
    careful.digest(KEY)
    place.write(KEY, old)
    error = refused(place.open(require_signature=allowed), "older than one that was seen")
    assert error.signer == ALICE
    place.write(KEY, new)
    assert careful.load_state_dict(KEY)


def test_a_state_that_was_deleted_and_saved_again_is_newer(folder, keys, allowed):
    store = signing(folder, keys)
    store.save_state_dict(weights(), KEY)
    folder.open(require_signature=allowed).digest(KEY)
    store.delete(KEY)
    store.save_state_dict(weights(2), KEY)
    assert folder.open(require_signature=allowed).load_state_dict(KEY)


def test_without_a_serial_it_is_older_than_one_with(folder, keys, allowed):
    signing(folder, keys).save_state_dict(weights(), KEY)
    folder.open(require_signature=allowed).digest(KEY)
    content, _ = split_signature(folder.read(KEY), "it")
    lines = [line for line in content.splitlines(True) if not line.startswith(b"serial")]
    bare = b"".join(lines)
    folder.write(KEY, join_signature(bare, keys[ALICE].sign(bare)))
    assert "no serial" in str(refused(folder.open(require_signature=allowed), "older"))


@pytest.mark.parametrize("name", ["another key", "another purpose", "changed", "cut short"])
def test_a_signature_that_is_not_good_is_refused(folder, keys, allowed, name):
    signing(folder, keys).save_state_dict(weights(), KEY)
    content, signature = split_signature(folder.read(KEY), "it")
    forged = {
        "another key": join_signature(content, keys[BOB].sign(content)),
        "another purpose": join_signature(content, keys[ALICE].sign(content, "git")),
        "changed": join_signature(content + b"# more\n", signature),
        "cut short": join_signature(content, b"\n".join(signature.split(b"\n")[:-3])),
    }[name]
    folder.write(KEY, forged)
    refused(folder.open(require_signature=allowed))


HIDDEN = b'\n[states."pytorch.net.a".meta]\nevil = 1\n'


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: data + b"# a comment\n",
        lambda data: data + HIDDEN,
        lambda data: data.replace(b"# -----END", HIDDEN + b"# -----END"),
        lambda data: data.replace(b"# -----BEGIN", HIDDEN + b"# -----BEGIN"),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.removesuffix(b"\n"),
        lambda data: data.replace(b"# -----BEGIN", b" # -----BEGIN"),
        lambda data: data + data[data.index(b"# -----BEGIN") :],
        lambda data: data.replace(b"\n# ", b"\n#  "),
        lambda data: data[data.index(b"# -----BEGIN") :] + data,
        lambda data: data[data.index(b"# -----BEGIN") :],
    ],
)
def test_no_other_bytes_than_those_that_were_signed_are_read(folder, keys, allowed, change):
    signing(folder, keys).save_state_dict(weights(), KEY)
    folder.write(KEY, change(folder.read(KEY)))
    refused(folder.open(require_signature=allowed))


def test_what_is_read_is_what_was_checked(folder, keys, allowed, monkeypatch):
    """The file is read once: whoever exchanges it between a check and a second look finds none."""
    store = signing(folder, keys)
    store.save_state_dict(weights(), KEY)
    good, reads = folder.read(KEY), []
    careful = folder.open(require_signature=allowed)

    def read(key):
        reads.append(key)
        return good if len(reads) == 1 else b"version = 1\n"

    monkeypatch.setattr(careful.saver.files, "read", read)
    assert careful.digest(KEY) == store.digest(KEY)
    assert reads == [KEY]


def test_a_checkpoint_of_the_older_layout_takes_no_signed_states_place(place, keys, allowed):
    signing(place, keys).save_state_dict(weights(), KEY)
    data = io.BytesIO()
    torch.save(weights(9), data)
    place.plant_checkpoint(KEY, data.getvalue())
    careful = place.open(require_signature=allowed)
    refused(careful, "older layout")
    (finding,) = verify(careful).findings
    assert finding.kind == "unsigned"
    assert usage(careful).states[0].unsigned
    assert place.open().load_state_dict(KEY)


def test_a_signature_may_lie_beside_as_that_of_a_manifest(place, keys, allowed):
    """As FORMAT has it for all manifests: ``ssh-keygen -Y sign -n mlstate states/.../a.toml``."""
    place.open().save_state_dict(weights(), KEY)
    place.write(KEY, keys[ALICE].sign(place.read(KEY)), ".sig")
    assert place.open(require_signature=allowed).load_state_dict(KEY)
    place.write(KEY, keys[BOB].sign(place.read(KEY)), ".sig")
    refused(place.open(require_signature=allowed), "not allowed")
    place.write(KEY, b"x" * 100_000, ".sig")
    refused(place.open(require_signature=allowed), "damaged, or is none")


def test_whatever_lies_beside_a_state_file_makes_no_difference(folder, keys, allowed, tmp_path):
    folder.open().save_state_dict(weights(), KEY)
    beside = folder.path(KEY).with_name("a.toml.sig")
    os.mkfifo(beside)
    refused(folder.open(require_signature=allowed), "cannot be read")
    beside.unlink()
    beside.symlink_to("/dev/zero")
    refused(folder.open(require_signature=allowed), "cannot be read")
    beside.unlink()
    beside.symlink_to(tmp_path / "nothing")
    refused(folder.open(require_signature=allowed), "cannot be read")


def test_sign_signs_what_is_there_and_says_what(place, keys, allowed):
    plain = place.open()
    plain.save_state_dict(weights(), KEY, files={"f": b"x"}, meta={"by": "me"})
    plain.save_state_dict(weights(2), OTHER)
    (done,) = sign(plain, keys[ALICE].path, keys=[KEY])
    assert (done.key, done.digest) == (KEY, plain.digest(KEY))
    careful = place.open(require_signature=allowed)
    assert careful.load_state_dict(KEY)
    assert careful.meta(KEY) == {"by": "me"}
    assert careful.files(KEY)["f"] == b"x"
    refused(careful, "not signed", OTHER)
    before = done.serial
    again = sign(plain, keys[ALICE].path)
    assert [signed.key for signed in again] == [KEY, OTHER]
    assert again[0].serial > before
    (found, _) = verify_signature(plain, allowed_signers=allowed)
    assert (found.signer, found.digest, found.serial) == (ALICE, done.digest, again[0].serial)
    assert careful.load_state_dict(OTHER)


def test_sign_overwrites_nothing_that_was_saved_meanwhile(place, keys, allowed, monkeypatch):
    """Another saves between the look at the state file and the signature: that is signed."""
    from mlstate.manifests import keygen

    plain = place.open()
    plain.save_state_dict(weights(), KEY)
    run, raced = keygen._run, []

    def race(content, key, origin):
        if not raced:
            raced.append(content)
            plain.save_state_dict(weights(2), KEY, overwrite=True)
        return run(content, key, origin)

    monkeypatch.setattr(keygen, "_run", race)
    sign(plain, keys[ALICE].path, keys=[KEY])
    loaded = place.open(require_signature=allowed).load_state_dict(KEY)
    assert torch.equal(loaded["weight"], weights(2)["weight"])


@pytest.mark.parametrize("left", range(4))
@pytest.mark.parametrize("done", [False, True])
def test_signing_a_release_that_fails_half_way_loses_nothing(
    github, tmp_path, keys, allowed, *, left, done
):
    """Requests fail after so many that change something; the last is done and not told, or not."""
    place = Release(github, tmp_path)
    place.open().save_state_dict(weights(), KEY)
    changes = []

    def count(record):
        if record.method != "GET":
            changes.append(record)
            if len(changes) > left:
                return Reply(500, {}, b"{}")
        return None

    if done:
        github.after = count
    else:
        github.before = count
    with suppress(MlstateError):
        sign(place.open(attempts=1), keys[ALICE].path)
    github.before = github.after = None
    assert torch.equal(place.open().load_state_dict(KEY)["weight"], weights()["weight"])
    sign(place.open(), keys[ALICE].path)
    assert place.open(require_signature=allowed).load_state_dict(KEY)
    assert place.open().get_state_keys() == [KEY]


def test_saving_over_what_is_not_signed_has_to_be_asked_for(place, keys, allowed):
    place.open().save_state_dict(weights(), KEY)
    both = place.open(require_signature=allowed, signing_key=keys[ALICE].path)
    with pytest.raises(SignatureError, match="not signed"):
        both.save_state_dict(weights(), KEY)
    both.save_state_dict(weights(), KEY, overwrite=True)
    assert both.load_state_dict(KEY)
    with pytest.raises(StateExistsError):
        both.save_state_dict(weights(2), KEY)
    before = place.read(KEY)
    both.save_state_dict(weights(), KEY)
    assert place.read(KEY) == before


def test_two_keys_are_good_until_the_old_one_is_not(folder, keys, allowed, tmp_path):
    signing(folder, keys, ALICE).save_state_dict(weights(), KEY)
    allowed.write_text(keys[ALICE].line() + keys[BOB].line())
    assert folder.open(require_signature=allowed).load_state_dict(KEY)
    sign(folder.open(), keys[BOB].path)
    assert folder.open(require_signature=allowed).load_state_dict(KEY)
    allowed.write_text(keys[ALICE].line('valid-before="20200101Z"') + keys[BOB].line())
    assert folder.open(require_signature=allowed).load_state_dict(KEY)
    (tmp_path / "revoked").write_text(keys[BOB].public + "\n")
    policy = SignaturePolicy(allowed, tmp_path / "revoked")
    refused(folder.open(require_signature=policy), "revoked")
    refused(folder.open(require_signature=SignaturePolicy(allowed, signer=ALICE)), "may not sign")


def test_a_store_is_read_as_a_manifest_by_the_same_rules(folder, keys, allowed):
    store = signing(folder, keys)
    store.save_state_dict(weights(), KEY)
    old = folder.read(KEY)
    store.save_state_dict(weights(2), KEY, overwrite=True)
    view = ManifestStore(folder.folder, require_signature=allowed)
    assert view.get_state_keys() == [KEY]
    folder.write(KEY, old)
    with pytest.raises(SignatureError, match="older"):
        ManifestStore(folder.folder, require_signature=allowed)
    refused(folder.open(require_signature=allowed), "older")


def test_the_variables_hold_for_every_store(place, keys, allowed, monkeypatch):
    monkeypatch.setenv("MLSTATE_SIGNING_KEY", str(keys[ALICE].path))
    place.open().save_state_dict(weights(), KEY)
    monkeypatch.delenv("MLSTATE_SIGNING_KEY")
    place.open().save_state_dict(weights(2), OTHER)
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", str(allowed))
    assert place.open().load_state_dict(KEY)
    refused(place.open(), "not signed", OTHER)
    assert place.open(require_signature=False).load_state_dict(OTHER)
    monkeypatch.setenv("MLSTATE_SIGNING_KEY", str(keys[BOB].path))
    place.open(signing_key=False).save_state_dict(weights(3), OTHER, overwrite=True)
    refused(place.open(), "not signed", OTHER)


def test_the_config_file_speaks_of_a_store_by_its_address(
    place, keys, allowed, monkeypatch, tmp_path
):
    plain = place.open()
    plain.save_state_dict(weights(), KEY)
    (address, *_) = plain.places
    config = tmp_path / "config.toml"
    monkeypatch.setenv("MLSTATE_CONFIG", str(config))
    config.write_text(f'[signatures.stores]\n"{address}" = "allowed_signers"\n')
    refused(place.open(), "not signed")
    with pytest.raises(SignatureError, match="not signed"):
        verify_signature(place.open())
    config.write_text(f'[signatures.stores]\n"{address}x" = "allowed_signers"\n')
    assert place.open().load_state_dict(KEY)
    with pytest.raises(FormatError, match="those who may sign"):
        verify_signature(place.open())
    config.write_text(
        f'[signatures]\nsigning_key = "{keys[BOB].path}"\n'
        f'[signatures.stores]\n"{address}" = {{ allowed_signers = "both", signer = "{BOB}" }}\n'
    )
    (tmp_path / "both").write_text(keys[ALICE].line() + keys[BOB].line())
    sign(place.open(), keys[ALICE].path)
    refused(place.open(), "may not sign this")
    place.open().save_state_dict(weights(), KEY, overwrite=True)
    assert place.open().load_state_dict(KEY)
    assert verify_signature(place.open())[0].signer == BOB


def test_open_store_takes_both(folder, keys, allowed):
    opened = open_store(folder.folder, create=True, signing_key=keys[ALICE].path)
    opened.save_state_dict(weights(), KEY)
    assert open_store(folder.folder, require_signature=allowed).load_state_dict(KEY)
    allowed.write_text(keys[BOB].line())
    refused(open_store(folder.folder, require_signature=allowed), "not allowed")


def test_a_key_that_does_not_sign_saves_nothing(folder, tmp_path):
    store = folder.open(signing_key=tmp_path / "none")
    with pytest.raises(SignatureError, match="did not sign"):
        store.save_state_dict(weights(), KEY)
    assert store.get_state_keys() == []


def test_pruning_keeps_what_is_named_whoever_signed_it(folder, keys, allowed):
    folder.open().save_state_dict({"big": torch.ones(10_000)}, KEY)
    signing(folder, keys).save_state_dict({"big": torch.zeros(10_000)}, OTHER)
    folder.open(require_signature=allowed).prune(grace_seconds=-1)
    assert verify(folder.open()).ok


def test_a_damaged_serial_is_no_permission(folder, keys, allowed):
    signing(folder, keys).save_state_dict(weights(), KEY)
    careful = folder.open(require_signature=allowed)
    careful.digest(KEY)
    file = serial_file(os.path.realpath(folder.path(KEY)))
    for text in ("", "[]", '{"place": "elsewhere", "serial": 1}', '{"serial": -1}'):
        file.write_text(text)
        with pytest.raises(FormatError, match="damaged"):
            careful.digest(KEY)


def test_many_see_one_serial_at_once(folder, keys, allowed):
    """Whoever is last, the highest stays."""
    from mlstate.manifests.state_serials import highest_serial, see_serial

    threads = [threading.Thread(target=see, args=(see_serial, n)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert highest_serial("s3://x/a") == 19


def see(function, serial):
    with suppress(SignatureError):
        function("s3://x/a", serial, ALICE)
