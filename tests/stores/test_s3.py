"""States in buckets: what is asked of the server, what lies there, and what goes wrong."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from mlstate import LocalStateStore, ManifestStore, S3StateStore, StateKey, StateType
from mlstate.buckets.open import BucketOptions
from mlstate.digests import Digest
from mlstate.errors import (
    AccessError,
    BucketError,
    FormatError,
    IncompatibleStateError,
    IntegrityError,
    ManifestError,
    OfflineError,
    ReadOnlyStoreError,
    StateExistsError,
    StateNotFoundError,
)
from mlstate.format import layout
from mlstate.objects import bucket as bucket_objects
from mlstate.objects.bucket import BucketObjectStore
from mlstate.reading import read_state
from mlstate.stores import manifest_of
from mlstate.stores.abstract import DeletingStore, DescribedStore
from tests.servers.forwarding import Forwarding
from tests.servers.ports import HOST, closed_port
from tests.servers.replies import Reply
from tests.support.buckets import bucket_place, bucket_store, contents, put
from tests.support.models import LINEAR, BytesModel, net, same, values

IGNORES = "ignore:the server of .* ignores conditional writes"
KEY = StateKey(LINEAR, "a")


@pytest.fixture
def store(server, bucket):
    return bucket_store(server, bucket)


@pytest.fixture
def watched(moto):
    """A recording proxy before moto, a bucket there, and a way to open stores by way of it."""
    with Forwarding(moto.url) as proxy:
        bucket = moto.new_bucket()
        yield proxy, bucket, lambda **more: bucket_store(moto, bucket, url=proxy.url, **more)


# What it is.


@pytest.mark.filterwarnings(IGNORES)
def test_it_can_what_a_local_store_can(store):
    assert isinstance(store, DeletingStore)
    assert isinstance(store, DescribedStore)
    assert repr(store).startswith("S3StateStore('s3://bucket-")
    assert "SECRET" not in repr(vars(store))
    key = store.save(net(1), "a", files={"labels.json": b"[]"}, meta={"license": "MIT"})
    assert store.files(key)["labels.json"] == b"[]"
    assert store.meta(key) == {"license": "MIT"}


@pytest.mark.filterwarnings(IGNORES)
def test_it_is_materialized(store, tmp_path):
    key = store.save(net(1), "a", files={"labels.json": b"[]"})
    folder = store.materialize(key, tmp_path / "plain")
    assert same(load_file(folder / "model.safetensors"), values(net(1)))
    assert (folder / "labels.json").read_bytes() == b"[]"


# The layout is that of a folder.


@pytest.mark.filterwarnings(IGNORES)
def test_a_copy_of_a_folder_is_a_store_and_the_other_way_round(server, bucket, tmp_path):
    local = LocalStateStore(tmp_path / "here")
    key = local.save(net(1), "a", files={"f": b"1"}, meta={"x": 1})
    other = local.save(net(2), "b")
    for path in local.folder.rglob("*"):
        if path.is_file():
            put(server, bucket, f"models/{path.relative_to(local.folder)}", path.read_bytes())
    store = bucket_store(server, bucket)
    assert store.get_state_keys() == [key, other]
    model = net(3)
    store.load(model, key)
    assert same(values(model), values(net(1)))
    assert store.digest(key) == local.digest(key)
    assert dict(store.files(key)) == {"f": b"1"}

    third = store.save(net(4), "c", files={"f": b"1"})
    for name, data in contents(server, bucket).items():
        path = tmp_path / "there" / Path(name).relative_to("models")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    back = LocalStateStore(tmp_path / "there")
    assert back.get_state_keys() == [key, other, third]
    back.load(model, third)
    assert same(values(model), values(net(4)))
    assert back.meta(key) == {"x": 1}


def test_a_store_may_be_the_whole_bucket(moto):
    bucket = moto.new_bucket()
    store = bucket_store(moto, bucket, base="")
    key = store.save(net(1), "a")
    assert repr(store) == f"S3StateStore('s3://{bucket}')"
    assert {name.split("/")[0] for name in contents(moto, bucket)} == {
        "mlstate.toml",
        "objects",
        "states",
    }
    model = net(2)
    bucket_store(moto, bucket, base="/").load(model, key)
    assert same(values(model), values(net(1)))


def test_stores_under_different_prefixes_know_nothing_of_each_other(moto):
    bucket = moto.new_bucket()
    one, other = (bucket_store(moto, bucket, base=base) for base in ("team/a", "team/ab"))
    key = one.save(net(1), "a")
    assert one.get_state_keys() == [key]
    assert other.get_state_keys() == []
    other.save(net(2), "a")
    one.delete(key)
    assert other.exists(key)


def test_a_prefix_that_is_no_store_is_refused_and_left_alone(moto):
    bucket = moto.new_bucket()
    put(moto, bucket, "models/objects/ab/x", b"somebody else's")
    before = contents(moto, bucket)
    for use in (
        lambda store: store.save(net(1), "a"),
        lambda store: store.get_state_keys(LINEAR),
        lambda store: store.exists(KEY),
        lambda store: store.delete(KEY),
        lambda store: store.prune(),
    ):
        with pytest.raises(FormatError, match="not a store"):
            use(bucket_store(moto, bucket))
    assert contents(moto, bucket) == before


@pytest.mark.parametrize("text", [b"version = 2\n", b'version = 1\nrequires = ["x"]\n', b"?"])
def test_a_store_of_a_newer_version_is_refused_and_left_alone(moto, text):
    bucket = moto.new_bucket()
    put(moto, bucket, "models/mlstate.toml", text)
    for use in (
        lambda store: store.save(net(1), "a"),
        lambda store: store.get_state_keys(LINEAR),
        lambda store: store.load(net(1), KEY),
    ):
        with pytest.raises(FormatError, match=r"mlstate\.toml"):
            use(bucket_store(moto, bucket))
    assert contents(moto, bucket) == {"models/mlstate.toml": text}


def test_other_settings_stay_as_they_are(moto):
    bucket = moto.new_bucket()
    put(moto, bucket, "models/mlstate.toml", b'version = 1\nours = "x"\n')
    bucket_store(moto, bucket).save(net(1), "a")
    assert contents(moto, bucket)["models/mlstate.toml"] == b'version = 1\nours = "x"\n'


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("weights/models",), "base_path"),
        (("",), "bucket"),
        (("bu cket",), "bucket"),
        (("bucket", {}, None, "a//b"), "prefix"),
        (("bucket", {}, None, "../x"), "prefix"),
        (("bucket", {}, "ftp://host"), "http"),
        (("bucket", {}, "https://user:secret@host"), "password"),
    ],
)
def test_names_that_cannot_be_are_refused(arguments, word):
    with pytest.raises(FormatError, match=word) as caught:
        S3StateStore(*arguments)
    assert "secret" not in str(caught.value)


# What is asked of the server.


def test_listing_one_type_costs_the_same_however_many_others_there_are(ceph):
    with Forwarding(ceph.url) as proxy:
        bucket = ceph.new_bucket()
        check_listing(proxy, ceph, bucket, lambda: bucket_store(ceph, bucket, url=proxy.url))


@pytest.mark.filterwarnings(IGNORES)
def test_ten_thousand_states_of_other_architectures_cost_nothing(rclone):
    """Some have names that begin alike, some come before and some after."""
    bucket = rclone.new_bucket()
    names = [("a", "net-", "net", "z")[number % 4] + str(number) for number in range(100)]
    plant(
        rclone,
        bucket,
        "models",
        {
            f"states/{backend}/{name}/t{number}.toml": b"never read"
            for backend in ("pytorch", "sklearn")
            for name in names
            for number in range(50)
        },
    )
    with Forwarding(rclone.url) as proxy:
        asked = []
        for base in ("models", "others"):  # there is nothing else in the second one
            open_store = partial(bucket_store, rclone, bucket, base, url=proxy.url)
            keys = [open_store().save(net(seed), f"t{seed}") for seed in range(3)]
            proxy.reset()
            assert open_store().get_state_keys(LINEAR) == keys
            assert proxy.bytes_sent < 2000
            asked.append([path.replace(base, "") for path in proxy.asked()])
        assert asked[0] == asked[1]
        assert len(asked[0]) == 3  # settings, the list, and that of the older layout
    assert len(bucket_store(rclone, bucket).get_state_keys()) == 10_003  # they are there


def plant(rclone, bucket, base, files):
    """Put things into the server's folder, before it looks there and remembers what it saw."""
    for name, data in {layout.SETTINGS: layout.NEW_SETTINGS, **files}.items():
        path = rclone.folder / bucket / base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def check_listing(proxy, server, bucket, open_store):
    store = open_store()
    keys = [store.save(net(seed), f"t{seed}") for seed in range(3)]
    for number in range(1001):
        put(server, bucket, f"models/states/pytorch/other/t{number}.toml", b"never read")
    put(server, bucket, "models/states/pytorch/other/~backup.toml", b"no state file")
    proxy.reset()
    assert open_store().get_state_keys(LINEAR) == keys
    assert len(proxy.requests) == 3  # settings, the list, and that of the older layout
    assert all("other" not in request for request in proxy.asked())
    assert len(store.get_state_keys(StateType("pytorch", "other"))) == 1001  # in pages
    assert len(store.get_state_keys()) == 1004


