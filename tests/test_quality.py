"""A short form of `python -m benchmarks.quality`: three photographs at one area."""

import pytest

from benchmarks import quality


@pytest.mark.slow
def test_masks_beat_torchray_in_an_eighth_of_its_steps(data_dir):
    """Ours wins on average and most pairs under its own blur, torchray's blur and a mean fill."""
    rows = quality.table(data_dir, number=3, areas=(0.1,), opponents=tuple(quality.OPPONENTS)[:1])
    for row in rows:
        assert row.mean > 0, row
        assert row.won >= 0.5, row
