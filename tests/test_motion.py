"""Camera motion: warps of a clean frame and of a frame of noise."""

import math

import pytest
import torch

from kineograph.motion import (
    Motion,
    camera_offset,
    frame_warp,
    mirrored_share,
    parse,
    view_matrix,
    warp_latents,
    warp_noise,
)
from kineograph.noise import independent

SIZE = (16, 24)
CELL = 512 / 16  # a whole cell of 16, in the strengths' pixels


def views(text: str, frames: int = 8, size=SIZE):
    return [view_matrix(parse(text), k, frames, size) for k in range(1, frames)]


@pytest.fixture(scope="module")
def noise():
    return independent(5, [0], (2, 4, *SIZE))


def shifted(x, rows: int, columns: int):
    """By whole cells, mirrored about the outer edge, with index arithmetic of its own."""

    def mirrored(count: int, by: int):
        return torch.tensor([min(i % (2 * count), 2 * count - 1 - i % (2 * count)) for i in range(by, count + by)])

    return x[..., mirrored(x.shape[-2], rows), :][..., mirrored(x.shape[-1], columns)]


@pytest.mark.parametrize(
    ("text", "motion"),
    [
        ("pan:12,12", Motion(pan=(12.0, 12.0))),
        ("zoom:1.02", Motion(zoom=1.02)),
        ("rotate:-3", Motion(rotation=-3.0)),
        ("path:0,0;40,0;40,40", Motion(path=((0.0, 0.0), (40.0, 0.0), (40.0, 40.0)))),
        ("none", Motion()),
        (" Pan:+12,-0.5+zoom:1.02 ", Motion(pan=(12.0, -0.5), zoom=1.02)),
    ],
)
def test_a_motion_is_parsed_from_text(text, motion) -> None:
    assert parse(text) == motion


@pytest.mark.parametrize(
    "text", ["", "pan", "pan:12", "pan:1,2,3", "pan:nan,0", "zoom:0", "zoom:-1", "path:0,0", "none:1", "fly:1"]
)
def test_text_that_is_no_motion_is_an_error_with_the_syntax(text) -> None:
    with pytest.raises(ValueError, match=r"expected pan:X,Y, zoom:FACTOR"):
        parse(text)


def test_a_pan_adds_up_and_a_path_has_constant_speed() -> None:
    assert camera_offset(parse("pan:12,-6"), 4, 8) == pytest.approx((48 / 512, -24 / 512))
    way = [camera_offset(parse("path:8,0;40,0;40,32"), k, 5) for k in range(5)]
    assert [(512 * x, 512 * y) for x, y in way] == [(0, 0), (16, 0), (32, 0), (32, 16), (32, 32)]


def test_speed_does_not_depend_on_the_size_of_the_latents() -> None:
    small, large = (view_matrix(parse("pan:12,12"), 3, 8, size) for size in ((16, 16), (64, 64)))
    assert torch.allclose(small[:, 2] / 16, large[:, 2] / 64)


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (1, 2), (-3, 0), (5, -7), (40, 33)])
def test_by_whole_cells_both_warps_are_exactly_a_mirrored_shift(noise, rows, columns) -> None:
    at = [view_matrix(Motion(pan=(columns * 512 / 24, rows * CELL)), 1, 2, SIZE)]
    assert torch.equal(warp_latents(noise, at), shifted(noise, rows, columns))
    assert torch.equal(warp_noise(noise, at, seed=0), shifted(noise, rows, columns))


def test_content_moves_against_the_camera() -> None:
    spot = torch.zeros(1, 1, 1, 16, 16)
    spot[..., 8, 8] = 1
    (seen,) = warp_latents(spot, [view_matrix(parse("pan:32,64"), 1, 2, (16, 16))]).unbind(1)
    assert seen[0, 0].flatten().argmax() == 6 * 16 + 7


def test_a_smooth_image_is_shifted_by_parts_of_a_cell() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave = torch.sin(0.4 * x + 0.2 * y)[None, None, None]
    seen = warp_latents(wave, [view_matrix(Motion(pan=(0.3 * 16, 0.6 * 16)), 1, 2, (32, 32))])
    expected = torch.sin(0.4 * (x + 0.3) + 0.2 * (y + 0.6))
    assert (seen[0, 0, 0] - expected)[3:-3, 3:-3].abs().max() < 0.02


def test_zoom_magnifies_and_rotation_turns_the_content_the_other_way() -> None:
    (nearer,) = views("zoom:2", frames=2, size=(16, 16))
    assert nearer @ torch.tensor([16.0, 8.0, 1.0]).double() == pytest.approx(torch.tensor([12.0, 8.0]).double())
    (turned,) = views("rotate:90", frames=2, size=(16, 16))
    # what the camera, turned clockwise, has at its top was at the right of frame 0
    assert turned @ torch.tensor([8.0, 0.0, 1.0]).double() == pytest.approx(torch.tensor([16.0, 8.0]).double())


