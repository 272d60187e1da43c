"""Mutations of files for `tools/fuzz.py`: of bytes, texts, JSON and YAML, safetensors, png, tar and zip."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.numpy
import yaml

NESTED, DIGITS = "@nested@", "@digits@"  # stand for what json.dumps cannot write
UNWRITABLE = {f'"{NESTED}"': "[" * 5000 + "]" * 5000, f'"{DIGITS}"': "9" * 5000}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 65536, 2**31, -(2**31), 2**63, 10**30, 0.5, -0.5, 1e-320, 1e308,
    float("nan"), float("inf"), "", "x", "0", "nan", "1e999", "\ud800", "\0", "\x1b[2J\x1b]0;x\x07", "é\u202e",
    "../../x", "/", "a" * 5000, "None", [], {}, [[]], [None], [{}], {"": ""}, {"a": 1}, [1, "a", None], [0] * 2000,
    NESTED, DIGITS,
)  # fmt: skip
WORDS = (
    b"\0", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\0", b"%s%n", b"\xef\xbb\xbf", b"\xed\xa0\x80",
    b"NaN", b"-1", b"1e999", b"99999999999999999999", b"\r\n", b"../", b"[" * 2000, b"{", b'"', b"'", b"&a [*a]",
    b"<<: *a", b"!!python",
)  # fmt: skip
FRAGMENTS = (
    "(", ")", "[", "]", ":", ":1.3)", ":1e999)", "((((", "\\", "BREAK", "AND", "|", "{a|b}", "{0..9}", "{}", "__x__",
    "<lora:", "<lora:a:1>", ">", "0", "-1", "1e308", "nan", "inf", "99999999999999999999", ",", ";", ";;", "+", "++",
    "--", "=", ".", "..", " ", "\n", "\t", "\0", "\ud800", "\u202e", "\u0660", "½", "é", "😀", "a" * 3000, "pan:",
    "zoom:", "path:", "none", "rotate:", "%",
)  # fmt: skip
CHUNKS = (b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"sBIT")
MEMBERS = ("../x.mp4", "/x.png", "", "a" * 300 + ".png", "é\x1b[2J.png", "x")
DTYPES = (np.float16, np.float64, np.int64, np.uint8, np.bool_, np.int8)
TEXT_SUFFIXES = (".txt", ".csv", ".yaml", ".yml", ".jsonl", ".caption")


def mutate(content: bytes, name: str, rng: Random) -> bytes:
    """Return a mutation of a file's content, by the suffix of its name and what it holds."""
    suffix = Path(name).suffix.lower()
    choices: list[Callable[[bytes, Random], bytes]] = [_mutate_bytes]
    if suffix == ".json":
        choices += [_mutate_json] * 4
    elif suffix in (".yaml", ".yml"):
        choices += [_mutate_yaml] * 3 + [_mutate_text]
    elif suffix == ".jsonl":
        choices += [_mutate_lines] * 3 + [_mutate_text]
    elif suffix in TEXT_SUFFIXES:
        choices += [_mutate_text] * 3
    elif suffix == ".safetensors":
        choices += [_mutate_header, _mutate_tensors, _mutate_tensors]
    elif content[:4] == b"\x89PNG":
        choices += [_mutate_png] * 2
    elif content[:4] == b"PK\x03\x04":
        choices += [_mutate_zip] * 2
    elif suffix == ".tar":
        choices += [_mutate_tar] * 2
    return rng.choice(choices)(content, rng)


