"""Ending a run in order when it is asked to end."""

import contextlib
import os
import signal
from types import FrameType

import torch

from utils.common.processes import get_world_size, is_main
from utils.distributed import CHECK_EVERY, all_reduce_sum

# SIGHUP: the terminal or the SSH session was closed. Windows has none.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stopped(Exception):  # noqa: N818 (a wish of the user, not an error)
    """The run was asked to end, and has come to a place where it can."""


class StopSignals:
    """Notes SIGINT (Ctrl-C), SIGTERM and SIGHUP and says so; a second one ends the process at once.

    What is ignored (SIGHUP under nohup) stays so. Use as a context manager around what must not be
    torn apart; `received` is the signal, or None so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
        if is_main():  # not print(): the signal may have come in the middle of one
            text = f"\n{self.received.name}: saving after this iteration; again to end at once\n"
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, text.encode())

    def stop_together(self, number: int) -> bool:
        """Whether to stop before this iteration or batch, because of a signal in any process.

        All processes ask at the same numbers. On GPUs they seldom do, since that waits for them.
        """
        if get_world_size() == 1:
            return self.received is not None
        if self.device.type == "cuda" and number % CHECK_EVERY:
            return False
        received = torch.tensor(float(self.received is not None), device=self.device)
        return bool(all_reduce_sum(received) > 0)

    @property
    def exit_status(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP, as shells have it; 0 if none came."""
        return 128 + self.received if self.received else 0
