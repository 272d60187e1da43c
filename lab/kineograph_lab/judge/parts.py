"""Anatomical parts in images of the pocket world: the judge of anatomy.

A network finds the parts in an image alone, without the prompt: a label for each cell (scenery, or a part) and heat maps of
the centres of parts, which count neighbours that touch, such as an elephant's legs. A rule compares what it found with what
the kind has. The network is trained on renderings and on corrupted renderings (`parts_training.py`), never on generated
images, and never trains a generator.

The rule asks only for what can be known: no part that is too small to be seen at the subject's size, no part of a subject
that the border cuts off, and of subjects that touch one another only that they have no part too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, pixel_shuffle

from kineograph_lab import WEIGHTS as LABORATORY_WEIGHTS
from kineograph_lab.judge.corruption import MIN_LOOSE_CELLS, is_cut_by_border, join_cells
from kineograph_lab.judge.networks import SIDE, ResidualBlock, conv_block, resize_images
from kineograph_lab.recipe.images import to_tensor
from kineograph_lab.world.anatomy import CELL, Anatomy, Expectation, coarsen, estimate_size, expected_parts
from kineograph_lab.world.shapes import PART_NAMES

WEIGHTS = LABORATORY_WEIGHTS / "judge" / "parts.safetensors"
CELLS = SIDE // CELL  # rows and columns of the maps
NUM_LABELS = len(PART_NAMES) + 1  # scenery, and the parts
LARGE_PARTS = ("body", "head")  # whose centre is vague
PEAK_WINDOW, LARGE_PEAK_WINDOW = 3, 7  # cells along which a centre is the highest
PEAK_THRESHOLD = 0.35  # of heat maps, until thresholds are chosen on development data
SIZE_MARGIN = 1.25  # times the size from which a part is counted: a subject's size is an estimate


class PartCentre(NamedTuple):
    """The centre of a part, in cells."""

    name: str
    x: int
    y: int


class Piece(NamedTuple):
    """A connected region of an image that is no scenery.

    cells: its area.
    x: column of its middle.
    is_cut_off: True if it reaches the border.
    parts: number of centres of each part in it.
    """

    cells: int
    x: float
    is_cut_off: bool
    parts: Counter[str]


class FoundParts(NamedTuple):
    """The parts found in an image: connected pieces from left to right, and the number of centres outside all of them."""

    pieces: list[Piece]
    outside: int


class PartsNetwork(nn.Module):
    """Images [n, 3, 128, 128] in -1..1 -> logits of labels [n, 19, 64, 64] and of centres [n, 18, 64, 64]."""

    thresholds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_block(3, 24, 2), *conv_block(24, 24, 1))
        self.fine = nn.Sequential(*conv_block(24, 64, 2), ResidualBlock(*conv_block(64, 64, 1)))
        self.middle = nn.Sequential(*conv_block(64, 96, 2), ResidualBlock(*conv_block(96, 96, 1)))
        self.coarse = nn.Sequential(
            *conv_block(96, 128, 2), *(ResidualBlock(*conv_block(128, 128, 1)) for _ in range(2))
        )
        self.up_middle = nn.Sequential(*conv_block(128 + 96, 96, 1))
        self.up_fine = nn.Sequential(*conv_block(96 + 64, 64, 1))
        self.expand = nn.Conv2d(64, 4 * 32, 1)
        self.last = nn.Sequential(*conv_block(32 + 24, 40, 1))
        self.labels = nn.Conv2d(40, NUM_LABELS, 1)
        self.centres = nn.Conv2d(40, len(PART_NAMES), 1)
        nn.init.constant_(self.centres.bias, -4.0)  # type: ignore[arg-type]  # centres are rare
        self.register_buffer("thresholds", torch.full((len(PART_NAMES),), PEAK_THRESHOLD))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.stem(images)
        fine = self.fine(stem)
        middle = self.middle(fine)
        coarse = self.up_middle(torch.cat([_upsample(self.coarse(middle)), middle], dim=1))
        joined = self.up_fine(torch.cat([_upsample(coarse), fine], dim=1))
        last = self.last(torch.cat([pixel_shuffle(self.expand(joined), 2), stem], dim=1))
        return self.labels(last).float(), self.centres(last).float()

    @torch.no_grad()
    def find(self, frames: UInt8[np.ndarray, "n h w 3"]) -> list[FoundParts]:
        """Return the parts found in each image; other sizes than 128 x 128 are resampled."""
        labels, centres = self(resize_images(to_tensor(frames), SIDE))
        covered, heat = (labels.argmax(1) > 0).numpy(), centres.sigmoid()
        return [
            locate_parts(mask, peaks) for mask, peaks in zip(covered, find_peaks(heat, self.thresholds), strict=True)
        ]


def _upsample(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0)


def find_peaks(heat: Float[Tensor, "n k h w"], thresholds: Float[Tensor, " k"]) -> list[list[PartCentre]]:
    """Return the local maxima of each image's heat maps that reach their part's threshold."""
    highest = max_pool2d(heat, PEAK_WINDOW, 1, PEAK_WINDOW // 2)
    large = [PART_NAMES.index(name) for name in LARGE_PARTS]
    highest[:, large] = max_pool2d(heat[:, large], LARGE_PEAK_WINDOW, 1, LARGE_PEAK_WINDOW // 2)
    is_peak = (heat == highest) & (heat >= thresholds[:, None, None])
    peaks: list[list[PartCentre]] = [[] for _ in heat]
    for image, part, y, x in is_peak.nonzero().tolist():
        peaks[image].append(PartCentre(PART_NAMES[part], x, y))
    return peaks


def locate_parts(covered: np.ndarray, peaks: Sequence[PartCentre]) -> FoundParts:
    """Return the connected pieces of a mask, without specks, and the centres in each.

    covered: bool [cells, cells]: cells that are no scenery.
    """
    numbers = join_cells(covered)
    areas = np.bincount(numbers.ravel())
    kept = [k for k in range(1, len(areas)) if areas[k] >= MIN_LOOSE_CELLS]
    parts = {k: Counter[str]() for k in kept}
    outside = 0
    for peak in peaks:
        around = numbers[max(peak.y - 1, 0) : peak.y + 2, max(peak.x - 1, 0) : peak.x + 2]
        inside = [k for k in (numbers[peak.y, peak.x], *around.ravel()) if k in parts]
        if inside:
            parts[inside[0]][peak.name] += 1
        else:
            outside += 1
    pieces = [
        Piece(int(areas[k]), float((numbers == k).nonzero()[1].mean()), is_cut_by_border(numbers == k), parts[k])
        for k in kept
    ]
    return FoundParts(sorted(pieces, key=lambda piece: piece.x), outside)


def true_parts(anatomy: Anatomy) -> FoundParts:
    """Return the parts of a rendered frame, from its anatomy in place of a network's maps."""
    clear = [each for each in anatomy.instances if each.is_clear]
    return locate_parts(
        coarsen(anatomy.labels) > 0, [PartCentre(each.name, int(each.x / CELL), int(each.y / CELL)) for each in clear]
    )


