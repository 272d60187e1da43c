"""Numbers of the pocket models' recipe.

Command:   python -m kineograph_lab.recipe.run --export
Cost:      about 275 minutes on 2 cores with bf16 units (AMD EPYC, avx512_bf16), 8 GB of memory, 5 GB of disk
Expected, on held-out data:
           vae      30.3 dB (50,000 crops in 19 minutes)
           text     every fact of 256 captions right (157,000 captions in 4 minutes)
           unet     see docs/decisions/0005 (328,000 images in 80 minutes, after 86,000 in an earlier training)
           control  a contact sheet of maps and of images sampled from them (44,000, 46,000 and 42,000 images, 13 minutes each)
           edit     16.2 dB to the world's own edit, by ten steps at guidance scale 5 (107,000 pairs in 33 minutes)
           geometry depth error 0.029, keypoint error 0.045 of the image's side (65,000 images in 5 minutes)
           clip     the caption is first among 256: 0.88; preferred to one with a wrong colour: 1.00, a wrong subject: 0.88
                    (108,000 pairs in 7.5 minutes)
           image_classifier   subject 0.97, colour 1.00, scene 1.00, style 0.99, individual 0.77, of images in motion
           motion_classifier  0.91 (34,000 clips in 8 minutes, from 3,000 different ones)

Every stage anneals its learning rate to zero within its time: twice the minutes is more data, not another recipe.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from kineograph_lab.recipe.loop import StagePlan


class RecipeSettings(BaseModel):
    """All settings of the recipe; `--minutes` and `--steps` replace those of every plan."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    seed: int = 0
    wide: bool = False  # shots and captions of the wider distribution (`world/wide.py`)
    initial: str | None = None  # folder, in the output folder, of earlier results from which stages go on
    num_images: int = 30_000  # rendered once: 70 seconds, 1.5 GB
    num_held_out_images: int = 1_000
    num_held_out_pairs: int = 8_000  # images of held-out pairs, for the judge alone
    num_families: int = 3_000  # of eight images each, for the judge
    num_motion_clips: int = 3_000  # of 16 frames, for the judge
    num_clips: int = 5_000  # of 16 frames, as latents, for the video models: 14 minutes, 330 MB
    num_stills: int = 8_000  # single images trained together with them
    num_held_out_clips: int = 250
    num_report_videos: int = 5  # videos in each report of the video models
    num_clip_captions: int = 40_000  # captions of clips, for the video models' text encoder
    num_degraded_clips: int = 300  # for the video model of degraded data
    num_panned_clips: int = 1_500  # clips made of images by pan and zoom, for VidRD's layers
    panned_share: float = 0.15  # share of steps with those; 0 for clips alone
    num_decoder_clips: int = 600  # of 8 frames, as pixels, for the temporal decoder: 240 MB
    num_edit_families: int = 6_000  # of an image and its four edits
    num_judge_held_out: int = 150  # held-out families and clips in the judge's reports
    num_part_images: int = 36_000  # renderings and corrupted renderings, for the judge of anatomy: 3 minutes, 2.4 GB
    num_part_held_out: int = 1_200  # of its thresholds' choice, and as many of its report

    vae: StagePlan = StagePlan(minutes=19, lr=3e-3, batch=16)
    text: StagePlan = StagePlan(minutes=4, lr=2e-3, batch=256)
    clip: StagePlan = StagePlan(minutes=7.5, lr=2e-3, batch=128)
    unet: StagePlan = StagePlan(minutes=80, lr=2e-3, batch=64)
    control: StagePlan = StagePlan(minutes=13, lr=2e-3, batch=32)  # each of three
    edit: StagePlan = StagePlan(minutes=33, lr=2e-3, batch=32)
    image_classifier: StagePlan = StagePlan(minutes=20, lr=2e-3, batch=128)
    geometry: StagePlan = StagePlan(minutes=5, lr=2e-3, batch=128)
    parts: StagePlan = StagePlan(minutes=20, lr=2e-3, batch=64)
    moving_text: StagePlan = StagePlan(minutes=8, lr=1e-3, batch=256)
    image_reading: StagePlan = StagePlan(minutes=10, lr=2e-3, batch=48)
    image_to_video: StagePlan = StagePlan(minutes=20, lr=1e-3, batch=4)
    ablation: StagePlan = StagePlan(minutes=12, lr=2e-3, batch=4, steps=400)  # each of two; not shipped
    degraded: StagePlan = StagePlan(minutes=10, lr=1e-3, batch=4)
    motion_adapter: StagePlan = StagePlan(minutes=7, lr=2e-3, batch=4)
    vidrd: StagePlan = StagePlan(minutes=25, lr=2e-3, batch=4)
    space_time: StagePlan = StagePlan(minutes=25, lr=2e-3, batch=4)
    vidrd_ablation: StagePlan = StagePlan(minutes=8, lr=2e-3, batch=4, steps=300)  # each of two; not shipped
    temporal_decoder: StagePlan = StagePlan(
        minutes=20, lr=1e-3, batch=8
    )  # the shipped one: 8 minutes at 2e-3, then 12 so
    text_to_video: StagePlan = StagePlan(minutes=110, lr=2e-3, batch=4)
    motion_classifier: StagePlan = StagePlan(minutes=8, lr=2e-3, batch=32)


# The long training (`long/training.py`), in steps, since it runs over several sessions and shares the machine. All stages go
# on from the shipped weights.
NUM_TEXTS = 100_000  # training texts of the text encoder
IMAGE_SHARDS = 90  # of 2,048 images each, for the U-Net
CLIP_SHARDS = 28  # of 256 clips each, for the video models
STILL_SHARDS = 16  # shards of images trained together with the clips
LONG = RecipeSettings(
    wide=True,
    initial="shipped",
    text=StagePlan(minutes=9, lr=1e-3, batch=256, steps=500, decay=0.7),
    unet=StagePlan(
        minutes=120, lr=1.2e-3, batch=64, steps=8_600, warmup=200, decay=0.4, ema=0.9995, report_steps=3_000
    ),
    control=StagePlan(minutes=13, lr=1e-3, batch=32, steps=1_300, report_steps=650),
    edit=StagePlan(minutes=25, lr=1e-3, batch=32, steps=2_500, report_steps=1_250),
    text_to_video=StagePlan(minutes=80, lr=1e-3, batch=4, steps=2_700, decay=0.7, ema=0.999, report_steps=900),
    image_to_video=StagePlan(minutes=35, lr=5e-4, batch=4, steps=1_200, report_steps=600),
    motion_adapter=StagePlan(minutes=10, lr=2e-3, batch=4, steps=350),
    vidrd=StagePlan(minutes=35, lr=1e-3, batch=4, steps=1_300, report_steps=650),
    degraded=StagePlan(minutes=10, lr=1e-3, batch=4, steps=330),
    space_time=StagePlan(minutes=25, lr=1e-3, batch=4, steps=900, report_steps=450),
)