def mutate_copy(seed: Path, target: Path, rng: Random) -> str:
    """Write a mutation of a file or of a folder, in which one file is mutated and the others are links.

    Returns the name of the mutated file.
    """
    if seed.is_file():
        target.write_bytes(mutate(seed.read_bytes(), seed.name, rng))
        return seed.name
    files = sorted(file.relative_to(seed) for file in seed.rglob("*") if file.is_file())
    chosen = rng.choice(files)
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        if file != chosen:
            os.link(seed / file, target / file)
    if (kind := rng.random()) < 0.04:
        return f"{chosen} removed"
    if kind < 0.07:
        (target / chosen).mkdir()
        return f"{chosen} made a folder"
    if kind < 0.1:
        shutil.copyfile(seed / (other := rng.choice(files)), target / chosen)
        return f"{chosen} replaced by {other}"
    (target / chosen).write_bytes(mutate((seed / chosen).read_bytes(), chosen.name, rng))
    return str(chosen)


# --- bytes and texts


def _position(content: bytes | bytearray, rng: Random) -> int:
    """Return a position: often in the first bytes, where headers are, or in the last."""
    kind, length = rng.random(), len(content)
    if kind < 0.4:
        return rng.randrange(min(length, 512) or 1)
    return max(0, length - rng.randrange(1, 256)) if kind < 0.5 else rng.randrange(length or 1)


