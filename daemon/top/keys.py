"""Waiting for the next look, for a key, or for a signal to leave."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from types import FrameType, TracebackType
from typing import Any, Final, Self

LEAVE: Final = b"qQ\x04"
"""q, and Ctrl-D; Ctrl-C comes as a signal."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Keys:
    """Keys as they are pressed, where standard input is a terminal, and signals.

    For use in a `with` block, which leaves the terminal and the signals as they were. Inside no signal raises
    KeyboardInterrupt: it could come while something else is half done that the terminal would stay in.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._terminal_before: list[Any] = []
        self._signals_before: list[Any] = []
        self._wakeup_before = -1
        self._signalled, self._signals = -1, -1

    def __enter__(self) -> Self:
        self._signalled, self._signals = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup_before = signal.set_wakeup_fd(self._signals)
        self._signals_before = [signal.signal(number, _note) for number in _SIGNALS]
        if self._terminal >= 0:
            self._terminal_before = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal >= 0:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._terminal_before)
        for number, before in zip(_SIGNALS, self._signals_before, strict=True):
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._signalled)
        os.close(self._signals)

    def leave_within(self, until_s: float) -> bool:
        """Wait until `until_s` on the monotonic clock; True, and at once, where the user wants to leave."""
        waiting = [self._signalled, *([self._terminal] if self._terminal >= 0 else [])]
        while True:
            ready = select.select(waiting, [], [], max(until_s - time.monotonic(), 0))[0]
            if self._signalled in ready or (ready and self._pressed()):
                return True
            if not ready:
                return False

    def _pressed(self) -> bool:
        try:
            pressed = os.read(self._terminal, 64)
        except OSError:
            # The terminal is gone.
            return True
        return not pressed or any(key in LEAVE for key in pressed)


def _note(_number: int, _frame: FrameType | None) -> None:
    """What wakes the waiting is the byte that Python writes to the wake-up descriptor."""
