"""`kineograph serve` and `kineograph worker`: the REST service, and a process that generates the videos of its jobs."""

from __future__ import annotations

import difflib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kineograph.cli import terminal
from kineograph.errors import InputError, check_choice, expand_user, is_present, shown
from kineograph.plugins import find_plugins

if TYPE_CHECKING:
    from kineograph.service.api.settings import ServeSettings
    from kineograph.service.declaration import Declaration
    from kineograph.service.jobs import QueueLimits

GIGABYTE = 1e9
RESTART_SECONDS = 5.0  # until a worker that ended is started again
NICE = 10  # by which the server's own worker yields to it, so that it answers at once on a busy CPU
CLOSE_SECONDS = 10  # that requests have to end when the server stops
IDLE_SECONDS = 75  # for which a connection stays open: longer than nginx keeps its own
log = logging.getLogger(__name__)
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

ServiceFolder = Annotated[Path, typer.Argument(help="Folder of the service: its queue, uploads and results.")]
Device = Annotated[
    str | None, typer.Option(show_default="the fastest", help="Device: cuda, cuda:1, mps or cpu; a worker for each.")
]
DType = Annotated[
    str | None,
    typer.Option(show_default="the fastest on the device", help="Type of the weights: float32, bfloat16, float16."),
]
Memory = Annotated[
    float | None,
    typer.Option(
        show_default="half of the device's memory",
        help="Gigabytes of weights that stay loaded between jobs; the least recently used model goes first.",
    ),
]


def serve(
    folder: ServiceFolder = Path("service"),
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is that of all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 for a free one.")] = 8000,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            show_default="the built-in ones",
            help="A model that requests may name: a folder, file, hub id or built-in one. May be repeated.",
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(
            show_default="none",
            help="Folder whose files requests may name: videos, images, LoRAs, adapters. Nothing outside it is read.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(show_default="none", help="File of the tokens that requests need; other machines need one."),
    ] = None,
    new_token: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER",
            show_default=False,
            help="Add a token of this owner to the file, print it, and end: the file has only its hash.",
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            show_default=False,
            help="Another setting or limit of docs/service.md, the value in JSON or a text. May be repeated.",
        ),
    ] = None,
    device: Device = None,
    dtype: DType = None,
    memory: Memory = None,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Start no worker: others run, as by kineograph worker FOLDER.")
    ] = False,
) -> None:
    """Serve videos to programs over HTTP, with a worker of its own on one device.

    Clients of OpenAI's /v1/videos work; / has the documentation of the API.

    Ctrl-C and SIGTERM end the sampling step that is running; its job goes on with the next start.
    """
    if new_token is not None:
        _add_token(token_file, new_token)
        return
    try:
        import uvicorn

        from kineograph.service.api import create_app
        from kineograph.service.api.context import Service
        from kineograph.service.api.fields import Fields
    except ImportError as error:
        raise InputError(
            f"`serve` needs {error.name}, which is not installed: pip install 'kineograph[serve]'"
        ) from error
    from kineograph.service.queue import JobQueue

    folder = expand_user(folder)
    given = {
        "host": host,
        "port": port,
        "opened_folder": files and expand_user(files),
        "token_file": token_file and expand_user(token_file),
    }
    settings, limits = read_settings(given, set or (), folder)
    configure_logs(settings.log_format)
    queue = JobQueue.open(folder, limits)
    service = Service(queue, settings, Fields.of(declare_models(model or ())))
    config = uvicorn.Config(
        create_app(service), log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS, timeout_keep_alive=IDLE_SECONDS,
    )  # fmt: skip
    where = {"--device": device, "--dtype": dtype, "--memory": memory, "--log-format": settings.log_format}
    options = [each for flag, value in where.items() if value is not None for each in (flag, str(value))]
    with _listen(settings) as listener, stop_after_step(), nullcontext() if no_worker else _own_worker(folder, options):
        terminal.print_message(_address(settings, listener.getsockname()[1]))
        uvicorn.Server(config).run(sockets=[listener])
    queue.close()


def _add_token(token_file: Path | None, owner: str) -> None:
    """Add a token to a file, and print it."""
    if token_file is None:
        raise InputError("`new_token` is added to a file: say which, by `token_file`")
    from kineograph.service.tokens import add_token

    print(add_token(expand_user(token_file), owner))
    terminal.print_message(f"{owner}'s token, which is in no file: {token_file} has its hash")


def configure_logs(log_format: str) -> None:
    """Write logs to stderr, warnings of all and what the service does, as lines of text or of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(LOG_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("kineograph.service").setLevel(logging.INFO)


class JsonFormatter(logging.Formatter):
    """Log records as JSON objects, a line each."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        from kineograph.service.jobs import JOB_ID

        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "values", {}),  # of a request
        }
        if isinstance(record.args, tuple) and record.args and JOB_ID.fullmatch(str(record.args[0])):
            values["job"] = record.args[0]  # a worker's messages begin with it
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


