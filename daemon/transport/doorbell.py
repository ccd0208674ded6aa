"""Ringing and silencing an eventfd that a client holds too, without ever waiting.

A process that is passed a descriptor shares its open file, flags included: a client may take O_NONBLOCK off a
doorbell behind the daemon's back, fill its counter up, and `write()` would wait for ever; or empty it, and
`read()` would. No check before the call helps, for the client may act in between. So neither call is made:

- A bell is rung by the kernel itself, as the notice of a finished asynchronous read (Linux AIO,
  IOCB_FLAG_RESFD) of no bytes of /dev/null. The kernel adds to the counter, or leaves it full; there is no
  way for it to wait.
- A bell is silenced with RWF_NOWAIT, which holds for the one call, whatever the flags say.

That costs 0.7 us a ring, a plain write() 0.2 us; a client that has to be woken takes tens of microseconds to
be.
"""

from __future__ import annotations

import ctypes
import os
import struct
from types import TracebackType
from typing import Final, Self

from sigd.daemon.errors import MissingDependency

_EVENTS_MAX: Final = 64
"""Rings whose completions may lie unread in the kernel; then they are thrown away together."""
IO_SETUP, IO_DESTROY, IO_GETEVENTS, IO_SUBMIT = 206, 207, 208, 209
"""System calls by their numbers on x86-64, the only machine on which there are rings (wire.ring)."""
_PREAD: Final = 0
_RESFD: Final = 1
_IOCB: Final = struct.Struct("<QIiHhIQQqQII")
"""struct iocb of linux/aio_abi.h: data, key, rw_flags, lio_opcode, reqprio, fildes, buf, nbytes, offset,
reserved2, flags, resfd."""
_EVENT_BYTES: Final = 32


class BellRinger:
    """Rings bells; for use in a `with` block or until `close()`."""

    def __init__(self) -> None:
        """
        Raises:
            MissingDependency: the kernel does not offer asynchronous I/O to this process.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._context = ctypes.c_ulong(0)
        if self._libc.syscall(IO_SETUP, _EVENTS_MAX, ctypes.byref(self._context)) != 0:
            raise MissingDependency(
                f"the kernel gives no asynchronous I/O (io_setup: {os.strerror(ctypes.get_errno())}), which"
                " doorbells"
                " need; a service may lack the system calls of @aio, or fs.aio-max-nr is used up"
            )
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._nothing = ctypes.create_string_buffer(1)
        self._events = ctypes.create_string_buffer(_EVENT_BYTES * _EVENTS_MAX)
        self._iocb = ctypes.create_string_buffer(_IOCB.size)
        self._iocbs = (ctypes.c_void_p * 1)(ctypes.addressof(self._iocb))
        self._unread = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ring(self, bell: int) -> None:
        """Add 1 to the counter of the eventfd `bell`; nothing where it is full.

        Raises:
            OSError: the kernel did not take it.
        """
        if self._unread == _EVENTS_MAX:
            self._forget_events()
        buffer = ctypes.addressof(self._nothing)
        _IOCB.pack_into(self._iocb, 0, 0, 0, 0, _PREAD, 0, self._null, buffer, 0, 0, 0, _RESFD, bell)
        if self._libc.syscall(IO_SUBMIT, self._context, 1, self._iocbs) != 1:
            raise OSError(ctypes.get_errno(), f"io_submit: {os.strerror(ctypes.get_errno())}")
        self._unread += 1

    def _forget_events(self) -> None:
        """Reads of /dev/null are finished when they are submitted, so all of them are there."""
        self._libc.syscall(IO_GETEVENTS, self._context, 0, _EVENTS_MAX, self._events, None)
        self._unread = 0

    def close(self) -> None:
        """Ring no more."""
        if self._null >= 0:
            self._libc.syscall(IO_DESTROY, self._context)
            os.close(self._null)
            self._null = -1


def silence(bell: int, counter: bytearray) -> None:
    """Set the eventfd `bell` back to 0, whatever its flags are. `counter`: 8 bytes, overwritten."""
    try:
        os.preadv(bell, [counter], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        # Its other holder was first.
        pass
