"""An image-text model of `transformers`, asked about pictures on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from kineograph.data.pipeline.answers import Ask
from kineograph.data.pipeline.settings import Local
from kineograph.errors import InputError

ABSENT = (OSError, ValueError, ImportError)  # what `from_pretrained` raises for what is not there
PLAIN = "Question: {question} Answer:"  # how models are asked that know no conversation, such as BLIP-2

Picture = UInt8[np.ndarray, "h w 3"]


def by_transformers(settings: Local) -> Ask:
    """Asks the model greedily: of several pictures it sees all, or the middle one if it knows no conversation.

    Raises InputError when there is no such model, or it is of another kind.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        processor = AutoProcessor.from_pretrained(settings.model)
        model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype=getattr(torch, settings.dtype))
    except ABSENT as error:
        raise InputError(
            f"{settings.model} is no image-text model in a folder or on the Hub, or not in reach: {error}"
        ) from error
    return partial(_asked, processor, model.to(device).eval(), settings.max_new_tokens)


def _asked(processor: Any, model: Any, most: int, pictures: Sequence[Picture], question: str) -> str:
    shown = [Image.fromarray(picture) for picture in pictures]
    inputs = _told(processor, shown, question).to(model.device, model.dtype)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=most, do_sample=False)
    given = inputs["input_ids"]
    repeats = torch.equal(tokens[:, : given.shape[1]], given)  # most models begin with what they were given
    return processor.batch_decode(tokens[:, given.shape[1] if repeats else 0 :], skip_special_tokens=True)[0]


def _told(processor: Any, shown: list[Image.Image], question: str) -> Any:
    """What the model is given. Raises InputError for a question without pictures to a model that needs one."""
    if getattr(processor, "chat_template", None):
        content = [*({"type": "image", "image": image} for image in shown), {"type": "text", "text": question}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    if not shown:
        raise InputError("this model answers about pictures only: leave merged_by out, or name another model there")
    return processor(images=shown[len(shown) // 2], text=PLAIN.format(question=question), return_tensors="pt")
