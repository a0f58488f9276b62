"""Which rank verifies which object, so that each file is verified by one rank of its node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlstate.digests import Digest
from mlstate.integrations.dcp_objects import FileId, shares

DIGESTS = [Digest.of(bytes([n])) for n in range(8)]
NODES = ("a", "b")


@st.composite
def needs(draw):
    """For each rank, of one of two nodes, some objects; of each node its own files, or none."""
    sizes = {digest: draw(st.integers(1, 100)) for digest in DIGESTS}
    mapped = {(node, digest): draw(st.booleans()) for node in NODES for digest in DIGESTS}
    ranks = []
    for _ in range(draw(st.integers(1, 6))):
        node = draw(st.sampled_from(NODES))
        ranks.append(
            {
                digest: (
                    FileId(node, 1, at) if mapped[node, digest] else None,
                    sizes[digest],
                )
                for at, digest in enumerate(DIGESTS)
                if draw(st.booleans())
            }
        )
    return ranks


@given(needs())
def test_each_file_is_verified_by_one_that_needs_it(ranks):
    given_to = shares(ranks)
    assert all(share <= needed.keys() for share, needed in zip(given_to, ranks, strict=True))
    files = [
        (digest, needed[digest][0])
        for share, needed in zip(given_to, ranks, strict=True)
        for digest in share
    ]
    once = [one for one in files if one[1] is not None]
    assert sorted(once) == sorted(
        {(digest, file) for needed in ranks for digest, (file, _) in needed.items() if file}
    )
    for share, needed in zip(given_to, ranks, strict=True):  # what is not mapped, by each
        assert {digest for digest, (file, _) in needed.items() if file is None} <= share


@given(st.integers(1, 8), st.integers(1, 8))
def test_the_work_is_even(ranks, count):
    needed = {digest: (FileId("a", 1, at), 10) for at, digest in enumerate(DIGESTS[:count])}
    sizes = [len(share) for share in shares([needed] * ranks)]
    assert max(sizes) - min(sizes) <= 1
