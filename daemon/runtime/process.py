"""Making the process fit for the hot path: its core, its memory, its garbage collector, its descriptors; and
ending it."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import numpy as np

from sigd.daemon.errors import UsageError

log = logging.getLogger(__name__)

_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4
_SPARE_DESCRIPTORS = 64
_DESCRIPTORS_PER_CLIENT = 4
"""The connection, and with shared memory its region and two doorbells."""
_STANDARD_ERROR = 2
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_prctl = ctypes.CDLL(None).prctl
"""Looked up here: little may be done between fork and exec."""


def keep_standard_descriptors() -> None:
    """Open /dev/null for each of descriptors 0 to 2 that is closed.

    Or the next connection would get its number, and the event loop's library ends the process when it closes
    one.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)


def ignore_stray_signals() -> None:
    """Signals that mean nothing to a daemon must not end it in the middle of its answers, which is their
    default."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def pin_to_cpu(cpu: int) -> None:
    """Run on this core only.

    Raises:
        UsageError: there is no such core, or it is not among those this process may use.
    """
    try:
        os.sched_setaffinity(0, {cpu})
    except (OSError, OverflowError, ValueError):
        allowed = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise UsageError(
            f"cpu {cpu} is not one that this process may run on; it may use: {allowed}"
        ) from None


def lock_memory() -> bool:
    """Keep every page resident, now and later. False, with a line in the log, where the limits do not allow
    it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    # With a finite limit the next allocation past it would fail, which is worse than a page fault.
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:
        log.info(
            "memory is not locked: RLIMIT_MEMLOCK is %d KiB; LimitMEMLOCK=infinity in the unit allows it",
            soft // 1024,
        )
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    # What comes later is locked when it is touched, not when it is mapped: mapping 34 MB for a new model, or
    # the stack of the thread that loads it, would hold the loop up for milliseconds.
    if libc.mlockall(_MCL_CURRENT) != 0 or libc.mlockall(_MCL_FUTURE | _MCL_ONFAULT) != 0:
        log.warning("memory is not locked: mlockall: %s", os.strerror(ctypes.get_errno()))
        return False
    return True


def warn_of_realtime_spin(policy: int, runtime: Path = Path("/proc/sys/kernel/sched_rt_runtime_us")) -> None:
    """Say so in the log where a loop that never sleeps has been given real-time priority, `policy`."""
    if policy not in (os.SCHED_FIFO, os.SCHED_RR):
        return
    try:
        runtime_us = int(runtime.read_text())
    except (OSError, ValueError):
        runtime_us = 0
    if runtime_us < 0:
        harm = "with kernel.sched_rt_runtime_us = -1 the kernel's own work on this core never runs"
    else:
        harm = "the kernel may stop such a thread for 50 ms of every second (kernel.sched_rt_runtime_us)"
    log.warning(
        'idle = "spin" at real-time priority: %s. Take "backoff" or "block", or ordinary priority on an'
        " isolated core",
        harm,
    )


def ignore_overflow() -> None:
    """Let NumPy not warn of overflows and NaN in this context: features may be any numbers, and are
    checked."""
    np.seterr(over="ignore", invalid="ignore")


def freeze_garbage() -> None:
    """Take all that exists now out of the collector's sight, and stop it from running.

    Looking at a thousand connections takes it 9 ms, without answers. So nothing that a connection
    or a
    request leaves behind may need it: reference counts free it all, and tests hold every kind of client to
        that.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def allow_descriptors(connections_max: int) -> int:
    """Raise the soft limit of open files to what `connections_max` clients need, as far as the hard limit
    goes.

    Returns how many clients can be served: with a low hard limit fewer, so that one too many is told so,
    which running out of descriptors in the middle of it could not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_PER_CLIENT * connections_max + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            served = max(1, (hard - _SPARE_DESCRIPTORS) // _DESCRIPTORS_PER_CLIENT)
            log.warning(
                "connections_max of %d needs %d open files, the hard limit is %d: raise LimitNOFILE in the"
                " unit;"
                " until then it is %d",
                connections_max,
                wanted,
                hard,
                served,
            )
            return served
    return connections_max


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process; of this one without `pid`. Raises OSError where it may not be read."""
    with open(f"/proc/{'self' if pid is None else pid}/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def die_with_parent() -> None:
    """End this process with the thread that started it, however that ends; may run between fork and exec."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def set_process_name(name: bytes) -> None:
    """What `ps` and `top` call it; at most 15 bytes."""
    _prctl(_PR_SET_NAME, name)


def end_now(exit_code: int) -> NoReturn:
    """End the process without the exit handlers of what it has loaded: a driver's may wait for a device that
    hangs."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
