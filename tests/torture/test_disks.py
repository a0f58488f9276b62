"""Real file systems that lose power in the middle of work."""

import pytest

from tests.torture.disks import KINDS, NoDiskError, power_cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_system_that_lost_power_has_all_that_had_returned(kind, tmp_path, figures):
    try:
        for seed in range(2):
            folder = tmp_path / str(seed)
            folder.mkdir()
            power_cut(kind, seed, folder, figures)
    except NoDiskError as error:
        pytest.skip(str(error))
    assert figures[f"power cuts of {kind}"] == 2


def test_a_write_that_is_not_flushed_is_lost(tmp_path):
    """The cut is one: what was not flushed is gone."""
    from tests.torture import disks

    for kind in ("ext4", "xfs"):
        image, mount = tmp_path / f"{kind}.img", tmp_path / kind
        try:
            disks._image(kind, image)
            with disks._mounted(image, mount):
                (mount / "lost").write_bytes(b"x" * 10_000)
                assert disks._stop(mount)
            with disks._mounted(image, mount):
                assert not (mount / "lost").exists() or not (mount / "lost").stat().st_size
        except NoDiskError as error:
            pytest.skip(str(error))
