"""Text2Video-Zero against diffusers' deprecated TextToVideoZeroPipeline, which is left as it is.

With whole-cell motion, the same noise and the paper's settings both sample the same latents. Two constants differ, and
ours are set to theirs. Their z at the first timestep is pure noise, which is 1.003 times the noise of that sigma. And
diffusers renoises by the product of alphas[881:941], where the paper's is of alphas[882:942]: a factor to
the moved latents, and another to the noise.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    TextToVideoZeroPipeline,
    create_motion_field_and_warp_latents,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kineograph.denoise import classifier_free_guidance
from kineograph.methods.text2video_zero import paper_sigmas, sample
from kineograph.models.conditioning.text_encoder import TextEncoder
from kineograph.models.model import Model
from kineograph.models.schedule import Schedule
from kineograph.models.unet.frame_attention import first
from kineograph.models.unet.video_unet import VideoUNet
from kineograph.motion import Motion, frame_warp, view_matrix, warp_latents
from kineograph.samplers import final_latents
from kineograph.sigmas import leading

# The peer warns that it is deprecated, that it has no safety checker, and of calls that it should have made otherwise.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CELL = 8  # pixels of a 512-pixel frame
PROMPT, NEGATIVE, SCALE = "a red fish", "blurry", 7.5


class Toy(torch.nn.Module):
    """A function in place of the pipeline's network: bounded, not linear, and conditioned on prompt and timestep."""

    config = SimpleNamespace(in_channels=4, sample_size=64)
    attn_processors = ()
    dtype, device = torch.float32, torch.device("cpu")

    def set_attn_processor(self, processor):
        pass

    def forward(self, z, t, encoder_hidden_states, cross_attention_kwargs=None):
        tokens = encoder_hidden_states.mean(dim=(1, 2))[:, None, None, None]
        return SimpleNamespace(
            sample=torch.tanh(z + 0.3 * z.roll(1, -1) + tokens) * torch.cos(torch.as_tensor(t) / 400)
        )


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(4, 8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def text():
    torch.manual_seed(1)
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=16)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    return tokenizer, CLIPTextModel(config).eval()


def vae():
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )


def pipeline(network):
    tokenizer, encoder = text()
    scheduler = DDIMScheduler(**SD, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    made = TextToVideoZeroPipeline(None, encoder, tokenizer, network, scheduler, None, None, False)
    made.set_progress_bar_config(disable=True)
    return made


def theirs(pipe, noise, motion, scale, generator):
    return pipe(
        PROMPT,
        video_length=noise.shape[1],
        latents=noise[:, 0],
        guidance_scale=scale,
        negative_prompt=NEGATIVE,
        motion_field_strength_x=motion.pan[0],
        motion_field_strength_y=motion.pan[1],
        generator=generator,
        output_type="latent",
    ).images


def noises(frames, seed=3):
    """Frame 0's noise, and what the pipeline will sample for the others from a generator with that seed."""
    noise = torch.randn(1, 1, 4, 64, 64, generator=torch.Generator().manual_seed(seed + 1))
    spread = torch.randn(frames - 1, 4, 64, 64, generator=torch.Generator().manual_seed(seed))
    return torch.cat([noise, spread[None]], dim=1), torch.Generator().manual_seed(seed)


def ours(denoise, schedule, noise, motion):
    """Our own method with the two constants of theirs: see above."""
    sigmas = leading(schedule.sigmas, 50, last=schedule.sigmas[0])
    renoise_to, warp_at = paper_sigmas((4, 64, 64))
    low, high = schedule.sigmas[881], schedule.sigmas[941]
    kept = (1 + schedule.sigmas[880] ** 2) / (1 + schedule.sigmas[940] ** 2)
    factor = math.sqrt(kept) * schedule.scale(low) / schedule.scale(high)
    spread = math.sqrt((1 - kept) / (high**2 - low**2)) / schedule.scale(high)
    warp = frame_warp(motion, frames=noise.shape[1], seed=0)

    def scaled_warp(x0, first_noise):
        others, noises_of_others = warp(x0, first_noise)
        return factor * others, factor * noises_of_others

    start = 1 / (schedule.scale(sigmas[0]) * sigmas[0])
    noise = torch.cat([start * noise[:, :1], spread * noise[:, 1:]], dim=1)
    x = final_latents(sample(denoise, noise, sigmas, warp=scaled_warp, warp_at=warp_at, renoise_to=renoise_to))
    return schedule.scale(sigmas[-1]) * x[0]


@pytest.mark.slow
@pytest.mark.parametrize("cells", [(1, 1), (-2, 3), (0, 0)])
def test_the_algebra_of_the_latents_is_theirs(cells) -> None:
    toy, (noise, generator) = Toy(), noises(frames=8)
    motion = Motion(pan=(float(CELL * cells[0]), float(CELL * cells[1])))
    pipe = pipeline(toy)
    schedule = Schedule.from_config(pipe.scheduler)
    tokens = [pipe.encode_prompt(each, "cpu", 1, False)[0] for each in (PROMPT, NEGATIVE)]

    def bound(tokens):
        def network(z, t):
            denoise_cond = tokens.repeat_interleave(z.shape[1], 0)
            return toy(z.flatten(0, 1), t, denoise_cond).sample.unflatten(0, z.shape[:2])

        return schedule.denoise(network)

    denoise = classifier_free_guidance(bound(tokens[0]), bound(tokens[1]), SCALE)
    expected = theirs(pipe, noise, motion, SCALE, generator)
    torch.testing.assert_close(ours(denoise, schedule, noise, motion), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_the_latents_of_a_whole_model_are_theirs() -> None:
    network, (noise, generator) = unet(), noises(frames=3)
    motion = Motion(pan=(float(CELL), float(2 * CELL)))
    pipe = pipeline(network)
    model = Model(
        net=VideoUNet(network),
        vae=vae(),
        text_encoders=(TextEncoder(pipe.tokenizer, pipe.text_encoder),),
        schedule=Schedule.from_config(pipe.scheduler),
        name="tiny",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    denoise_cond, denoise_uncond = (
        model.bind(model.prompt([each]), frame_attention=first, chunk_size=2) for each in (PROMPT, NEGATIVE)
    )
    expected = theirs(pipe, noise, motion, SCALE, generator)
    result = ours(classifier_free_guidance(denoise_cond, denoise_uncond, SCALE), model.schedule, noise, motion)
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-4)
    assert (expected[0] - expected[2]).std() > 0.1  # frames do differ, so that there was something to get wrong


@pytest.mark.parametrize("cells", [(1, 0), (3, -5), (0, 70)])
def test_whole_cells_are_moved_as_they_move_them(cells) -> None:
    latents = torch.randn(1, 1, 4, 64, 64, generator=torch.Generator().manual_seed(5))
    motion = Motion(pan=(float(CELL * cells[0]), float(CELL * cells[1])))
    expected = create_motion_field_and_warp_latents(*motion.pan, [2], latents[0])
    assert torch.equal(warp_latents(latents, [view_matrix(motion, 2, 8, (64, 64))])[0], expected)
