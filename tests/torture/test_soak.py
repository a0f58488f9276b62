"""Work that goes on and on takes no more of anything."""

from tests.torture.soak import soak


def test_memory_descriptors_threads_and_temporaries_stay_flat(figures):
    soak(3, figures)
    assert figures["soaked rounds"] >= 20
