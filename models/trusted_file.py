"""Reading a file that decides what is served: only where root and this process's user alone can change
it.

A model decides what is traded, so the writer of that file decides it. So the
file, and every directory on the way to it, must belong to root or to the user that serves, and no other user
may write to them; a directory with the sticky bit (/tmp) may be written to by all, for no other user can take
another's file away there.

What is looked at is the file that was opened, not whatever has its name by then.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sigd.models.errors import ModelRefused

_LINKS_MAX: Final = 40
"""As many as Linux itself follows."""
SHIPPED: Final = Path(__file__).resolve().parent / "zoo"
"""As trustworthy as the code beside it, which is running already."""
_ACL: Final = "system.posix_acl_access"


class FileNotTrusted(ModelRefused):
    """Another user could change the file, or put another in its place."""


class _Demand:
    """Whether this process insists. A command that serves does, one that only looks at a file does not."""

    def __init__(self) -> None:
        self.made = False


_demand = _Demand()


def demand_trust() -> None:
    """From now on `read_file` refuses what others could have written, in all of this process."""
    _demand.made = True


def trust_is_demanded() -> bool:
    """Whether `demand_trust` was called: a process that reads for this one has to be told."""
    return _demand.made


def read_file(path: Path) -> bytes:
    """The whole file.

    Raises:
        FileNotTrusted: others could change it, and `demand_trust` was called; with the command that fixes it.
        ModelRefused: it is no regular file.
        OSError: it cannot be read.
    """
    # Without O_NONBLOCK the opening of a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise ModelRefused(f"{path}: a pipe, a socket or a device, expected a regular file")
        if _demand.made:
            _check(path, status)
        return file.read()


def _check(path: Path, opened: os.stat_result) -> None:
    if path.resolve().is_relative_to(SHIPPED):
        return
    looked_at = ((directory, directory.lstat()) for directory in directories_of(path))
    for place, status in ((path, opened), *looked_at):
        problem = _problem(place, status)
        if problem is not None:
            raise FileNotTrusted(
                f"{path}: decides what is served, and others can change it: {problem}; or serve with"
                " --allow-insecure-files"
            )
    named = path.stat()
    if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
        raise FileNotTrusted(f"{path}: was replaced while it was opened: try again")


def _problem(path: Path, status: os.stat_result) -> str | None:
    """Which other users can change it and what fixes that; None where none can."""
    mode = stat.S_IMODE(status.st_mode)
    me = os.geteuid()
    if status.st_uid not in (0, me):
        return f"{path} belongs to user {status.st_uid}, expected root or user {me}: chown {me} {path}"
    if stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX:
        return None
    group = mode & stat.S_IWGRP and not _is_own_group(path, status)
    others = mode & stat.S_IWOTH
    if not (group or others):
        return None
    who = ("g" if group else "") + ("o" if others else "")
    return f"{path} has mode {mode:04o} and group {status.st_gid}: chmod {who}-w {path}"


def _is_own_group(path: Path, status: os.stat_result) -> bool:
    """Whether the group is the owner's own, of his name and with no other member, as many systems give to
    each user."""
    try:
        user, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    if group.gr_gid != user.pw_gid or group.gr_name != user.pw_name or set(group.gr_mem) - {user.pw_name}:
        return False
    try:
        # Where there is an ACL, the group's bits bound all its entries.
        os.getxattr(path, _ACL)
    except OSError as error:
        return error.errno in (errno.ENODATA, errno.ENOTSUP)
    return False


def directories_of(path: Path) -> Iterator[Path]:
    """Every directory in which a name is looked up on the way to `path`, links followed, from the root on."""
    left = [*reversed(path.absolute().parts)]
    here = Path(left.pop())
    links = 0
    while left:
        yield here
        part = left.pop()
        step = here.parent if part == os.pardir else here / part
        if not step.is_symlink():
            here = step
            continue
        links += 1
        if links > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = Path(os.readlink(step)).parts
        left.extend(reversed(target))
        if os.path.isabs(target[0]):
            here = Path(left.pop())