def are_parts_right(found: FoundParts, kinds: Sequence[str]) -> bool:
    """Return True if the main subject has each of its parts as often as its kind should, joined to its body.

    kinds: of the subjects that the image should show, from left to right; the first is the main one.
    """
    pieces = found.pieces
    if not pieces or len(pieces) > len(kinds) or found.outside:
        return False
    main, shown = pieces[0], kinds[: 1 if len(pieces) == len(kinds) else None]
    expected = [expected_parts(kind) for kind in shown]
    names = {name for each in expected for name in each}
    if any(main.parts[name] for name in PART_NAMES if name not in names):
        return False
    size = max(estimate_size(kind, main.cells) for kind in shown) / len(shown) ** 0.5
    is_whole = len(shown) == 1 and not main.is_cut_off
    return all(
        _is_count_right(main.parts[name], [each[name] for each in expected if name in each], size, is_whole=is_whole)
        for name in names
    )


def _is_count_right(count: int, expected: Sequence[Expectation], size: float, *, is_whole: bool) -> bool:
    """Return True if a part is as often there as the subjects together have it, or too small to be counted."""
    if size < SIZE_MARGIN * max(each.min_size for each in expected):
        return True
    return (count >= sum(each.least for each in expected) or not is_whole) and count <= sum(
        each.most for each in expected
    )


@torch.no_grad()
def parts_right(
    network: PartsNetwork, frames: UInt8[np.ndarray, "n h w 3"], kind: str, others: Sequence[str] = ()
) -> list[bool]:
    """Return for each image whether the parts of its main subject are right.

    kind: of the main subject.
    others: kinds of the subjects to its right.
    """
    return [are_parts_right(found, (kind, *others)) for found in network.find(frames)]


def load_parts_network(path: Path = WEIGHTS) -> PartsNetwork:
    """Return the network with these weights (safetensors), by default those that ship with the laboratory."""
    network = PartsNetwork()
    network.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return network.eval()
