"""Converted graphs on disk, shared by processes: whole files, of which the least recently used go beyond a size."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from kineograph.errors import InputError, expand_user
from kineograph.media.files import json_sha256, replace_atomically
from kineograph.models.loading.provenance import fingerprint

if TYPE_CHECKING:
    from torch import nn

FORMAT_VERSION = 1  # of what a graph computes: raised when the forward pass or the conversion changes
VARIABLE = "KINEOGRAPH_GRAPHS"  # environment variable: the folder, or "off"
MAX_BYTES = 20 << 30
GRAPH, NOTE = ".graph", ".note"


class StoredGraph(NamedTuple):
    """A graph that was exported, None for a function that no graph computes rightly.

    exported: uint8; when it was read, its file mapped to memory.
    seconds: time that its conversion took.
    """

    precision: str
    exported: np.ndarray | None
    seconds: float


class Conversions(NamedTuple):
    """The conversions of a model for videos of one shape.

    done    all are stored
    missed  seconds that earlier runs would have saved with them
    """

    done: bool = False
    missed: float = 0.0


@dataclass(frozen=True)
class GraphCache:
    """A folder of graphs by their keys, without effect where it cannot be written.

    folder: by default that of the environment variable `KINEOGRAPH_GRAPHS`, or ~/.cache/kineograph/openvino; with the
        value off, nothing is stored.
    """

    folder: Path | None = field(default_factory=lambda: default_folder())
    max_bytes: int = MAX_BYTES

    def read(self, key: str) -> StoredGraph | None:
        """Return a graph; None if there is none, or only a damaged one."""
        header, start = self._read(key + GRAPH)
        with suppress(KeyError, TypeError, ValueError, OSError):
            count, path = int(header["bytes"]), self._path(key + GRAPH)
            if path.stat().st_size == start + count:
                # OpenVINO takes memory that can be written; pages that nobody writes stay the file's
                exported = np.memmap(path, np.uint8, "c", start) if count else None
                return StoredGraph(str(header["precision"]), exported, float(header["seconds"]))
        return None

    def write(self, key: str, graph: StoredGraph) -> None:
        """Store a graph."""
        exported = np.empty(0, np.uint8) if graph.exported is None else graph.exported
        header = {"precision": graph.precision, "seconds": graph.seconds, "bytes": len(exported)}
        self._write(key + GRAPH, header, exported.data)
        self._remove_oldest()

    def conversions(self, key: str) -> Conversions:
        """Return what is noted of a model's conversions."""
        header, _ = self._read(key + NOTE)
        with suppress(KeyError, TypeError, ValueError):
            return Conversions(bool(header["done"]), float(header["missed"]))
        return Conversions()

    def note(self, key: str, conversions: Conversions) -> None:
        """Store a note of a model's conversions."""
        self._write(key + NOTE, conversions._asdict())

    def size(self) -> tuple[int, int]:
        """Return the number of graphs, and the bytes of all files."""
        files = self._files()
        return sum(path.suffix == GRAPH for path in files), sum(path.stat().st_size for path in files)

    def clear(self) -> None:
        """Remove all files."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name

    def _read(self, name: str) -> tuple[dict[str, Any], int]:
        """Return a file's header, and where the rest begins; no header if there is no such file."""
        if self.folder is not None:
            with suppress(OSError, ValueError, TypeError):
                path = self._path(name)
                with path.open("rb") as file:
                    header, start = dict(json.loads(file.readline())), file.tell()
                os.utime(path)
                return header, start
        return {}, 0

    def _write(self, name: str, header: dict[str, Any], rest: bytes | memoryview = b"") -> None:
        if self.folder is not None:
            with suppress(OSError, InputError):
                self.folder.mkdir(parents=True, exist_ok=True)
                with replace_atomically(self._path(name)) as part, part.open("wb") as file:
                    file.write(json.dumps(header).encode() + b"\n")
                    file.write(rest)  # gigabytes: not copied

    def _files(self) -> list[Path]:
        if self.folder is None:
            return []
        return [path for path in self.folder.glob("*") if path.suffix in (GRAPH, NOTE)]

    def _remove_oldest(self) -> None:
        """Remove graphs beyond the size, and all notes then, which may be of graphs that are gone."""
        with suppress(OSError):
            files = sorted(self._files(), key=lambda path: path.stat().st_mtime, reverse=True)
            total = 0
            for path in files:
                total += path.stat().st_size
                if total > self.max_bytes:
                    path.unlink(missing_ok=True)
            if total > self.max_bytes:
                for path in files:
                    if path.suffix == NOTE:
                        path.unlink(missing_ok=True)


def default_folder() -> Path | None:
    """Return the folder of the environment variable, None if that is "off", or the one in the user's cache."""
    given = os.environ.get(VARIABLE, "")
    if given:
        return None if given == "off" else expand_user(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kineograph" / "openvino"


def hash_values(network: nn.Module, described: object) -> str:
    """Return the hash of everything that a graph depends on. described: all but the network, by its `repr`."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return json_sha256(
        {
            "format": FORMAT_VERSION,
            "versions": [version("openvino"), torch.__version__],
            "processor": str(capabilities),
            "threads": torch.get_num_threads(),
            "network": network_state(network),
            "described": repr(described),
        }
    )


def network_state(network: nn.Module) -> str:
    """Return what changes when a network, its weights or its LoRAs change."""
    return json_sha256({"layers": repr(network), "weights": fingerprint(network), "numbers": repr(_numbers(network))})


def _numbers(network: nn.Module) -> list[Any]:
    """Return numbers that layers hold beside their weights: scales of LoRAs, and FreeU's."""
    names = ("scaling", "active_adapters", "s1", "s2", "b1", "b2")
    return [
        (path, name, value)
        for path, module in network.named_modules()
        for name in names
        if (value := getattr(module, name, None)) is not None
    ]
