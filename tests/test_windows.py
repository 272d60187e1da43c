"""Videos longer than a network sees at once."""

from itertools import pairwise

import pytest
import torch

from kineograph.errors import InputError
from kineograph.models.temporal.config import Site, TemporalConfig, TransformerConfig
from kineograph.models.unet.windows import average_windows, overlapping_windows, window_ranges

Z = torch.randn(1, 23, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("overlap", [0, 1, 4, 7])
@pytest.mark.parametrize("frames", [1, 8, 9, 16, 23, 100])
def test_windows_cover_every_frame_and_overlap_as_asked(frames: int, overlap: int):
    found = overlapping_windows(frames, 8, overlap)
    assert sorted({k for span in found for k in span}) == list(range(frames))
    assert all(len(span) == min(8, frames) for span in found)
    assert all(len({*a} & {*b}) >= overlap for a, b in pairwise(found))
    assert len(found) == 1 or len(found) == -(-(frames - 8) // (8 - overlap)) + 1


def test_a_network_that_sees_each_frame_alone_gives_what_it_gives_at_once():
    def network(part, numbers):
        return part * torch.tensor([*numbers], dtype=torch.float32)[None, :, None, None, None]

    wanted = network(Z, range(23))
    torch.testing.assert_close(average_windows(network, Z, overlapping_windows(23, 8, 3)), wanted)


def test_one_window_is_the_network_itself():
    assert average_windows(lambda part, numbers: part, Z, overlapping_windows(23, 23, 0)) is Z


def test_what_windows_share_is_mixed_without_a_seam():
    def network(part, numbers):
        return torch.full_like(part, numbers[0])

    seen = average_windows(network, Z, [range(8), range(4, 12)])[0, :12, 0, 0, 0]
    assert (seen.diff() >= 0).all() and seen[:4].eq(0).all() and seen[8:].eq(4).all()
    assert 0 < seen[4] < seen[7] < 4


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="share 0 to 7"):
        overlapping_windows(20, 8, 8)
    known = TemporalConfig(num_frames=16, layers=((Site("transformer"), TransformerConfig(heads=8, positions=24)),))
    assert window_ranges(known, None, None, 40) == overlapping_windows(40, 16, 4)
    with pytest.raises(InputError, match="24 positions"):
        window_ranges(known, 32, None, 40)
