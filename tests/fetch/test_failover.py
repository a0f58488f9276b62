"""A mirror that fails leads on to the next, which is asked for what is still missing alone."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from threading import Barrier, Event, Timer

import pytest
import torch

from mlstate import StateKey
from mlstate.errors import FetchError
from mlstate.fetch.plan import LARGE
from mlstate.format import layout, tensor_object
from mlstate.format.state_object import StateObject
from mlstate.locations import parse_mirror
from mlstate.objects.partial import SEGMENT
from tests.servers.ports import closed_port
from tests.servers.recording import Reply, serve
from tests.support.fetching import (
    FILE,
    STORE,
    check_cache,
    leftovers,
    manifest_store,
    publish,
    write_manifest,
)
from tests.support.models import net, same, values

KEY = StateKey.parse("pytorch.net.a")
KINDS = ("objects", "file", "file and state")
HEADERS = 80_000  # what the headers of a file may cost: bytes


def random_tensors(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer{index}": torch.randint(-100, 100, (size,), dtype=torch.int8, generator=generator)
        for index, size in enumerate(sizes)
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Three tensors inside the state object, and seven outside."""
    sizes = [10, 1000, 5000, *(100_000 * n for n in (3, 8, 1, 10, 5, 2, 4))]
    folder = tmp_path_factory.mktemp("small")
    return publish(folder, KEY, random_tensors(0, sizes), {"labels.json": b"[1, 2, 3]"})


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A tensor of several segments, and a medium one."""
    tensors = random_tensors(1, [5 * SEGMENT - 1000, 500_000])
    assert tensors["layer0"].nbytes > LARGE
    return publish(tmp_path_factory.mktemp("large"), KEY, tensors)


def mirrors(kind, published, *bases):
    """The mirrors of one kind at several servers, in order."""
    if kind == "objects":
        return {"objects": [f"{base}/{STORE}" for base in bases]}
    urls = [f"{base}/{FILE}" for base in bases]
    if kind == "file":
        return {"mirrors": urls}
    states = [f"{base}/{published.state_object}" for base in bases]
    return {"mirrors": [{"url": u, "state": s} for u, s in zip(urls, states, strict=True)]}


class Run:
    """Fetches one state from some mirrors into a new cache, and looks at what became of it."""

    def __init__(self, folder, published, given, **options):
        self.published, self.given, self.cache = published, given, folder / "cache"
        path = write_manifest(folder / "manifest.toml", published, **{"files": {}, **given})
        self.store = manifest_store(path, self.cache, **options)

    def succeeds(self):
        report = self.store.fetch(KEY)
        assert leftovers(self.cache) == {}
        self.is_right()
        return report

    def is_right(self):
        check_cache(self.cache)
        assert same(self.store.load_state_dict(KEY), dict(self.published.tensors))

    def fails(self):
        with pytest.raises(FetchError) as caught:
            self.store.fetch(KEY)
        check_cache(self.cache)
        assert caught.value.key == KEY
        assert sum(leftovers(self.cache).values()) <= 2 * self.published.nbytes
        return caught.value


@pytest.fixture
def fetch(tmp_path, small):
    """Prepares a `Run` over servers of `small`, or of another state, in order."""

    def prepare(kind, *bases, published=small, changes=(), **options):
        given = {**mirrors(kind, published, *bases), **dict(changes)}
        return Run(tmp_path, published, given, **options)

    return prepare


@pytest.fixture
def good(start_recording, small):
    return start_recording(small.folder)


@pytest.fixture
def bad(start_recording, small):
    return start_recording(small.folder)


@pytest.fixture
def broken(bad, start_chaos):
    """The address of `bad`, once something is wrong with it; and `bad`."""
    return lambda fault: (fault(bad, start_chaos), bad)


# Each kind of failure of the first mirror


def stalled(bad, chaos):
    return chaos(bad.url, stall_after=50).url


def refusing(bad, chaos):
    return chaos(bad.url, refuse=True).url


def cut_in_the_headers(bad, chaos):
    return chaos(bad.url, cut_after=20).url


def reset_in_the_headers(bad, chaos):
    return chaos(bad.url, cut_after=20, reset=True).url


def answering(status, **headers):
    def fault(bad, chaos):
        bad.before = lambda request: Reply(status, headers, b"no\n")
        return bad.url

    return fault


def giving(change):
    """A server whose files are all changed in some way."""

    def fault(bad, chaos):
        folder = bad.files
        bad.before = lambda request: serve(request, change((folder / request.name).read_bytes()))
        return bad.url

    return fault


def ending_early(bad, chaos):
    """Half of what was asked for first, then nothing."""
    known = set()

    def before(request):
        reply = serve(request, bad.files / request.name)
        body = b"" if request.name in known else b"".join(reply.body)[: len(reply.body) // 2]
        known.add(request.name)
        return Reply(
            reply.status,
            {**reply.headers, "Content-Length": str(len(reply.body))},
            body,
            close=True,
        )

    bad.before = before
    return bad.url


FAULTS = {
    "refusal": refusing,
    "403": answering(403),
    "404": answering(404),
    "410": answering(410),
    "500": answering(500),
    "503": answering(503, **{"Retry-After": "0"}),
    "a web page": answering(200, **{"Content-Type": "text/html"}),
    "a stall": stalled,
    "a cut": cut_in_the_headers,
    "a reset": reset_in_the_headers,
    "a short body": ending_early,
    "a file that is too short": giving(lambda data: data[:-1]),
    "a file that is too long": giving(lambda data: data + b"x"),
    "an empty file": giving(lambda data: b""),
    "a wrong last byte": giving(lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "a wrong first byte": giving(lambda data: bytes([data[0] ^ 1]) + data[1:]),
}
ONCE = {"403", "404", "410"}  # what is not tried again
GONE = {"404", "410"}
HASTY = {"read_timeout": 0.3, "connect_timeout": 5}


def told(server, order, name):
    """Note each request to a server in a list that several share."""
    before = server.before

    def noting(request):
        order.append((name, request.name))
        return before(request) if before else None

    server.before = noting


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_next_mirror_is_asked_after(kind, fault, fetch, broken, good):
    base, bad = broken(FAULTS[fault])
    options = HASTY if fault == "a stall" else {}
    order = []
    told(bad, order, "bad")
    told(good, order, "good")
    run = fetch(kind, base, good.url, **options)
    run.succeeds()
    # With a state object beside it, a mirror that lies of that is used as if it had none.
    last_hope = ("good", FILE) if kind != "objects" else ("good", run.published.state_object)
    assert "bad" not in [who for who, _ in order[order.index(last_hope) :]]
    assert good.bytes_sent > 0
    if fault in ONCE:
        assert len(bad.requests) == (2 if kind == "file and state" else 1)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_mirrors_are_listed_with_their_reasons_after(kind, fault, fetch, broken):
    base, _ = broken(FAULTS[fault])
    with closed_port() as port:
        options = HASTY if fault == "a stall" else {}
        run = fetch(kind, base, f"http://127.0.0.1:{port}", **options)
        error = run.fails()
    places = [place for place, _ in error.attempts]
    listed = run.given.get("objects") or [
        url for m in run.given["mirrors"] for url in (m.values() if isinstance(m, dict) else [m])
    ]
    assert sorted(places) == sorted(listed)
    for place, reason in error.attempts:
        assert reason
        assert place in str(error)
        if f":{port}/" in place:
            assert "refused" in reason
    told = "does not have this state" if kind == "objects" and fault in GONE else f"HTTP {fault}"
    if fault.isdigit():
        assert all(told in reason for place, reason in error.attempts if base in place)
    assert "state object" in str(error.found)


# What the next mirror is asked for


def answering_only(server, count, last=None):
    """Let a server answer so many requests, the last one by ``last``, and refuse the rest."""
    numbers = itertools.count(1)

    def before(request):
        number = next(numbers)
        if number > count:
            return Reply(403)
        return last(request) if last is not None and number == count else None

    server.before = before


def breaking_off(server, size, change=bytes):
    """An answer that ends after so many bytes, for `answering_only`."""

    def answer(request):
        reply = serve(request, server.files / request.name, ranges=server.ranges)
        body = change(b"".join(reply.body)[:size])
        headers = {**reply.headers, "Content-Length": str(len(reply.body))}
        return Reply(reply.status, headers, body, close=True)

    return answer


def sizes_of(published):
    """The sizes of the tensor objects of a state, by where they lie."""
    refs = StateObject.parse(published.read(published.state_object)).refs.values()
    return {published.path_of(ref.digest): tensor_object.object_size(ref.spec) for ref in refs}


def path_of(published, name):
    refs = StateObject.parse(published.read(published.state_object)).refs
    return published.path_of(refs[name].digest)


def asked(server):
    return [request.name for request in server.requests]


def test_of_objects_the_next_mirror_sends_only_those_that_are_missing(fetch, small, good, bad):
    answering_only(bad, 4)  # the state object and three tensors
    run = fetch("objects", bad.url, good.url, connections=1)
    report = run.succeeds()
    sizes = sizes_of(small)
    assert set(asked(good)) == sizes.keys() - set(asked(bad)[:4])
    assert len(good.requests) == 4
    assert report.fetched == sum(sizes.values()) + len(small.read(small.state_object))
    assert bad.bytes_sent + good.bytes_sent == report.fetched


@pytest.mark.parametrize("kind", KINDS[1:])
def test_of_a_file_that_breaks_off_the_next_mirror_sends_only_the_rest(
    kind, fetch, small, good, bad
):
    count = 3 if kind == "file and state" else 2
    answering_only(bad, count, breaking_off(bad, 1_700_000))  # in the middle of layer6
    report = fetch(kind, bad.url, good.url).succeeds()
    rest = sum(small.tensors[f"layer{index}"].nbytes for index in (6, 7, 8, 9))
    assert rest <= good.bytes_sent <= rest + HEADERS
    assert report.fetched <= small.nbytes + small.tensors["layer6"].nbytes + HEADERS


@pytest.mark.parametrize("kind", KINDS)
def test_without_ranges_the_next_mirror_is_asked_too(
    kind, fetch, small, start_recording, start_nginx
):
    bad = start_recording(small.folder, ranges=False)
    answering_only(bad, KINDS.index(kind) + 1, breaking_off(bad, 1_700_000))
    good = start_nginx(small.folder)
    run = fetch(kind, bad.url, good.url(kind="no-ranges").rstrip("/"))
    run.succeeds()
    assert [served.status for served in good.log()] == [200] * len(good.log())
    # Of a file a range is asked for first, in vain.
    assert len(good.log()) == (7 if kind == "objects" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_large_tensor_the_next_mirror_sends_only_the_segments_that_are_missing(
    kind, fetch, large, start_recording
):
    bad, good = start_recording(large.folder), start_recording(large.folder)
    answering_only(bad, 3 if kind == "file" else 4)  # two segments, after what says where
    run = fetch(kind, bad.url, good.url, published=large, connections=1)
    run.succeeds()
    rest = large.nbytes - 2 * SEGMENT
    assert rest <= good.bytes_sent <= rest + HEADERS


# Lies


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def lying(server, name, at=-100):
    """Turn one bit around in one file of a server, honest otherwise."""
    content = (server.files / name).read_bytes()
    wrong = flipped(content, at % len(content))
    server.before = lambda request: serve(request, wrong, '"e"') if request.name == name else None


def test_one_bad_object_costs_that_object_again(fetch, small, good, bad):
    wrong = path_of(small, "layer5")  # the smallest, which comes last
    lying(bad, wrong)
    run = fetch("objects", bad.url, good.url, connections=1)
    run.succeeds()
    assert asked(good) == [wrong]
    assert len(bad.requests) == 8


def test_what_else_is_under_way_when_one_object_is_bad_is_not_lost(fetch, small, good, bad):
    wrong, begun, known = path_of(small, "layer6"), Barrier(7), Event()

    def halting(data):
        yield data[:5000]
        begun.wait(10)
        assert known.wait(10)
        yield data[5000:]

    def before(request):
        content = small.read(request.name)
        if request.name == small.state_object:
            return None
        if request.name == wrong:
            begun.wait(10)
            Timer(0.3, known.set).start()  # time enough to see through the lie
            return serve(request, flipped(content, 9000))
        return Reply(200, {"Content-Length": str(len(content))}, halting(content))

    bad.before = before
    report = fetch("objects", bad.url, good.url).succeeds()
    assert asked(good) == [wrong]
    sizes = sizes_of(small)
    once = sum(sizes.values()) + len(small.read(small.state_object))
    assert report.fetched == once + sizes[wrong]


@pytest.mark.parametrize("name", ["layer3", "layer6", "layer9"])
def test_one_bad_tensor_of_a_file_costs_that_tensor_again(name, fetch, small, good, bad):
    data = small.tensors[name].numpy().tobytes()
    lying(bad, FILE, small.read(FILE).index(data) + 500)
    report = fetch("file and state", bad.url, good.url).succeeds()
    assert report.fetched <= small.nbytes + len(data) + HEADERS
    left = sum(small.tensors[f"layer{n}"].nbytes for n in range(int(name[-1]), 10))
    assert left <= good.bytes_sent <= left + HEADERS


def test_a_flipped_bit_on_the_way_is_noticed(fetch, small, good, start_recording, start_chaos):
    upstream = start_recording(small.folder)
    chaos = start_chaos(upstream.url, flip_at=1_000_000)
    fetch("file and state", chaos.url, good.url, connections=1).succeeds()
    assert FILE in asked(good)


def test_one_bad_bit_of_a_large_object_costs_that_object_alone(fetch, large, start_recording):
    bad, good = start_recording(large.folder), start_recording(large.folder)
    wrong = path_of(large, "layer0")
    lying(bad, wrong, at=2 * SEGMENT + 5)
    fetch("objects", bad.url, good.url, published=large).succeeds()
    index = f"{STORE}/{layout.encoded_index_path(large.entry.pinned_digest)}"
    assert set(asked(good)) == {wrong, index}
    assert asked(good).count(index) == 1
    came = sum(request.bytes_sent for request in good.requests if request.name == wrong)
    assert came == sizes_of(large)[wrong]


def test_a_wrong_tensor_of_a_mirror_that_broke_off_does_not_spoil_the_next(fetch, small, good, bad):
    answering_only(bad, 2, breaking_off(bad, 1_700_000, lambda data: flipped(data, 100_000)))
    fetch("file", bad.url, good.url).succeeds()


def test_a_mirror_that_lied_of_tensors_is_not_asked_for_files(fetch, small, good, bad):
    lying(bad, path_of(small, "layer5"))
    files = {"files": small.entry.files}
    fetch("objects", bad.url, good.url, changes=files, connections=1).succeeds()
    file = small.path_of(small.entry.files["labels.json"].digest)
    assert file in asked(good)
    assert file not in asked(bad)


def test_the_mirrors_of_a_file_are_asked_in_order(fetch, small, start_recording):
    content = {"labels.json": b"[1, 2, 3]"}
    lie, good, spare = (
        start_recording(files) for files in ({"labels.json": b"[1, 2, 4]"}, *[content] * 2)
    )
    urls = ["s3://bucket/labels.json", *(f"{s.url}/labels.json" for s in (lie, good, spare))]
    entry = small.entry.files["labels.json"]
    files = {"labels.json": replace(entry, mirrors=tuple(parse_mirror(url) for url in urls))}
    tensors = start_recording(small.folder)
    run = fetch("file", tensors.url, changes={"files": files})
    run.succeeds()
    assert run.store.files(KEY)["labels.json"] == b"[1, 2, 3]"
    assert (len(lie.requests), len(good.requests), spare.requests) == (1, 1, [])


def test_a_failed_load_leaves_the_model_as_it_was(tmp_path, fetch, start_recording):
    published = publish(tmp_path / "net", KEY, values(net(1)))
    bad = start_recording(published.folder)
    lying(bad, path_of(published, "2.weight"))
    model = net(2)
    run = fetch("objects", bad.url, published=published)
    with pytest.raises(FetchError) as caught:
        run.store.load(model, KEY)
    assert same(values(model), values(net(2)))
    assert "2.weight" in str(caught.value)
    check_cache(run.cache)
    bad.before = None
    run.store.load(model, KEY)
    assert same(values(model), values(net(1)))
    assert bad.requests[-1].name == path_of(published, "2.weight")


# What passes


def breaking(**faults):
    return lambda server, chaos: chaos(server.url, **faults).url


def busy(server, chaos):
    numbers = itertools.count()

    def before(request):
        return Reply(503, {"Retry-After": "0"}) if next(numbers) < 2 else None

    server.before = before
    return server.url


TRANSIENT = {
    "cuts": breaking(cut_after=50_000, first=2),
    "resets": breaking(cut_after=50_000, reset=True, first=2),
    "stalls": breaking(stall_after=50_000, first=2),
    "cuts over and over": breaking(cut_after=400_000),
    "a busy server": busy,
}


@pytest.mark.parametrize("fault", TRANSIENT)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_mirror_is_asked_again_after(kind, fault, fetch, broken, good):
    base, _ = broken(TRANSIENT[fault])
    options = HASTY if fault == "stalls" else {}
    fetch(kind, base, good.url, **options).succeeds()
    assert good.requests == []


def test_retry_after_is_honoured(fetch, small, good, start_nginx):
    nginx = start_nginx(small.folder)
    run = fetch("file", nginx.url(kind="busy").rstrip("/"), good.url)
    Timer(0.4, lambda: setattr(nginx, "busy", False)).start()
    began = time.monotonic()
    run.succeeds()
    assert 1 <= time.monotonic() - began < 5
    assert [served.status for served in nginx.log()] == [503, 206, 206]
    assert good.requests == []


@pytest.mark.parametrize("kind", ["auth", "busy", "loop", "away"])
def test_what_nginx_does_not_give_the_next_mirror_gives(kind, fetch, small, good, start_nginx):
    nginx = start_nginx(small.folder)
    fetch("file", nginx.url(kind=kind).rstrip("/"), good.url, attempts=2).succeeds()
    assert FILE in asked(good)


# What this version cannot use


def test_mirrors_that_cannot_be_used_are_passed_over_and_listed(fetch, small, good):
    odd = ["ftp://host/b", {"url": f"{good.url}/{FILE}", "magic": 1}]
    changes = {"mirrors": odd, "objects": ["gopher://host/d"]}
    error = fetch("file", changes=changes).fails()
    assert good.requests == []
    reasons = dict(error.attempts)
    assert len(reasons) == 3
    assert "unknown scheme ftp" in reasons["ftp://host/b"]
    assert "unknown scheme gopher" in reasons["gopher://host/d"]
    assert any("unknown key magic" in reason for reason in reasons.values())