MOVES = [
    "pan:12,12",
    "pan:3.7,-9.1",
    "zoom:1.03",
    "zoom:0.97",
    "rotate:4",
    "path:0,0;21,5;9,40",
    "pan:7,0+zoom:1.05+rotate:-6",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", MOVES)
def test_warped_noise_is_white_and_of_unit_variance(text) -> None:
    size = (32, 32)
    noise = independent(11, [0], (8, 12, *size))
    seen = warp_noise(noise, views(text, frames=3, size=size), seed=11)
    inner = seen[..., 8:24, 8:24]  # further out the edge mirrors, and mirror images are not independent
    count = math.prod(inner[:, 0].shape)
    for frame in inner.unbind(1):
        assert abs(frame.mean()) < 4 / math.sqrt(count)
        assert abs(frame.var() - 1) < 4 * math.sqrt(2 / count)
        assert abs((frame**4).mean() - 3) < 4 * math.sqrt(96 / count)
        for one, other in neighbours(frame):
            assert abs((one * other).mean()) < 4 / math.sqrt(one.numel())
    assert abs(seen.var() - 1) < 0.02  # the mirrored edge too


def neighbours(x):
    yield x[..., 1:], x[..., :-1]
    yield x[..., 1:, :], x[..., :-1, :]
    yield x[..., 1:, 1:], x[..., :-1, :-1]
    yield x[..., 1:, :-1], x[..., :-1, 1:]


def test_interpolated_noise_would_fail_the_same_test() -> None:
    noise = independent(11, [0], (4, 4, 32, 32))
    seen = warp_latents(noise, [view_matrix(Motion(pan=(8.0, 8.0)), 1, 2, (32, 32))])
    assert seen.var() < 0.7


def test_warped_noise_follows_the_view() -> None:
    """Its covariance with a cell of frame 0 is the part of that cell that it covers."""
    noise = independent(3, [0], (16, 16, 16, 16))
    seen = warp_noise(noise, [view_matrix(Motion(pan=(0.25 * CELL, 0.0)), 1, 2, (16, 16))], seed=3)[:, 0]
    here, beside = (seen[..., :-1] * noise[:, 0, ..., :-1]).mean(), (seen[..., :-1] * noise[:, 0, ..., 1:]).mean()
    assert here == pytest.approx(0.75, abs=0.02)
    assert beside == pytest.approx(0.25, abs=0.02)


def test_a_frame_and_a_sample_are_warped_the_same_in_any_batch(noise) -> None:
    warp = frame_warp(parse("pan:5,3+rotate:2"), frames=6, seed=9)
    both = warp(noise, noise)
    second = frame_warp(parse("pan:5,3+rotate:2"), frames=6, seed=10)(noise[1:], noise[1:])
    shorter = frame_warp(parse("pan:5,3+rotate:2"), frames=3, seed=9)(noise, noise)
    for whole, alone, early in zip(both, second, shorter, strict=True):
        assert torch.equal(whole[1:], alone)
        assert torch.equal(whole[:, :2], early)


@pytest.mark.parametrize("text", ["pan:12,12", "pan:5,3+rotate:2", "zoom:1.05", "none"])
def test_warp_of_latents_alone_and_of_noise_alone_are_those_of_both(noise, text) -> None:
    warp, motion = frame_warp(parse(text), frames=4, seed=9), parse(text)
    views = [view_matrix(motion, frame, 4, noise.shape[-2:]) for frame in range(1, 4)]
    for _ in range(2):  # the second time from what is kept
        latents, moved = warp(noise, noise)
        assert torch.equal(latents, warp_latents(noise, views)) and torch.equal(latents, warp.latents(noise))
        assert torch.equal(moved, warp_noise(noise, views, 9)) and torch.equal(moved, warp.noise(noise))


def test_zooming_past_what_frame_0_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"magnifies more than 4 times, or 1/4, over 6 frames"):
        frame_warp(parse("zoom:1.606"), frames=6, seed=0)


@pytest.mark.parametrize(
    ("motion", "frames", "share"),
    [
        ("none", 8, 0.0),
        ("pan:64,0", 5, 0.5),
        ("pan:64,64", 5, 0.75),
        ("pan:512,0", 9, 1.0),
        ("zoom:1.1", 8, 0.0),
        ("zoom:0.5", 2, 0.75),
    ],
)
def test_the_share_of_the_last_frame_that_is_mirrored(motion: str, frames: int, share: float) -> None:
    assert mirrored_share(parse(motion), frames) == pytest.approx(share, abs=0.02)
