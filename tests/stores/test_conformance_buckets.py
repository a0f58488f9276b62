"""Stores in buckets, held against the suites of all stores, on every server."""

from __future__ import annotations

import pytest

from tests.conformance.object_stores import ObjectStoreSuite
from tests.conformance.state_stores import StateStoreSuite
from tests.support.buckets import bucket_kit, bucket_store


class TestObjectsInBuckets(ObjectStoreSuite):
    @pytest.fixture
    def kit(self, server):
        return bucket_kit(server, server.new_bucket())


@pytest.mark.filterwarnings("ignore:the server of .* ignores conditional writes")
class TestStatesInBuckets(StateStoreSuite):
    @pytest.fixture
    def store(self, server):
        return bucket_store(server, server.new_bucket())
