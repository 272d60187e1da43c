"""Overlapping temporal windows and the average of their outputs."""

from itertools import pairwise

import pytest
import torch

from kineograph.errors import InputError
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.unet.windows import FrameWindow, average_windows, overlapping_windows, pyramid, window_ranges

Z = torch.randn(1, 23, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def weighted(ranges: list[range]) -> list[FrameWindow]:
    return [FrameWindow(each, pyramid(len(each))) for each in ranges]


@pytest.mark.parametrize("overlap", [0, 1, 4, 7])
@pytest.mark.parametrize("frames", [1, 8, 9, 16, 23, 100])
def test_windows_cover_every_frame_with_the_least_overlap(frames: int, overlap: int) -> None:
    found = overlapping_windows(frames, 8, overlap)
    assert sorted({k for window in found for k in window}) == list(range(frames))
    assert all(len(window) == min(8, frames) for window in found)
    assert all(len({*a} & {*b}) >= overlap for a, b in pairwise(found))
    assert len(found) == 1 or len(found) == -(-(frames - 8) // (8 - overlap)) + 1


def test_windows_do_not_change_a_network_that_processes_frames_separately() -> None:
    def network(part, numbers):
        return part * torch.tensor([*numbers], dtype=torch.float32)[None, :, None, None, None]

    expected = network(Z, range(23))
    torch.testing.assert_close(average_windows(network, Z, weighted(overlapping_windows(23, 8, 3))), expected)


def test_one_window_returns_the_output_of_the_network() -> None:
    assert average_windows(lambda part, numbers: part, Z, weighted(overlapping_windows(23, 23, 0))) is Z


def test_the_average_changes_gradually_from_window_to_window() -> None:
    def network(part, numbers):
        return torch.full_like(part, numbers[0])

    output = average_windows(network, Z, weighted([range(8), range(4, 12)]))[0, :12, 0, 0, 0]
    assert (output.diff() >= 0).all() and output[:4].eq(0).all() and output[8:].eq(4).all()
    assert 0 < output[4] < output[7] < 4


def test_impossible_windows_are_refused() -> None:
    with pytest.raises(InputError, match="share 0 to 7"):
        overlapping_windows(20, 8, 8)
    config = TemporalConfig(num_frames=16, layers=((Site("transformer"), TransformerConfig(heads=8, positions=24)),))
    assert window_ranges(config, None, None, 40) == overlapping_windows(40, 16, 4)
    with pytest.raises(InputError, match="24 positions"):
        window_ranges(config, 32, None, 40)


def test_the_average_is_taken_in_single_precision() -> None:
    x = 1000 + 100 * torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0))
    windows = weighted(overlapping_windows(40, 16, 15))
    half = average_windows(lambda part, numbers: part, x.half(), windows)
    assert half.dtype == torch.float16
    assert torch.equal(half, x.half())