def test_the_second_load_asks_for_the_few_bytes_of_the_pointer(watched):
    proxy, _, open_store = watched
    key = open_store().save(net(1), "a", files={"f": b"1"})
    open_store().load(net(2), key)
    proxy.reset()
    store = open_store()
    store.load(net(2), key)
    pointer = "/states/pytorch/net/a.toml"
    assert [path.rpartition("models")[2] for path in proxy.asked()] == ["/mlstate.toml", pointer]
    proxy.reset()
    store.load(net(2), key)
    assert [path.rpartition("models")[2] for path in proxy.asked()] == [pointer]
    assert proxy.bytes_sent < 1000


def test_a_load_by_digest_of_what_is_cached_asks_for_nothing(watched):
    proxy, _, open_store = watched
    store = open_store()
    key = store.save(net(1), "a")
    digest = store.digest(key)
    store.load(net(2), key)
    proxy.reset()
    for other in (store, open_store(), open_store(offline=True)):
        model = net(2)
        assert other.load(model, key, digest=digest).digest == digest
        assert same(values(model), values(net(1)))
    assert proxy.requests == []
    assert proxy.connections == 0
    with pytest.raises(IntegrityError):
        store.load(net(2), key, digest="0" * 64)


def test_a_load_asks_for_each_object_once(watched):
    proxy, _, open_store = watched
    key = open_store().save(net(1), "a")
    proxy.reset()
    open_store().load(net(2), key)
    objects = [path for path in proxy.asked("GET") if "/objects/" in path]
    assert len(objects) == len(set(objects)) == 3


