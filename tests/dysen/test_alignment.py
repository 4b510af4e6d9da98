"""Which tick a frame belongs to."""

import pytest

from dysen.alignment import frame_ticks, ticks_at, visibility
from vdm.errors import ConfigError


def test_golden_values():
    assert frame_ticks(16, 6) == (0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5)
    assert frame_ticks(4, 8) == (0, 2, 4, 6)
    assert frame_ticks(1, 9) == (0,)


@pytest.mark.parametrize("num_ticks", [1, 2, 7, 10, 256])
def test_any_number_of_frames(num_ticks):
    for num_frames in (*range(1, 40), 1024):
        ticks = frame_ticks(num_frames, num_ticks)
        assert len(ticks) == num_frames
        assert list(ticks) == sorted(ticks)
        assert 0 == ticks[0] <= ticks[-1] < num_ticks
        if num_frames >= num_ticks:
            shares = [ticks.count(tick) for tick in range(num_ticks)]
            assert min(shares) >= 1
            assert max(shares) - min(shares) <= 1


def test_known_times():
    assert ticks_at([0.0, 0.9, 0.9999999, 1.0, 3.5, 7.0], 8) == (0, 0, 1, 1, 3, 7)
    assert ticks_at([-0.5, 9.0], 8) == (0, 7)


def test_visibility():
    assert visibility((0, 2), 3, 0) == ((True, False, False), (False, False, True))
    assert visibility((0, 2), 3, 1) == ((True, True, False), (False, True, True))
    assert visibility((0, 2), 3, None) == ((True,) * 3,) * 2


def test_wrong_numbers():
    with pytest.raises(ConfigError):
        frame_ticks(0, 3)
    with pytest.raises(ConfigError):
        visibility((0,), 3, -1)
