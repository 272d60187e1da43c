"""A model behind an OpenAI-compatible address, asked by HTTP: `chat/completions` with pictures as data."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph.data.pipeline.answers import Ask, NoAnswer, sensible
from kineograph.data.pipeline.settings import Endpoint
from kineograph.errors import InputError

REFUSED = {401: "the key is not accepted", 403: "it is forbidden", 404: "there is no such address or model"}
FAILURES = (OSError, http.client.HTTPException)  # refused, timed out, broken off; urllib's errors are OSErrors
QUALITY = 90

Picture = UInt8[np.ndarray, "h w 3"]


def by_endpoint(settings: Endpoint) -> Ask:
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
            return sensible(_answer(request, settings.timeout))
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
