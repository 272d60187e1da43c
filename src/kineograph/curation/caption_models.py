"""What a model is asked about a clip, and how its answers become a caption.

After VidRD (arXiv 2309.03549): a video that has only a label gets its caption from a multimodal model, which is asked
several questions about its key frames, the label among the words; the answers are merged.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from kineograph.curation.settings import Captions, Endpoint, TransformersModel
from kineograph.errors import InputError

Picture = UInt8[np.ndarray, "h w 3"]
AskModel = Callable[[Sequence[Picture], str], str]
"""(pictures, a question about them) -> the answer; there may be no pictures. Raises NoAnswer."""

LONGEST = 2000  # characters of an answer
WORDS, OFTEN = 12, 0.5  # an answer of so many words of which one makes up more than this goes round in circles


class NoAnswer(InputError):
    """A model that could not be asked, or answered nonsense; the text says which."""


def ask_for_caption(pictures: Sequence[Picture], label: str, ask: AskModel, merge: AskModel | None, told: Captions) -> str:
    """One caption for a clip by its key frames. Raises NoAnswer when one of the questions gets none."""
    answers = [check_answer(ask(pictures, question)) for question in fill_questions(told.questions, label)]
    if merge is None or len(answers) == 1:
        return join_answers(answers)
    listed = "\n".join(f"- {answer}" for answer in answers)
    question = told.merge.replace("{label}", label or "something").replace("{answers}", listed)
    return check_answer(merge([], question))


def fill_questions(templates: Sequence[str], label: str) -> list[str]:
    """The questions with the label in them; without one, those that name none."""
    asked = [text.replace("{label}", label) for text in templates if label or "{label}" not in text]
    return asked or [text.replace("{label}", "something") for text in templates]


def check_answer(answer: str) -> str:
    """An answer on one line. Raises NoAnswer where it is none: without a word, endless, or going round in circles."""
    text = " ".join(answer.split())
    words = text.lower().split()
    if not any(character.isalpha() for character in text):
        raise NoAnswer(f"the answer {text[:40]!r} has no words")
    if len(text) > LONGEST:
        raise NoAnswer(f"the answer has {len(text)} characters, more than {LONGEST}: {text[:40]!r}...")
    if len(words) >= WORDS and Counter(words).most_common(1)[0][1] > OFTEN * len(words):
        raise NoAnswer(f"the answer goes round in circles: {text[:40]!r}...")
    return text


def join_answers(answers: Sequence[str]) -> str:
    """Answers one after another, as sentences; what was said twice is said once."""
    sentences = dict.fromkeys(answer if answer[-1] in ".!?" else f"{answer}." for answer in answers)
    return " ".join(sentences)


REFUSED = {401: "the key is not accepted", 403: "it is forbidden", 404: "there is no such address or model"}
FAILURES = (OSError, http.client.HTTPException)  # refused, timed out, broken off; urllib's errors are OSErrors
QUALITY = 90


def connect_endpoint(settings: Endpoint) -> AskModel:
    """Asks the endpoint, as often as it is told while it fails or answers nonsense, with growing pauses.

    Asking raises NoAnswer once the tries are used up, and InputError when the endpoint refuses whoever asks.
    Raises InputError when the environment variable for the key is not set.
    """
    key = os.environ.get(settings.key) if settings.key else None
    if settings.key and not key:
        raise InputError(f"the key of {settings.url} should be in the environment variable {settings.key}: set it")
    return partial(_asked_patiently, settings, key)


def _asked_patiently(settings: Endpoint, key: str | None, pictures: Sequence[Picture], question: str) -> str:
    request = _request(settings, key, pictures, question)
    reason = ""
    for number in range(settings.tries):
        if number:
            time.sleep(settings.pause * 2 ** (number - 1))
        try:
            return check_answer(_answer(request, settings.timeout))
        except urllib.error.HTTPError as error:
            with error:
                if error.code in REFUSED:
                    raise InputError(f"{settings.url} says {error.code}: {REFUSED[error.code]}") from error
                reason = f"it says {error.code} {error.reason}"
        except NoAnswer as error:
            reason = str(error)
        except FAILURES as error:
            reason = f"it cannot be reached ({getattr(error, 'reason', None) or error or type(error).__name__})"
    raise NoAnswer(f"{settings.url} gave no answer in {settings.tries} tries: {reason}")


def _answer(request: urllib.request.Request, timeout: float) -> str:
    with urllib.request.urlopen(request, timeout=timeout) as response:
        body = response.read()
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise NoAnswer(f"what it sends is no chat completion: {body[:60]!r}") from error
    if not isinstance(content, str):
        raise NoAnswer(f"its answer is no text but {content!r:.60}")
    return content


def _request(settings: Endpoint, key: str | None, pictures: Sequence[Picture], question: str) -> urllib.request.Request:
    shown = [{"type": "image_url", "image_url": {"url": _data(picture)}} for picture in pictures]
    content: Any = [*shown, {"type": "text", "text": question}] if shown else question
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": settings.max_tokens,
        "temperature": 0,
    }
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    address = f"{settings.url.rstrip('/')}/chat/completions"
    return urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")


def _data(picture: Picture) -> str:
    whole = io.BytesIO()
    Image.fromarray(picture).save(whole, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(whole.getvalue()).decode()}"


ABSENT = (OSError, ValueError, ImportError)  # what `from_pretrained` raises for what is not there
PLAIN = "Question: {question} Answer:"  # how models are asked that know no conversation, such as BLIP-2


def load_transformers_model(settings: TransformersModel) -> AskModel:
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