def test_a_save_uploads_only_what_the_bucket_lacks(watched):
    proxy, _, open_store = watched
    model = net(1)
    open_store().save(model, "a")
    with torch.no_grad():
        model[2].weight += 1  # the rest is frozen
    proxy.reset()
    open_store().save(model, "b")
    written = [path for path in proxy.asked("PUT") if "/objects/" in path]
    assert len(written) == 2  # one tensor, and the state object
    assert sum(len(record.body) for record in proxy.requests) < 40_000
    assert proxy.asked("PUT")[-1].endswith("/states/pytorch/net/b.toml")  # last


def many(seed=0):
    return {f"layer.{number:02}": torch.full((5000,), number + seed / 7) for number in range(40)}


def test_of_many_objects_a_list_says_which_are_there(watched):
    proxy, _, open_store = watched
    open_store().save_state_dict(many(), KEY)
    proxy.reset()
    open_store().save_state_dict(
        {**many(), "layer.07": torch.ones(5000) / 3}, StateKey(LINEAR, "b")
    )
    assert len([path for path in proxy.asked("PUT") if "/objects/" in path]) == 2
    heads = [path for path in proxy.asked("HEAD") if "/objects/" in path]
    lists = [path for path in proxy.asked("GET") if "list-type=2" in path and "objects" in path]
    assert len(heads) == 2 * bucket_objects.ONE_BY_ONE  # before, and once more at the end
    assert len(lists) == 2


@pytest.mark.filterwarnings(IGNORES)
@pytest.mark.parametrize("others", [0, 958, 959, 960, 3000])
def test_a_list_may_end_before_all_that_is_there(rclone, others):
    """Objects of others make it longer than one page."""
    bucket = rclone.new_bucket()
    digests = [Digest.of(b"%d" % number) for number in range(others)]
    plant(rclone, bucket, "models", {layout.object_path(digest): b"" for digest in digests})
    with Forwarding(rclone.url) as proxy:
        open_store = partial(bucket_store, rclone, bucket, url=proxy.url)
        open_store().save_state_dict(many(), KEY)  # 41 objects
        proxy.reset()
        changed = {**many(), "layer.07": torch.ones(5000) / 3}
        open_store().save_state_dict(changed, StateKey(LINEAR, "b"))
        assert len([path for path in proxy.asked("PUT") if "/objects/" in path]) == 2
        lists = [path for path in proxy.asked("GET") if path.endswith("objects%2F")]
        assert len(lists) == 2  # not more than a page, before and at the end
    assert same(bucket_store(rclone, bucket).load_state_dict(KEY), many())
    present = BucketObjectStore(bucket_place(rclone, bucket, "models")).digests()
    assert len(set(present)) == others + 43


@pytest.mark.parametrize("size", [100, bucket_objects.PART + 1])
def test_a_writer_knows_what_it_has_put_after_it_made_its_list(moto, size):
    place = bucket_place(moto, moto.new_bucket(), "models")
    writer = BucketObjectStore(place).writer()
    for number in range(bucket_objects.ONE_BY_ONE + 1):  # the last one makes the list
        assert not writer.reuse(Digest.of(b"%d" % number), 1)
    data = bytes(size)
    writer.put(Digest.of(data), [data])
    assert writer.reuse(Digest.of(data), size)
    assert not writer.reuse(Digest.of(data), size + 1)


