"""Ending a run in order when it is asked to end."""

import os
import signal
from types import FrameType

import torch

from utils.common.processes import get_world_size, is_main
from utils.distributed import CHECK_EVERY, all_reduce_sum

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 (a wish of the user, not an error)
    """The run was asked to end, and has come to a place where it can."""


class StopSignals:
    """Notes SIGINT (Ctrl-C) and SIGTERM and says so; a second one ends the process at once.

    Use as a context manager around what must not be torn apart.

    Attributes:
        received: the signal, or None so far.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        if is_main():  # not print(): the signal may have come in the middle of one
            text = f"\n{self.received.name}: saving after this iteration; again to end at once\n"
            os.write(2, text.encode())

    def stop_alone(self) -> bool:
        """Whether to stop at once; several processes agree on a place instead."""
        return self.received is not None and get_world_size() == 1

    def stop_together(self, iteration: int, device: torch.device) -> bool:
        """Whether to stop after this iteration, because of a signal in any process.

        On GPUs processes seldom ask each other, since that waits for the device.
        """
        if get_world_size() == 1:
            return self.received is not None
        if device.type == "cuda" and iteration % CHECK_EVERY:
            return False
        received = torch.tensor(float(self.received is not None), device=device)
        return bool(all_reduce_sum(received) > 0)

    @property
    def exit_status(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, as shells have it; 0 if none came."""
        return 128 + self.received if self.received else 0
