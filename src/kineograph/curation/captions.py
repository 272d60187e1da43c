"""Captions of clips, by a multimodal model behind an HTTP endpoint or of `transformers`.

As in VidRD (arXiv 2309.03549): a video that has only a label gets its caption from a multimodal model, which is asked
several questions about its key frames, some of which name the label; the answers are merged.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import socket
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kineograph.curation.records import WORK, clips_path, write_text
from kineograph.curation.settings import CaptionModel, Captions, CurationSettings, Endpoint, TransformersModel
from kineograph.curation.sources import SourceFile
from kineograph.errors import InputError, load_json, shown
from kineograph.media.frames import to_rgb
from kineograph.media.seek import decode_frames_at, read_timing
from kineograph.media.shards import FileRange, open_range

Images = Sequence[UInt8[np.ndarray, "h w 3"]]
AskModel = Callable[[Images, str], str]
RecordSocket = Callable[[socket.socket], None]
"""(images, a question about them) -> answer. There may be no images. Raises NoAnswer."""

# Fields of how a model is run, which do not affect what it answers
EXECUTION_FIELDS = {"device", "timeout", "tries", "pause", "key"}
UNRECORDED_FIELDS: Any = {
    "processes": True, "cpus": True, "gpus": True, "asked": EXECUTION_FIELDS, "merged_by": EXECUTION_FIELDS,
}  # fmt: skip

MAX_LENGTH = 2000  # characters of an answer
MIN_WORDS, MAX_REPETITION = 12, 0.5  # an answer of at least so many words repeats itself if one has a larger share
MAX_RESPONSE = 1 << 20  # bytes of an endpoint's response
MAX_REASON = 100  # characters of a reason that a server gives
MAX_PAUSE = 60.0  # seconds between two tries
REFUSALS = {401: "the key is not accepted", 403: "it is forbidden", 404: "there is no such address or model"}
REFUSALS |= dict.fromkeys(
    (301, 302, 303, 307, 308), "it redirects to another address, which is not asked: give that one"
)
CONNECTION_ERRORS = (OSError, http.client.HTTPException)  # urllib's errors are OSErrors
JPEG_QUALITY = 90
MODEL_ERRORS = (OSError, ValueError, ImportError)  # raised by `from_pretrained` for a model that cannot be loaded
PROMPT_WITHOUT_CHAT = "Question: {question} Answer:"  # for models without a chat template, such as BLIP-2


class NoAnswer(InputError):
    """A model that could not be reached or gave an invalid answer; the message says which."""


class CaptionRecord(NamedTuple):
    """Captions by the clips' names, and for other clips the reason why there is none."""

    captions: dict[str, str]
    failed: dict[str, str]


def captions_path(output: Path, captions: Captions, file: SourceFile) -> Path:
    """Return the path of the captions of a file's clips, which depends on models and questions."""
    settings = captions.model_dump_json(exclude=UNRECORDED_FIELDS)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    return output / WORK / "captions" / digest / file.key[:2] / f"{file.key}.json"


def read_captions(path: Path) -> CaptionRecord:
    """Read captions; an empty record where there is no file, or it is damaged: then the models are asked again."""
    try:
        content = load_json(path) if path.exists() else {}
    except (OSError, InputError):
        content = {}
    return CaptionRecord(*(_texts(content, name) for name in CaptionRecord._fields))


