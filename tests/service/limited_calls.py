"""Functions that tests run in a process with limits, which imports them by this module's name."""

import os
import signal
import time


def wait(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def take(size: int) -> int:
    return len(bytearray(size))


def die(status: int) -> None:
    os._exit(status) if status else os.abort()


def interrupt() -> bool:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    return True