@pytest.fixture(params=[bucket_objects.ONE_BY_ONE, 0])
def listed(request, monkeypatch):
    """Objects are asked about one by one, or listed at once."""
    monkeypatch.setattr(bucket_objects, "ONE_BY_ONE", request.param)


def test_saving_the_same_again_writes_nothing(watched):
    proxy, _, open_store = watched
    open_store().save(net(1), "a", files={"f": b"1"})
    proxy.reset()
    open_store().save(net(1), "a", files={"f": b"1"})
    assert proxy.asked("PUT") == proxy.asked("POST") == proxy.asked("DELETE") == []


@pytest.mark.usefixtures("listed")
def test_saving_the_same_again_brings_back_what_is_missing(watched, moto):
    _, bucket, open_store = watched
    open_store().save(net(1), "a")
    before = contents(moto, bucket)
    lost = max(before, key=lambda name: len(before[name]))
    moto.boto.delete_object(Bucket=bucket, Key=lost)
    open_store().save(net(1), "a")
    assert contents(moto, bucket) == before


def test_verify_writes_what_is_damaged_again(watched, moto):
    _, bucket, open_store = watched
    open_store().save(net(1), "a")
    before = contents(moto, bucket)
    victim = max(before, key=lambda name: len(before[name]))
    put(moto, bucket, victim, before[victim][:-1] + b"!")
    open_store().save(net(1), "a")
    assert contents(moto, bucket) != before
    open_store().save(net(1), "a", verify=True)
    assert contents(moto, bucket) == before