def _mutate_bytes(content: bytes, rng: Random) -> bytes:
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, length = _position(out, rng), rng.choice((1, 2, 4, 8, 64, 1024))
        kind = rng.randrange(8)
        if kind <= 1 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[at : at + length] = rng.randbytes(length)
        elif kind == 3:
            del out[at : len(out) if rng.random() < 0.5 else at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 5:
            out[at:at] = rng.choice(WORDS)
        elif kind == 6:
            number = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
            out[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        else:
            source = _position(out, rng)
            out[at : at + length] = out[source : source + length]
    return bytes(out)


def _mutate_text(content: bytes, rng: Random) -> bytes:
    text = content.decode("utf-8", "surrogateescape")
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, length = rng.randrange(len(text) + 1), rng.choice((0, 1, 3, 10))
        piece = text[rng.randrange(len(text) + 1) :][: rng.choice((1, 3, 10))]
        text = text[:at] + rng.choice((*FRAGMENTS, piece, piece, piece)) + text[at + length :]
    return text[: 1 << 20].encode("utf-8", "surrogatepass" if rng.random() < 0.2 else "replace")


# --- JSON and YAML


def _mutate_value(value: Any, rng: Random) -> Any:
    """Return a copy of a JSON value with one to three changes, anywhere in it."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [*_places(root)]
        holder, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind <= 3:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 4 and len(places) > 1:
            del holder[key]
            root = root or [None]
        elif kind == 5:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name])
        elif kind == 6:
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
        elif isinstance(holder, dict):
            holder[rng.choice(("", "x", "\ud800", f"{key} ", str(key).upper(), "a" * 300))] = holder.pop(key)
        elif isinstance(holder[key], int | float):
            holder[key] = rng.choice((-1, 2, 0.5, 1e6)) * holder[key]
    return root[0]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return all (holder, key) of the values inside."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _dump(value: Any) -> bytes:
    text = json.dumps(value)
    for mark, written in UNWRITABLE.items():
        text = text.replace(mark, written)
    return text.encode()


def _mutate_json(content: bytes, rng: Random) -> bytes:
    try:
        return _dump(_mutate_value(json.loads(content), rng))
    except ValueError:
        return _mutate_bytes(content, rng)


def _mutate_yaml(content: bytes, rng: Random) -> bytes:
    return _dump(_mutate_value(yaml.safe_load(content), rng))  # JSON is YAML


def _mutate_lines(content: bytes, rng: Random) -> bytes:
    lines = content.splitlines() or [b"{}"]
    chosen = rng.randrange(len(lines))
    lines[chosen] = _mutate_json(lines[chosen], rng)
    return b"\n".join(lines)


# --- safetensors, png, tar, zip


def _mutate_header(content: bytes, rng: Random) -> bytes:
    """Change the JSON of a safetensors header, mostly with the right length."""
    length = struct.unpack("<Q", content[:8])[0]
    header = _mutate_json(content[8 : 8 + length], rng)
    stated = len(header) if rng.random() < 0.8 else rng.choice((length, 0, 2**63, 2**64 - 1, len(content)))
    return struct.pack("<Q", stated) + header + content[8 + length :]


def _mutate_tensors(content: bytes, rng: Random) -> bytes:
    """Change tensors and metadata of a safetensors file, which stays a valid one."""
    length = struct.unpack("<Q", content[:8])[0]
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__")
    tensors = safetensors.numpy.load(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        name = rng.choice([*tensors])
        kind, value = rng.randrange(8), tensors[name]
        if kind == 0 and len(tensors) > 1:
            del tensors[name]
        elif kind == 1:
            tensors[rng.choice(("x", "", name.upper(), name + ".weight", name[1:], "a." * 300))] = tensors.pop(name)
        elif kind == 2:
            tensors[name] = value.reshape(rng.choice(((-1,), (1, *value.shape), value.shape[::-1], (*value.shape, 1))))
        elif kind == 3:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values that the other type does not have
                tensors[name] = value.astype(
                    rng.choice((np.float16, np.float64, np.int64, np.uint8, np.bool_, np.int8))
                )
        elif kind == 4:
            tensors[name] = np.full(value.shape, rng.choice((np.nan, np.inf, 0, 3e38)), np.float32)
        elif kind == 5:
            tensors[name] = value[: rng.randrange(2)] if value.ndim else value
        elif kind == 6:
            tensors[name] = tensors[rng.choice([*tensors])]
        else:
            tensors[name] = np.concatenate([value, value]) if value.ndim else np.float32([1, 2])
    if metadata and rng.random() < 0.3:
        changed = rng.choice([*metadata])
        metadata[changed] = _mutate_json(metadata[changed].encode(), rng).decode(errors="replace")
    return safetensors.numpy.save({name: np.ascontiguousarray(each) for name, each in tensors.items()}, metadata)


def _mutate_png(content: bytes, rng: Random) -> bytes:
    """Change, repeat, remove or swap chunks, with right checksums."""
    chunks, at = list[tuple[bytes, bytes]](), 8
    while at + 8 <= len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    chosen = rng.randrange(len(chunks))
    kind, data = chunks[chosen]
    action = rng.randrange(6)
    if action <= 2:
        chunks[chosen] = kind, _mutate_bytes(data, rng)
    elif action == 3:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[chosen])
    elif action == 4:
        del chunks[chosen]
    else:
        new = rng.choice(
            (b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"sBIT")
        )
        chunks.insert(rng.randrange(1, len(chunks) + 1), (new, rng.randbytes(rng.choice((0, 1, 4, 26, 200)))))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return content[:8] + b"".join(packed)


def _mutate_tar(content: bytes, rng: Random) -> bytes:
    """Change a member of a tar: its content, name or kind."""
    written = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(fileobj=written, mode="w") as new:
        members = old.getmembers()
        chosen = rng.randrange(len(members))
        for number, member in enumerate(members):
            file = old.extractfile(member)
            data = file.read() if file else b""
            if number == chosen:
                if (kind := rng.random()) < 0.7:
                    data = mutate(data, member.name, rng)
                elif kind < 0.9:
                    member.name = rng.choice(
                        ("../x.mp4", "/x.png", "", "a" * 300 + ".png", members[0].name, "é\x1b[2J.png", "x")
                    )
                else:
                    member.type, member.linkname = (
                        rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)),
                        "/etc",
                    )
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return written.getvalue()


def _mutate_zip(content: bytes, rng: Random) -> bytes:
    """Change a member of a zip archive, such as the pickle in a torch file."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        chosen = rng.choice(pickles if pickles and rng.random() < 0.6 else names)
        for name in names:
            data = old.read(name)
            new.writestr(name, _mutate_bytes(data, rng) if name == chosen else data)
    return written.getvalue()
