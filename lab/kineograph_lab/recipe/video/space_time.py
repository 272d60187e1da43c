"""The second family of video models: a space-time U-Net in the manner of Lumiere (Bar-Tal et al. 2024), in small.

Sixteen frames are eight at half the size and four at a quarter, where alone attention along time stands; everywhere else
convolutions follow the resnets. It begins and learns as VidRD's layers do (`vidrd.train`). Still-Moving's paper has such a
model beside one of layers along time inside an image U-Net; here it is `pocket-space-time`.
"""

from kineograph.models.temporal.config import TemporalConfig, TransformerConfig
from kineograph_lab.recipe.video.clips import FRAMES

CONFIG = TemporalConfig(
    num_frames=FRAMES, convolution=True, in_a_row=2, coarsest=True, lonely=True, fewer=(2, 2), frame_rate=True,
    transformer=TransformerConfig(head_width=32, relative=FRAMES, positions=4 * FRAMES, widening=2),
)  # fmt: skip