@pytest.mark.usefixtures("listed")
def test_what_is_old_is_made_young_by_a_copy_onto_itself_when_it_is_reused(
    server, bucket, monkeypatch
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = bucket_store(server, bucket)
        store.save(net(1), "a")
        before = contents(server, bucket)
        copied = []
        control = type(store._place.client.control)
        freshen = control.freshen
        monkeypatch.setattr(
            control, "freshen", lambda self, item: copied.append(item.path) or freshen(self, item)
        )
        store.save(net(1), "b")
        assert copied == []
        monkeypatch.setattr("mlstate.objects.bucket._FRESH_SECONDS", 0)
        store.save(net(1), "c")
    assert len(copied) == 3
    after = contents(server, bucket)
    assert {name: after[name] for name in before} == before


# One wins.


@pytest.mark.filterwarnings(IGNORES)
def test_overwriting_keeps_what_was_there_in_the_trash(server, bucket, store):
    key = store.save(net(1), "a")
    old = contents(server, bucket)["models/states/pytorch/net/a.toml"]
    store.save(net(2), "a", overwrite=True)
    found = contents(server, bucket)
    assert found["models/states/pytorch/net/a.toml"] != old
    assert [data for name, data in found.items() if "/trash/" in name] == [old]
    model = net(3)
    store.load(model, key)
    assert same(values(model), values(net(2)))


@pytest.mark.parametrize("name", ["moto", "ceph"])
def test_overwriting_replaces_exactly_the_version_that_it_kept(request, name):
    server = request.getfixturevalue(name)
    bucket = server.new_bucket()
    store, other = (bucket_store(server, bucket) for _ in range(2))
    key = store.save(net(1), "a")
    bury, versions = store.saver.files._keep_in_trash, []

    def bury_late(key, data):
        versions.append(data)
        bury(key, data)
        if len(versions) == 1:
            other.save(net(2), "a", overwrite=True)

    store.saver.files._keep_in_trash = bury_late
    store.save(net(3), "a", overwrite=True)
    assert len(versions) == 2  # the one that came in between is kept, too
    assert len(set(versions)) == 2
    model = net(4)
    store.load(model, key)
    assert same(values(model), values(net(3)))


def test_a_conflict_is_no_answer_and_is_asked_again(watched):
    proxy, _, open_store = watched
    open_store().save(net(0), "other")
    left = [2]

    def conflict(record):
        if record.method == "PUT" and "/states/" in record.path and left[0]:
            left[0] -= 1
            code = "<Error><Code>ConditionalRequestConflict</Code></Error>"
            return Reply(409, {"Content-Type": "application/xml"}, code.encode())
        return None

    proxy.answer = conflict
    store = open_store()
    key = store.save(net(1), "a")
    assert left == [0]
    assert store.exists(key)


def test_a_server_that_ignores_conditions_is_found_out_without_harm(rclone):
    bucket = rclone.new_bucket()
    put(rclone, bucket, "models/mlstate.toml", b'version = 1\nours = "x"\n')
    store = bucket_store(rclone, bucket)
    with pytest.warns(UserWarning, match="ignores conditional writes"):
        store.save(net(1), "a")
    store.save(net(2), "b")  # it is said once
    assert contents(rclone, bucket)["models/mlstate.toml"] == b'version = 1\nours = "x"\n'
    with pytest.raises(StateExistsError):
        store.save(net(2), "a")  # who comes later still sees it


def test_a_server_that_honours_them_gets_no_warning(ceph):
    store = bucket_store(ceph, ceph.new_bucket())
    store.save(net(1), "a")


# Errors.


def errors(store):
    for use in (
        lambda: store.get_state_keys(LINEAR),
        lambda: store.exists(KEY),
        lambda: store.load(net(1), KEY),
        lambda: store.save(net(1), "a"),
        lambda: store.delete(KEY),
        lambda: store.prune(),
        lambda: store.own.size("0" * 64),
    ):
        with pytest.raises(BucketError) as caught:
            use()
        error = caught.value
        assert error.bucket
        assert error.bucket in str(error)
        assert error.operation in ("read", "list", "write", "open", "delete")
        assert error.remedy
        assert "SKTEST" not in f"{error} {error.__cause__} {vars(error)}"
        yield error


def test_no_bucket(server):
    store = bucket_store(server, "no-such-bucket-here")
    found = [*errors_of_bucket(store)]
    assert all("no such bucket" in str(error) for error in found)
    assert all("s3://no-such-bucket-here" in str(error) for error in found)


def errors_of_bucket(store):
    """As `errors`, less the look at an object alone: that reply does not tell bucket from key."""
    iterator = errors(store)
    with contextlib.closing(iterator):
        for _ in range(6):
            yield next(iterator)


@pytest.mark.parametrize("name", ["rclone", "ceph"])
def test_a_wrong_secret(request, name):
    server = request.getfixturevalue(name)
    keys = {**server.session_kwargs, "aws_secret_access_key": "wrongSKTEST"}
    for error in errors(S3StateStore(server.new_bucket(), keys, server.url)):
        assert isinstance(error, AccessError)
        assert "does not accept these credentials" in str(error)
        assert error.code == "SignatureDoesNotMatch"


def test_an_unknown_key(ceph):
    keys = {**ceph.session_kwargs, "aws_access_key_id": "NOBODY"}
    for error in errors(S3StateStore(ceph.new_bucket(), keys, ceph.url)):
        assert isinstance(error, PermissionError)
        assert "does not accept these credentials" in str(error)


def test_nobody_s_bucket_without_credentials(ceph):
    for error in errors(S3StateStore(ceph.new_bucket(), s3_endpoint_url=ceph.url)):
        assert isinstance(error, AccessError)
        assert error.status == 403
        assert "s3:" in error.remedy


@pytest.mark.parametrize(
    ("code", "word", "access"),
    [
        ("ExpiredToken", "have expired", True),
        ("InvalidAccessKeyId", "does not accept", True),
        ("AccessDenied", "do not allow", True),
        ("RequestTimeTooSkewed", "clock", False),
        ("PermanentRedirect", "another region", False),
    ],
)
def test_what_a_server_refuses_is_said_in_words(watched, code, word, access):
    proxy, _, open_store = watched
    status = 301 if code == "PermanentRedirect" else 403
    body = f"<Error><Code>{code}</Code><AWSAccessKeyId>AKSKTEST</AWSAccessKeyId></Error>"
    proxy.answer = lambda record: Reply(status, {}, body.encode())
    for error in errors(open_store()):
        assert word in str(error)
        assert isinstance(error, AccessError) == access


def test_a_key_that_may_read_but_not_write(watched):
    proxy, _, open_store = watched
    key = open_store().save(net(1), "a")
    denied = b"<Error><Code>AccessDenied</Code></Error>"
    proxy.answer = lambda record: Reply(403, {}, denied) if record.method == "PUT" else None
    store = open_store()
    store.load(net(2), key)
    with pytest.raises(AccessError, match="s3:PutObject") as caught:
        store.save(net(2), "b")
    assert caught.value.operation == "write"


def test_an_endpoint_that_nobody_listens_at(moto, monkeypatch):
    monkeypatch.setattr("mlstate.stores.s3.BucketOptions", partial(BucketOptions, attempts=1))
    with closed_port() as port:
        store = S3StateStore("bucket", moto.session_kwargs, f"http://{HOST}:{port}")
        for error in errors(store):
            assert "cannot be reached" in str(error)
            assert error.transient
            assert isinstance(error, ConnectionError)


def test_a_profile_that_is_not_there():
    store = S3StateStore("bucket", {"profile_name": "nobody"})
    with pytest.raises(AccessError, match="nobody") as caught:
        store.get_state_keys(LINEAR)
    assert "AWS_PROFILE" in caught.value.remedy


def test_session_arguments_that_boto3_does_not_know():
    with pytest.raises(FormatError, match="Session"):
        S3StateStore("bucket", {"nonsense": 1}).get_state_keys(LINEAR)


def test_a_profile_gives_keys_region_and_endpoint(ceph, tmp_path, monkeypatch):
    bucket = ceph.new_bucket()
    config = tmp_path / "config"
    config.write_text(
        f"[profile team]\nregion = eu-west-1\nendpoint_url = {ceph.url}\n"
        f"aws_access_key_id = {ceph.access_key}\naws_secret_access_key = {ceph.secret}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    key = S3StateStore(bucket, {"profile_name": "team"}).save(net(1), "a")
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert S3StateStore(bucket).get_state_keys() == [key]


def test_what_is_given_comes_before_the_environment(ceph, monkeypatch):
    bucket = ceph.new_bucket()
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "wrong")
    bucket_store(ceph, bucket).save(net(1), "a")


def test_offline(moto):
    bucket = moto.new_bucket()
    key = bucket_store(moto, bucket).save(net(1), "a")
    store = bucket_store(moto, bucket, offline=True)
    for use in (
        lambda: store.get_state_keys(),
        lambda: store.load(net(1), key),
        lambda: store.save(net(1), "b"),
        lambda: store.delete(key),
        lambda: store.prune(),
    ):
        with pytest.raises(OfflineError):
            use()


def test_a_damaged_state_file_fails_alone(moto):
    bucket = moto.new_bucket()
    store = bucket_store(moto, bucket)
    key, other = store.save(net(1), "a"), store.save(net(2), "b")
    for damage in (b"", b"?", b"\xff", b"x" * ((16 << 20) + 1)):
        put(moto, bucket, "models/states/pytorch/net/a.toml", damage)
        assert store.get_state_keys() == [key, other]
        with pytest.raises(ManifestError):
            store.load(net(3), key)
        store.load(net(3), other)
        with pytest.raises(ManifestError, match="overwrite=True"):
            store.save(net(3), "a")
        store.save(net(3), "a", overwrite=True)
        store.load(net(4), key)


def test_a_missing_object_is_said(moto):
    bucket = moto.new_bucket()
    store = bucket_store(moto, bucket)
    key = store.save(net(1), "a")
    for name in contents(moto, bucket):
        if "/objects/" in name:
            moto.boto.delete_object(Bucket=bucket, Key=name)
    with pytest.raises(ConnectionError, match=r"s3://.*/models: it does not have this state"):
        store.load(net(2), key)


def test_a_mirror_on_this_machine_in_a_state_file_of_a_bucket_is_passed_over(moto, tmp_path):
    bucket = moto.new_bucket()
    local = LocalStateStore(tmp_path / "local")
    key = local.save(net(1), "a")
    manifest = manifest_of(local, objects=[str(tmp_path / "local")])
    put(moto, bucket, "models/mlstate.toml", b"version = 1\n")
    put(moto, bucket, "models/states/pytorch/net/a.toml", manifest.format().encode())
    with pytest.raises(ConnectionError):
        bucket_store(moto, bucket).load(net(2), key)


# The predecessor's layout.


def dump(tensors: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


OLD = StateKey(StateType("pytorch", "net", ("cls10",)), "imagenet")


@pytest.fixture
def old(server, bucket):
    put(server, bucket, "models/pytorch/net.cls10.imagenet.pt", dump(net(1).state_dict()))
    put(server, bucket, "models/pytorch/net.plain.pt", dump(net(2).state_dict()))
    put(server, bucket, "models/sklearn/forest.old.pt", b"any bytes at all")
    for other in ("notes.txt", "pytorch/notes", "pytorch/net2.imagenet.pt", "pytorch/a.pt", "a.pt"):
        put(server, bucket, f"models/{other}", b"")
    return bucket_store(server, bucket)


@pytest.mark.filterwarnings(IGNORES)
def test_old_checkpoints_list_and_load(old):
    plain = StateKey(LINEAR, "plain")
    assert old.get_state_keys(LINEAR) == [plain, OLD]
    assert StateKey.parse("sklearn.forest.old") in old.get_state_keys()
    assert old.exists(OLD)
    assert not old.exists(StateKey(LINEAR, "none"))
    model = net(3)
    digest = old.load(model, OLD).digest
    assert same(values(model), values(net(1)))
    assert old.digest(OLD) == digest
    assert same(old.load_state_dict(plain), values(net(2)))
    assert dict(old.files(plain)) == {}
    with pytest.raises(IncompatibleStateError):
        old.load(net(3, classes=2), OLD)
    model = BytesModel()
    old.load(model, StateKey(BytesModel.state_type, "old"))
    assert model.state == b"any bytes at all"


@pytest.mark.filterwarnings(IGNORES)
def test_old_checkpoints_are_read_only_and_their_keys_are_taken(server, bucket, old):
    key = StateKey(LINEAR, "plain")
    before = contents(server, bucket)
    with pytest.raises(StateExistsError):
        old.save(net(4), "plain")
    old.save(net(2), "plain")  # the same weights
    with pytest.raises(ReadOnlyStoreError, match="older layout"):
        old.delete(key)
    assert contents(server, bucket) == before
    old.save(net(2), "plain", overwrite=True)  # brings it over
    assert "models/states/pytorch/net/plain.toml" in contents(server, bucket)
    old.save(net(4), "plain", overwrite=True)
    model = net(5)
    old.load(model, key)
    assert same(values(model), values(net(4)))
    after = contents(server, bucket)
    assert {name: after[name] for name in before} == before


def test_nothing_is_run_that_an_old_checkpoint_contains(moto):
    class Evil:
        def __reduce__(self):
            return (open, ("/tmp/never", "w"))

    bucket = moto.new_bucket()
    for content in (dump({"a": Evil()}), b"", b"garbage", dump([1])):
        put(moto, bucket, "models/pytorch/net.evil.pt", content)
        model = net(3)
        with pytest.raises((FormatError, ConnectionError), match=r"net\.evil\.pt"):
            bucket_store(moto, bucket).load(model, StateKey(LINEAR, "evil"))
        assert same(values(model), values(net(3)))


# Manifests.


def test_a_manifest_reads_objects_of_a_bucket_with_the_environment_s_credentials(
    server, bucket, tmp_path, monkeypatch
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = bucket_store(server, bucket)
        key = store.save(net(1), "a", files={"f": b"1"})
    manifest = manifest_of(store)
    assert manifest.states[key].objects == (f"s3://{bucket}/models",)
    manifest.write(tmp_path / "manifest.toml")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
    view = ManifestStore(tmp_path / "manifest.toml", cache=tmp_path / "cache")
    model = net(2)
    view.load(model, key)
    assert same(values(model), values(net(1)))
    assert view.files(key)["f"] == b"1"


@pytest.mark.parametrize("state", [True, False])
def test_a_manifest_reads_a_file_of_a_bucket(server, bucket, tmp_path, monkeypatch, state):
    local = LocalStateStore(tmp_path / "local")
    key = local.save(net(1), "a", files={"f": b"1"})
    put(server, bucket, "plain/model.safetensors", save(values(net(1))))
    object_path = local.own.path(local.digest(key))
    put(server, bucket, "plain/state", object_path.read_bytes())
    put(server, bucket, "plain/f", b"1")
    mirror = f"s3://{bucket}/plain"
    beside = f', state = "{mirror}/state"' if state else ""
    entry = local.get(key).entry
    (tmp_path / "manifest.toml").write_text(
        f'version = 1\n[states."{key}"]\nblake3 = "{entry.digest}"\nsize = {entry.size}\n'
        f'mirrors = [{{ url = "{mirror}/model.safetensors"{beside} }}]\n'
        f'[states."{key}".files]\n'
        f'"f" = {{ blake3 = "{entry.files["f"].digest}", mirrors = ["{mirror}/f"] }}\n'
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
    view = ManifestStore(tmp_path / "manifest.toml", cache=tmp_path / "cache")
    model = net(2)
    view.load(model, key)
    assert same(values(model), values(net(1)))
    assert view.files(key)["f"] == b"1"


def test_a_public_bucket_needs_no_credentials(ceph, tmp_path, monkeypatch):
    bucket = ceph.new_bucket()
    store = bucket_store(ceph, bucket)
    key = store.save(net(1), "a")
    for name in contents(ceph, bucket):
        ceph.boto.put_object_acl(Bucket=bucket, Key=name, ACL="public-read")
    manifest_of(store).write(tmp_path / "manifest.toml")
    monkeypatch.setenv("AWS_ENDPOINT_URL", ceph.url)
    model = net(2)
    ManifestStore(tmp_path / "manifest.toml", cache=tmp_path / "cache").load(model, key)
    assert same(values(model), values(net(1)))


def test_a_bucket_that_refuses_does_not_keep_the_next_mirror_from_serving(
    ceph, tmp_path, monkeypatch
):
    local = LocalStateStore(tmp_path / "local")
    key = local.save(net(1), "a")
    places = ["s3://no-such-bucket/x", f"s3://{ceph.new_bucket()}/x", str(tmp_path / "local")]
    manifest_of(local, objects=places).write(tmp_path / "manifest.toml")
    monkeypatch.setenv("AWS_ENDPOINT_URL", ceph.url)
    ManifestStore(tmp_path / "manifest.toml", cache=tmp_path / "cache").load(net(2), key)


# Pruning.

ALL_OLD = -60.0  # seconds of grace: nothing is young


@pytest.mark.filterwarnings(IGNORES)
def test_pruning_takes_what_nothing_names_in_two_steps(server, bucket, store):
    key, other = store.save(net(1), "a"), store.save(net(2), "b", files={"f": b"1"})
    before = contents(server, bucket)
    assert store.prune().trashed == {}
    store.delete(key)
    assert store.prune().trashed == {}  # deleted just now
    dry = store.prune(grace_seconds=ALL_OLD, dry_run=True)
    report = store.prune(grace_seconds=ALL_OLD)
    assert len(report.trashed) == 3
    assert dry.trashed == report.trashed
    assert report.deleted == {}
    assert len(contents(server, bucket)) == len(before) - 1  # moved
    store.load(net(3), other)
    assert store.prune(grace_seconds=ALL_OLD).deleted == report.trashed
    assert not [name for name in contents(server, bucket) if "/trash/" in name]
    assert bucket_store(server, bucket).files(other)["f"] == b"1"


@pytest.mark.filterwarnings(IGNORES)
def test_what_a_state_names_comes_back_from_the_trash(server, bucket, store):
    """As after a pruning that was killed between its two looks."""
    key = store.save(net(1), "a")
    before = contents(server, bucket)
    for name, data in before.items():
        if "/objects/" in name:
            digest = "".join(name.split("/")[-2:])
            put(server, bucket, f"models/trash/{digest}.{'0' * 32}", data)
            server.boto.delete_object(Bucket=bucket, Key=name)
    assert len(store.prune(grace_seconds=ALL_OLD).restored) == 3
    assert contents(server, bucket) == before
    store.load(net(2), key)


@pytest.mark.usefixtures("listed")
def test_a_save_that_reuses_while_a_pruning_takes_away_wins(moto, monkeypatch):
    """The save finds the object, the pruning moves it, and the state file is written last."""
    bucket = moto.new_bucket()
    store, other = bucket_store(moto, bucket), bucket_store(moto, bucket)
    key = store.save(net(1), "a")
    store.delete(key)
    create = store.saver.files.create

    def pruned_before(key, data):
        assert len(other.prune(grace_seconds=ALL_OLD).trashed) == 3
        return create(key, data)

    monkeypatch.setattr(store.saver.files, "create", pruned_before)
    store.save(net(1), "b")
    bucket_store(moto, bucket).load(net(2), StateKey(LINEAR, "b"))
    other.prune(grace_seconds=ALL_OLD)
    other.prune(grace_seconds=ALL_OLD)
    for digest in objects_of(other, StateKey(LINEAR, "b")):
        assert other.own.size(digest) is not None


def test_an_object_that_a_save_made_young_while_it_was_moved_stays(moto, monkeypatch):
    bucket = moto.new_bucket()
    store = bucket_store(moto, bucket)
    store.delete(store.save(net(1), "a"))
    client = store._place.client
    head = client.head

    def younger(path):
        item = head(path)
        return item and replace(item, modified=item.modified + 5)

    monkeypatch.setattr(client, "head", younger)
    assert store.prune(grace_seconds=ALL_OLD).trashed == {}
    monkeypatch.undo()
    assert len([name for name in contents(moto, bucket) if "/objects/" in name]) == 3


def test_a_state_that_cannot_be_read_stops_a_pruning(moto):
    bucket = moto.new_bucket()
    store = bucket_store(moto, bucket)
    store.delete(store.save(net(1), "a"))
    put(moto, bucket, "models/states/pytorch/net/b.toml", b"?")
    before = contents(moto, bucket)
    with pytest.raises(ManifestError):
        store.prune(grace_seconds=ALL_OLD)
    assert contents(moto, bucket) == before


def test_unfinished_uploads_are_given_up(ceph):
    bucket = ceph.new_bucket()
    store = bucket_store(ceph, bucket)
    store.save(net(1), "a")
    path = f"models/objects/ab/{'c' * 62}"
    upload = ceph.boto.create_multipart_upload(Bucket=bucket, Key=path)["UploadId"]
    ceph.boto.upload_part(
        Bucket=bucket, Key=path, UploadId=upload, PartNumber=1, Body=b"x" * (5 << 20)
    )
    assert store.prune().swept == []
    assert [path in swept for swept in store.prune(grace_seconds=ALL_OLD).swept] == [True]
    assert not ceph.boto.list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_what_is_no_store_is_not_pruned(moto):
    bucket = moto.new_bucket()
    put(moto, bucket, "models/x", b"1")
    assert bucket_store(moto, bucket).prune(grace_seconds=ALL_OLD).trashed == {}
    assert contents(moto, bucket) == {"models/x": b"1"}


def objects_of(store, key):
    found = store.get(key)
    store.access.bring(found.entry)
    return [found.entry.digest, *(ref.digest for ref in read_state(*found).refs.values())]


def test_an_unknown_state_names_near_misses(moto):
    store = bucket_store(moto, moto.new_bucket())
    store.save(net(1), "imagenet")
    with pytest.raises(StateNotFoundError, match=r"did you mean pytorch\.net\.imagenet"):
        store.load(net(1), StateKey(LINEAR, "imagenett"))