def read_settings(
    given: Mapping[str, Any], texts: Sequence[str], folder: Path
) -> tuple[ServeSettings, QueueLimits | None]:
    """Return the settings, and the limits of the queue if any is given. texts: as NAME=VALUE."""
    from dataclasses import asdict, fields

    from pydantic import TypeAdapter, ValidationError

    from kineograph.service.api.settings import ServeSettings
    from kineograph.service.jobs import QueueLimits
    from kineograph.service.queue import JobQueue

    known = {each.name: kind for kind in (ServeSettings, QueueLimits) for each in fields(kind)}
    values: dict[type, dict[str, Any]] = {ServeSettings: {**given}, QueueLimits: {}}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}"
            raise InputError(f"`set` is NAME=VALUE with the name of a setting, not {shown(text)}: {hint}")
        values[known[name]][name] = _read_value(value)
    if values[QueueLimits]:
        queue = JobQueue.open(folder)
        values[QueueLimits] = {**asdict(queue.limits), **values[QueueLimits]}
        queue.close()
    try:
        limits = TypeAdapter(QueueLimits).validate_python(values[QueueLimits]) if values[QueueLimits] else None
        return TypeAdapter(ServeSettings).validate_python(values[ServeSettings]), limits
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
            raise cause from None
        raise InputError(f"`{first['loc'][0]}`: {first['msg']}, not {shown(first['input'])}") from None


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def declare_models(models: Sequence[str]) -> Declaration:
    """Return the options and models that requests may name. models: as MODEL or NAME=MODEL; none for the built-in ones.

    Models of the operator's, and methods of other packages, are described in a process of its own, with torch.
    """
    from kineograph.service.declaration import parse_declaration, read_declaration

    if not models and not find_plugins("methods"):
        return read_declaration()
    sources = name_models(models)
    terminal.print_message(f"describing {', '.join(sources)}")
    named = [f"{name}={source}" for name, source in sources.items()]
    command = [sys.executable, "-m", "kineograph.service.declaration", *named]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 1 and "Traceback" not in done.stderr:
        raise InputError(done.stderr.strip())
    done.check_returncode()
    return parse_declaration(json.loads(done.stdout))


def name_models(models: Sequence[str]) -> dict[str, str]:
    """Return models by name: given as NAME=MODEL, or that of the file, folder or repository."""
    sources = dict[str, str]()
    for each in models:
        name, equals, source = each.partition("=")
        if not equals:
            name, source = Path(each).name.removesuffix(".safetensors").removesuffix(".ckpt"), each
        if name in sources:
            raise InputError(f"two models are named {shown(name)}: name them, as in --model NAME=MODEL")
        path = expand_user(source)
        sources[name] = str(path.resolve()) if is_present(path) else source  # workers may run in other folders
    return sources


@contextmanager
def _listen(settings: ServeSettings) -> Iterator[socket.socket]:
    """Yield a socket at the address of the settings. Raises InputError for one that cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:  # asyncio sets TCP_NODELAY by it
        if os.name == "posix":  # elsewhere it lets two servers have one address
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen()  # those who connect before the server is ready wait
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise InputError(f"{where} cannot be used ({error.strerror}): choose another `host` or `port`") from error
        yield listener


def _address(settings: ServeSettings, port: int) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    text = f"Kineograph answers at http://{host}:{port} (documentation: /, OpenAI's base_url: /v1)"
    if settings.is_loopback:
        text += "; only this machine reaches it: --host 0.0.0.0 with a --token-file opens it to others"
    return text


@contextmanager
def _own_worker(folder: Path, options: Sequence[str]) -> Iterator[None]:
    """Keep a worker running within the block; then it ends after its sampling step."""
    command = [sys.executable, "-m", "kineograph", "worker", str(folder), "--stop-with-stdin", *options]
    ended = threading.Event()
    reader, writer = os.pipe()  # it ends when this process does, however that comes about

    def keep_running() -> None:
        while not ended.is_set():
            status = subprocess.run(command, stdin=reader, check=False).returncode
            if not ended.is_set():
                log.warning("the worker ended with status %d: it is started again in %g s", status, RESTART_SECONDS)
                ended.wait(RESTART_SECONDS)

    thread = threading.Thread(target=keep_running, name="worker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        os.close(writer)
        thread.join()
        os.close(reader)


def worker(
    folder: ServiceFolder = Path("service"),
    device: Device = None,
    dtype: DType = None,
    memory: Memory = None,
    name: Annotated[
        str | None, typer.Option(show_default="host, process and device", help="Name of this worker, unlike others'.")
    ] = None,
    log_format: Annotated[str, typer.Option(help="Lines of the log: plain, or json for an object a line.")] = "plain",
    stop_with_stdin: Annotated[bool, typer.Option("--stop-with-stdin", hidden=True)] = False,
) -> None:
    """Generate the videos of the service's jobs on one device, until it is stopped.

    Ctrl-C and SIGTERM end the sampling step that is running; its job goes back to the queue.
    """
    if stop_with_stdin and hasattr(os, "nice"):
        os.nice(NICE)
    if memory is not None and not memory >= 0:
        raise InputError(f"`memory` is a number of gigabytes from 0, not {memory}")
    check_choice("`log_format`", log_format, ("plain", "json"))
    from kineograph.service.jobs import check_name
    from kineograph.service.loaded_models import LoadedModels
    from kineograph.service.queue import JobQueue
    from kineograph.service.worker import run_worker

    configure_logs(log_format)
    terminal.hide_loading_bars()
    models = LoadedModels.on(device, dtype, None if memory is None else memory * GIGABYTE)
    name = name or f"{socket.gethostname()}:{os.getpid()}:{models.device}"
    check_name("name", name)
    queue = JobQueue.open(expand_user(folder))
    terminal.print_message(f"worker {name} takes jobs from {queue.folder}")
    with stop_after_step() as stop:
        if stop_with_stdin:
            threading.Thread(target=_wait_for_stdin, args=(stop,), daemon=True).start()
        run_worker(queue, models, name, stop)
    queue.close()


def _wait_for_stdin(stop: threading.Event) -> None:
    """Set the event when stdin ends, which the process that started this one holds open."""
    while os.read(0, 1):
        pass
    stop.set()


@contextmanager
def stop_after_step() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set; a second signal ends the program at once."""
    stop = threading.Event()

    def note(number: int, frame: object) -> None:
        if stop.is_set():
            raise SystemExit(128 + number)
        stop.set()
        terminal.print_message("stopping after this step; again to stop at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
