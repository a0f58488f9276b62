"""Every operation on a disk that becomes full."""

import pytest

from tests.torture.disks import NoDiskError
from tests.torture.full import attack
from tests.torture.operations import OPERATIONS


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_full_disk_leaves_the_old_or_the_new(name, tmp_path, figures):
    try:
        for seed in range(3):
            attack(name, seed, tmp_path, figures)
    except NoDiskError as error:
        pytest.skip(str(error))
    if name in ("save", "save over", "fetch objects", "copy", "export"):
        assert figures["full disks"]
