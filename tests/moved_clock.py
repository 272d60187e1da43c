"""A clock that tests move, in the place of the module `time`."""

from dataclasses import dataclass


@dataclass
class MovedClock:
    """Both clocks of a host, in seconds."""

    wall: float = 1_800_000_000.0
    uptime: float = 1000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.uptime

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds
