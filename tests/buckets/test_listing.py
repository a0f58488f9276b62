"""Large folders of a bucket are listed many at once, small ones as ever."""

from __future__ import annotations

import bisect
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Lock

import pytest

from mlstate.buckets import listing
from mlstate.buckets.listing import AT_ONCE, PAGE, spread_items
from mlstate.buckets.values import Item
from mlstate.digests import Digest
from mlstate.errors import BucketError
from mlstate.format import layout
from mlstate.objects.bucket import BucketObjectStore
from tests.servers.forwarding import Forwarding
from tests.support.buckets import bucket_place

COUNT = 2300


class Folder:
    """A folder that counts the pages that are asked for; what it has is sorted."""

    def __init__(self, paths, address="s3://bucket", ignores=False):
        self.paths = sorted(paths)
        self.address = address
        self.ignores = ignores  # where it is told to begin
        self.fails_at = None
        self.lists = []
        self._lock = Lock()

    def items(self, folder, after=None):
        begin = 0 if after is None or self.ignores else bisect.bisect_right(self.paths, after)
        with self._lock:
            self.lists.append(0)
            mine = len(self.lists) - 1
        for at in range(begin, max(len(self.paths), 1), PAGE):
            self.lists[mine] += 1
            if self.fails_at is not None and sum(self.lists) > self.fails_at:
                raise BucketError("no", bucket="b", operation="list", path="p")
            yield from (Item(path, 1, 0.0) for path in self.paths[at : at + PAGE])


def names(count, seed=0):
    chance = random.Random(seed)
    return [
        f"base/objects/{d[:2]}/{d[2:]}" for d in (chance.randbytes(32).hex() for _ in range(count))
    ]


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 9 * PAGE, 15 * PAGE])
def test_a_small_folder_takes_the_requests_of_one_list(count):
    folder = Folder(names(count))
    found = [item.path for item in spread_items(folder, "base/objects")]
    assert sorted(found) == folder.paths
    assert folder.lists == [max(1, -(-count // PAGE))]


@pytest.mark.parametrize("count", [20 * PAGE, 200 * PAGE])
def test_a_large_one_is_listed_in_many_lists_and_few_more_requests(count):
    folder = Folder([*names(count), "base/objects/zz/other", "base/objects/another"])
    found = [item.path for item in spread_items(folder, "base/objects")]
    assert sorted(found) == folder.paths
    ranges = folder.lists[2:]  # after the first page, and the look whether lists begin where told
    assert len(ranges) == min(AT_ONCE, count // PAGE // 8)
    assert sum(folder.lists) <= 1.25 * count / PAGE + 2
    assert max(ranges) <= 2 * count / PAGE / len(ranges)  # none has much more than the others


@pytest.mark.parametrize("options", [{"ignores": True}, {"address": "az://container"}])
def test_where_a_list_does_not_begin_in_the_middle_there_is_one(options):
    folder = Folder(names(40 * PAGE), **options)
    found = [item.path for item in spread_items(folder, "base/objects")]
    assert sorted(found) == folder.paths
    assert sum(folder.lists) <= 40 + ("ignores" in options)


def test_an_error_of_one_list_is_raised():
    folder = Folder(names(100 * PAGE))
    folder.fails_at = 50
    with pytest.raises(BucketError):
        list(spread_items(folder, "base/objects"))


def test_who_needs_no_more_ends_all_lists():
    folder = Folder(names(200 * PAGE))
    items = spread_items(folder, "base/objects")
    assert len(list(islice(items, 5 * PAGE))) == 5 * PAGE
    items.close()
    asked = sum(folder.lists)
    assert asked < 200
    assert sum(folder.lists) == asked


def test_of_a_real_server_nothing_is_missed_and_no_more_is_asked(moto, monkeypatch):
    bucket = moto.new_bucket()
    digests = {Digest.of(str(number).encode()) for number in range(COUNT)}

    def put(digest):
        moto.boto.put_object(Bucket=bucket, Key=f"m/{layout.object_path(digest)}", Body=b"")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, digests))
    with Forwarding(moto.url) as proxy:
        store = BucketObjectStore(bucket_place(moto, bucket, "m", endpoint=proxy.url))

        def lists():
            proxy.reset()
            found = list(store.digests())
            assert len(found) == COUNT
            assert set(found) == digests
            return sum("list-type" in str(request) for request in proxy.requests)

        assert lists() == 3
        monkeypatch.setattr(listing, "_PAGES_EACH", 1)
        assert lists() <= 3 + 2  # two lists, and the look