def _texts(content: Any, name: str) -> dict[str, str]:
    found = content.get(name) if isinstance(content, dict) else None
    return {key: text for key, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def caption_clips(task: str, settings: CurationSettings) -> str:
    """Caption those clips of a file that have no caption; return the file's key.

    task: the file and the names of its clips, as JSON.

    Raises InputError when the model cannot be loaded, or its endpoint refuses the request.
    """
    work = json.loads(task)
    file, names, captions = SourceFile(**work["file"]), work["clips"], settings.captions
    assert captions is not None
    path = captions_path(settings.output, captions, file)
    known, failed = read_captions(path).captions, dict[str, str]()
    ask = load_caption_model(captions.asked)
    merge = load_caption_model(captions.merged_by) if captions.merged_by else None
    for name in names:
        if name not in known:
            try:
                images = read_key_frames(clips_path(settings.output, file), name, captions.key_frames)
                known[name] = ask_for_caption(images, file.label, ask, merge, captions)
            except NoAnswer as error:
                failed[name] = str(error)
    write_text(path, json.dumps({"captions": known, "failed": failed}))
    return file.key


def read_key_frames(tar: Path, name: str, count: int) -> Images:
    """Decode up to `count` frames of a clip in a tar, from the middles of parts of equal length."""
    with tarfile.open(tar, "r:") as opened_tar:
        member = opened_tar.getmember(f"{name}.mp4")
    with open_range(FileRange(tar, member.offset_data, member.size)) as file:
        timing = read_timing(file)
        total = round((timing.end - timing.start) * timing.fps)
        count = min(count, total)
        indices = ((np.arange(count) + 0.5) * total / count).astype(int)
        times = [timing.start + index / timing.fps for index in indices]
        return decode_frames_at(file, times, timing, lambda frame: to_rgb(frame, (frame.width, frame.height)))


def ask_for_caption(images: Images, label: str, ask: AskModel, merge: AskModel | None, settings: Captions) -> str:
    """Return a caption for the key frames of a clip. Raises NoAnswer when one of the questions gets none."""
    answers = [check_answer(ask(images, question)) for question in fill_questions(settings.questions, label)]
    if merge is None or len(answers) == 1:
        return join_answers(answers)
    listed = "\n".join(f"- {answer}" for answer in answers)
    question = settings.merge.replace("{label}", label or "something").replace("{answers}", listed)
    return check_answer(merge([], question))


def fill_questions(templates: Sequence[str], label: str) -> list[str]:
    """Return the questions with the label filled in; without a label, those that name none."""
    questions = [text.replace("{label}", label) for text in templates if label or "{label}" not in text]
    return questions or [text.replace("{label}", "something") for text in templates]


def check_answer(answer: str) -> str:
    """Return an answer on one line. Raises NoAnswer when it has no words, is too long, or repeats one word."""
    text = " ".join(answer.split())
    words = text.lower().split()
    if not any(character.isalpha() for character in text):
        raise NoAnswer(f"the answer {text[:40]!r} has no words")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise NoAnswer(f"the answer {text[:40]!r} has a lone surrogate, which no file can hold")
    if len(text) > MAX_LENGTH:
        raise NoAnswer(f"the answer has {len(text)} characters, more than {MAX_LENGTH}: {text[:40]!r}...")
    if len(words) >= MIN_WORDS and Counter(words).most_common(1)[0][1] > MAX_REPETITION * len(words):
        raise NoAnswer(f"the answer repeats one word: {text[:40]!r}...")
    return text


def join_answers(answers: Sequence[str]) -> str:
    """Concatenate answers as sentences, without repetitions."""
    sentences = dict.fromkeys(answer if answer[-1] in ".!?" else f"{answer}." for answer in answers)
    return " ".join(sentences)


@lru_cache(maxsize=2)
def load_caption_model(model: CaptionModel) -> AskModel:
    """Return the function that asks a model; it is loaded once in a process."""
    return connect_endpoint(model) if isinstance(model, Endpoint) else load_transformers_model(model)


def connect_endpoint(settings: Endpoint) -> AskModel:
    """Return the function that asks an endpoint, again after growing pauses when it fails or its answer is invalid.

    The function raises NoAnswer after the last try, and InputError when the endpoint refuses the request.
    Raises InputError when the environment variable for the key is not set, or the address is none.
    """
    key = os.environ.get(settings.key, "").strip() if settings.key else None
    if settings.key and not key:
        raise InputError(f"the key of {settings.url} should be in the environment variable {settings.key}: set it")
    if key and not (key.isascii() and key.isprintable()):
        raise InputError(f"the environment variable {settings.key} should hold a key of ASCII characters: set it anew")
    _check_address(settings.url)
    return partial(_ask_endpoint, settings, key)


def _check_address(url: str) -> None:
    """Raise InputError for an address that urllib cannot ask, or with a password, which messages would show."""
    try:
        parts = urllib.parse.urlsplit(url)
        valid = bool((parts.hostname or "").encode("idna")) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise InputError(
            "the url of an endpoint is such as http://localhost:8000/v1, in ASCII and without a user, not "
            f"{shown(url.rpartition('@')[2])}"
        )


def _ask_endpoint(settings: Endpoint, key: str | None, images: Images, question: str) -> str:
    request = _chat_request(settings, key, images, question)
    reason = ""
    for number in range(settings.tries):
        if number:
            time.sleep(min(settings.pause * 2 ** min(number - 1, 60), MAX_PAUSE))
        try:
            return check_answer(_read_answer(_send(request, settings.timeout)))
        except urllib.error.HTTPError as error:
            with error:
                if error.code in REFUSALS:
                    raise InputError(f"{settings.url} says {error.code}: {REFUSALS[error.code]}") from error
                reason = f"it says {error.code} {_one_line(error.reason)}"
        except NoAnswer as error:
            reason = str(error)
        except CONNECTION_ERRORS as error:
            reason = (
                f"it cannot be reached ({_one_line(getattr(error, 'reason', None) or error or type(error).__name__)})"
            )
    raise NoAnswer(f"{settings.url} gave no answer in {settings.tries} tries: {reason}")


def _recording_handler(
    handler: urllib.request.AbstractHTTPHandler, connection: type[http.client.HTTPConnection], record: RecordSocket
) -> urllib.request.AbstractHTTPHandler:
    """Return urllib's handler of HTTP or HTTPS, which now passes each connected socket to a function."""

    def connect_to(host: str, timeout: float) -> http.client.HTTPConnection:
        made = connection(host, timeout=timeout)
        connect = made.connect

        def connect_and_record() -> None:
            connect()
            record(made.sock)

        made.connect = connect_and_record  # type: ignore[method-assign]
        return made

    scheme = "https" if issubclass(connection, http.client.HTTPSConnection) else "http"
    setattr(handler, f"{scheme}_open", lambda request: handler.do_open(connect_to, request))  # type: ignore[arg-type]
    return handler


def _send(request: urllib.request.Request, seconds: float) -> bytes:
    """Send a request, and return the body of the response. No redirect is followed, so that no other host gets the key.

    seconds: limit on the whole exchange. Sockets limit each read only, and a byte now and then would last for ever, so
    the socket is shut down.

    Raises NoAnswer for a response that is too long or takes too long, and what urllib raises.
    """
    sockets, expired = list[socket.socket](), threading.Event()

    def expire() -> None:
        expired.set()
        for each in sockets:
            try:
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # not that of an SSLSocket, which another thread reads
            except OSError:
                continue  # it is closed already

    def record(connected: socket.socket) -> None:
        sockets.append(connected)
        if expired.is_set():
            raise TimeoutError("timed out")

    opener = urllib.request.OpenerDirector()
    own = urllib.request.ProxyHandler(), urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor()
    plain = _recording_handler(urllib.request.HTTPHandler(), http.client.HTTPConnection, record)
    secure = _recording_handler(urllib.request.HTTPSHandler(), http.client.HTTPSConnection, record)
    for handler in (*own, plain, secure):
        opener.add_handler(handler)
    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    body = bytearray()
    try:
        with opener.open(request, timeout=seconds) as response:
            while (part := response.read1(1 << 16)) and len(body) <= MAX_RESPONSE:
                body += part
    except urllib.error.HTTPError:
        raise
    except CONNECTION_ERRORS as error:
        if expired.is_set():
            raise NoAnswer(f"it gave no whole response in {seconds:g} s") from error
        raise
    finally:
        timer.cancel()
    if expired.is_set():
        raise NoAnswer(f"it gave no whole response in {seconds:g} s")
    if len(body) > MAX_RESPONSE:
        raise NoAnswer(f"its response has more than {MAX_RESPONSE} bytes")
    return bytes(body)


def _read_answer(body: bytes) -> str:
    """Return the text of a chat completion. Raises NoAnswer for another body."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise NoAnswer(f"its response is not a chat completion: {body[:60]!r}") from error
    if not isinstance(content, str):
        raise NoAnswer(f"its answer is not text but of type {type(content).__name__}")
    return content


def _one_line(reason: object) -> str:
    """Return a reason that a server may have written."""
    text = str(reason)
    return text if text.isprintable() and len(text) <= MAX_REASON else shown(text)


def _chat_request(settings: Endpoint, key: str | None, images: Images, question: str) -> urllib.request.Request:
    parts = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    content: Any = [*parts, {"type": "text", "text": question}] if parts else question
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": settings.max_tokens,
        "temperature": 0,
    }
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    address = f"{settings.url.rstrip('/')}/chat/completions"
    return urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")


def _data_url(image: UInt8[np.ndarray, "h w 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def load_transformers_model(settings: TransformersModel) -> AskModel:
    """Return the function that asks a model, with greedy decoding. A model without a chat template sees one image.

    Raises InputError when the model cannot be loaded, or is of another kind.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        processor = AutoProcessor.from_pretrained(settings.model)
        model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype=getattr(torch, settings.dtype))
    except MODEL_ERRORS as error:
        raise InputError(
            f"{settings.model} is not an image-text model in a folder or on the Hub, or cannot be reached: {error}"
        ) from error
    return partial(_ask_transformers, processor, model.to(device).eval(), settings.max_new_tokens)


def _ask_transformers(processor: Any, model: Any, max_new_tokens: int, images: Images, question: str) -> str:
    import torch

    inputs = _model_inputs(processor, [Image.fromarray(image) for image in images], question)
    inputs = inputs.to(model.device, model.dtype)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    prompt = inputs["input_ids"]
    repeats_prompt = torch.equal(tokens[:, : prompt.shape[1]], prompt)  # as most models do
    new = tokens[:, prompt.shape[1] if repeats_prompt else 0 :]
    return processor.batch_decode(new, skip_special_tokens=True)[0]


def _model_inputs(processor: Any, images: list[Image.Image], question: str) -> Any:
    """Return the inputs of a model. Raises InputError for a question without images to a model that needs one."""
    if getattr(processor, "chat_template", None):
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    if not images:
        raise InputError("this model answers about images only: leave merged_by out, or name another model there")
    text = PROMPT_WITHOUT_CHAT.format(question=question)
    return processor(images=images[len(images) // 2], text=text, return_tensors="pt")
