"""Writing the unit files to a machine, and taking them away, without ever losing what was changed by hand in
them.

The first line of each file says what the rest was when it was written. A file whose rest is still that may be
replaced or removed; one that was changed, or that this did not write, is left alone unless it is forced.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Final

from sigd import __version__
from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.install.units import CONFIGURATION, UNITS, File, Target

Run = Callable[[Sequence[str]], None]
"""Runs a command; raises where it fails."""

_MARK: Final = re.compile(r"# written by sigd install-service \S+ sha256=([0-9a-f]{64})\n")
_OWNERS: Final = {
    "sigd.sysusers": re.compile(r"^u (\S+) ", re.MULTILINE),
    "sigd.tmpfiles": re.compile(r"^d /run/sigd \S+ root (\S+) ", re.MULTILINE),
}
"""Who runs all daemons of a machine, and the group of those that may connect, as the shared files say it."""


class Found(Enum):
    """What stands where a file is to go."""

    NOTHING = "nothing"
    SAME = "the same"
    WRITTEN = "ours, of another version or with other options"
    CHANGED = "changed"


def marked(content: str) -> str:
    """`content` under the line that tells whether it was changed."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"# written by sigd install-service {__version__} sha256={digest}\n{content}"


def look(path: Path, content: str | None = None) -> Found:
    """What stands at `path`, where `content` is to go.

    Raises:
        MissingDependency: it cannot be read.
    """
    try:
        text = path.read_text("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return Found.NOTHING
    except OSError as error:
        raise _cannot(path, "read", error) from None
    if content is not None and text == marked(content):
        return Found.SAME
    mark = _MARK.match(text)
    rest = text[mark.end() :].encode("utf-8", "surrogateescape") if mark else b""
    return Found.WRITTEN if mark and hashlib.sha256(rest).hexdigest() == mark[1] else Found.CHANGED


def place_of(file: File, root: Path) -> Path:
    """Where it goes below `root`."""
    return root / file.path.lstrip("/")


def refuse_changed(files: Sequence[File], root: Path) -> None:
    """
    Raises:
        UsageError: one of `files` was changed, or comes from elsewhere; the configuration may.
    """
    changed = [
        file.path
        for file in files
        if not file.configuration and look(place_of(file, root), file.content) is Found.CHANGED
    ]
    if changed:
        raise UsageError(
            f"changed since it was written, or not written by sigd: {', '.join(changed)}. Nothing was done."
            " Keep"
            " changes in a drop-in (systemctl edit), or give --force, which does away with them"
        )


class Action(Enum):
    """What an installation does with a file."""

    UNCHANGED = "unchanged"
    KEPT = "kept"
    WROTE = "wrote"
    REPLACED = "replaced"


def plan(files: Sequence[File], root: Path, *, force: bool) -> list[tuple[File, Action]]:
    """What `install` would do with each file.

    Raises:
        UsageError: one was changed by hand, and `force` is not given.
        MissingDependency: one cannot be read.
    """
    if not force:
        refuse_changed(files, root)
    return [(file, _action(file, look(place_of(file, root), file.content))) for file in files]


def _action(file: File, found: Found) -> Action:
    if found is Found.SAME:
        return Action.UNCHANGED
    if file.configuration and found is Found.CHANGED:
        return Action.KEPT
    return Action.WROTE if found is Found.NOTHING else Action.REPLACED


def install(files: Sequence[File], root: Path, *, force: bool, say: Callable[[str], None]) -> None:
    """Write `files` below `root`; nothing at all where one of them would lose a change.

    Raises:
        UsageError: one was changed by hand.
        MissingDependency: one cannot be written.
    """
    for file, action in plan(files, root, force=force):
        path = place_of(file, root)
        if action in (Action.WROTE, Action.REPLACED):
            _write(path, marked(file.content))
        say(f"{action.value:10} {path}{' (yours)' if action is Action.KEPT else ''}")


def uninstall(files: Sequence[File], root: Path, *, force: bool, say: Callable[[str], None]) -> None:
    """Remove those of `files` that are there below `root`; nothing at all where one of them would lose a
    change.

    Raises:
        UsageError: one was changed by hand.
        MissingDependency: one cannot be removed.
    """
    if not force:
        refuse_changed(files, root)
    found = {file: look(place_of(file, root)) for file in files}
    for file in files:
        path = place_of(file, root)
        if found[file] is Found.CHANGED and file.configuration:
            say(f"kept       {path} (yours)")
        elif found[file] is not Found.NOTHING:
            _remove(path)
            say(f"removed    {path}")


def of_others(target: Target, root: Path) -> bool:
    """Whether other daemons than `target` are installed below `root`, which use the shared files too."""
    own = target.instance or "sigd"
    names = {path.stem for path in (root / CONFIGURATION.lstrip("/")).glob("*.toml")}
    if (root / UNITS.lstrip("/") / "sigd.service").exists():
        names.add("sigd")
    return bool(names - {own})


def refuse_another_user(target: Target, files: Sequence[File], root: Path) -> None:
    """Daemons share their units and /run/sigd: a second one for another user would take them from the first.

    Raises:
        UsageError: others are installed below `root`, for another user or group than the target's.
    """
    if not of_others(target, root):
        return
    for file in files:
        pattern = _OWNERS.get(file.source)
        place = place_of(file, root)
        if pattern is None or look(place) is Found.NOTHING:
            continue
        there, wanted = (pattern.search(text) for text in (place.read_text("utf-8"), file.content))
        if there is not None and wanted is not None and there[1] != wanted[1]:
            raise UsageError(
                f"the daemons that are installed here run for {there[1]}, says {place}, and share their units"
                " and /run/sigd:"
                f" one for {wanted[1]} would take those away from them. Give it the same --user, or uninstall"
                " the others and"
                f" remove their configurations from {CONFIGURATION}"
            )


def start_commands(target: Target) -> list[list[str]]:
    """What makes the written files a running daemon. Two steps, because `enable --now` of systemd 254 ends
    with 0 where the start has failed."""
    return [
        ["systemd-sysusers", "/etc/sysusers.d/sigd.conf"],
        ["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/sigd.conf"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", target.service],
        ["systemctl", "start", target.service],
    ]


def stop_commands(target: Target) -> list[list[str]]:
    """What ends it, before the files go."""
    return [["systemctl", "disable", "--now", *target.sockets, target.service]]


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, "utf-8", "surrogateescape")
        beside.chmod(0o644)
        os.replace(beside, path)
    except OSError as error:
        raise _cannot(path, "written", error) from None


def _remove(path: Path) -> None:
    try:
        path.unlink()
        if (
            path.parent.suffix == ".d"
            and path.parent.name.startswith("sigd")
            and not any(path.parent.iterdir())
        ):
            path.parent.rmdir()
    except OSError as error:
        raise _cannot(path, "removed", error) from None


def _cannot(path: Path, what: str, error: OSError) -> MissingDependency:
    how = (
        ": run it as root, or look at the files with --dry-run" if isinstance(error, PermissionError) else ""
    )
    return MissingDependency(f"{path} cannot be {what}: {error.strerror}{how}")
