"""Buckets whose savers, pruners and copiers are killed at their requests: every so many."""

import pytest

from tests.torture.buckets import OPERATIONS, attack_all

pytestmark = pytest.mark.filterwarnings("ignore:the server of .* ignores conditional writes")


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("moto", name) for name in OPERATIONS), ("ceph", "save"), ("ceph", "prune")],
)
def test_a_kill_at_a_request_leaves_the_old_or_the_new(request, kind, name, figures):
    attack_all(request.getfixturevalue(kind), name, figures, step=9)
    assert figures["kills at requests to buckets"]
