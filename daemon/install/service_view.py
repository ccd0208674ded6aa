"""What the daemon of an installed unit sees and may do, read from the unit's files: `sigd serve --check`
checks as that daemon would find things, and not as the user who runs the command."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.install.units import CONFIGURATION, UNITS

_HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))
_YES: Final = ("yes", "true", "on", "1")
PRIORITY_MAX: Final = 99
_TEMPORARY: Final = (Path("/tmp"), Path("/var/tmp"))


@dataclass(frozen=True, slots=True)
class ServiceView:
    """How the daemon of one unit finds the machine.

    Attributes:
        unit: the service's name.
        command: what its ExecStart= runs.
        user: who runs it.
        hides_homes: ProtectHome=.
        hides_tmp: PrivateTmp=.
        writable: where it may write; None where it may write everywhere.
        priority_max: the highest real-time priority that it may give a thread; 0 for none.
        memory: the directory for what is recorded and not on the disk yet; it may not be there now.
        socket, admin_socket: where systemd listens for it, "" where that cannot be told.
    """

    unit: str
    command: str
    user: str
    hides_homes: bool
    hides_tmp: bool
    writable: tuple[Path, ...] | None
    priority_max: int
    memory: Path | None
    socket: str
    admin_socket: str

    def refuse_hidden(self, what: str, path: Path) -> None:
        """
        Raises:
            UsageError: the daemon cannot see the file.
        """
        for hidden, places, setting in (
            (self.hides_homes, _HOMES, "ProtectHome"),
            (self.hides_tmp, _TEMPORARY, "PrivateTmp"),
        ):
            if hidden and any(path.resolve().is_relative_to(place) for place in places):
                raise UsageError(
                    f"{path}: {self.unit} does not see this {what} ({setting}= in the unit), expected it in"
                    f" {CONFIGURATION}, /var/lib/sigd or /srv: move it there, owned by root"
                )

    def refuse_read_only(self, directory: Path) -> None:
        """
        Raises:
            UsageError: the daemon may not write there.
        """
        self.refuse_hidden("directory", directory)
        if self.writable is None or any(directory.resolve().is_relative_to(place) for place in self.writable):
            return
        places = ", ".join(map(str, self.writable)) or "no directory"
        raise UsageError(
            f"{directory}: {self.unit} may write to {places} only: record there, or let it write elsewhere"
            " with"
            f" `systemctl edit {self.unit}` and the lines [Service] and ReadWritePaths={directory}"
        )

    def refuse_priority(self, priority: int) -> None:
        """
        Raises:
            MissingDependency: a lane may not have this real-time priority.
        """
        if priority > self.priority_max:
            raise MissingDependency(
                f"lane_priority {priority}: {self.unit} may use real-time priorities up to"
                f" {self.priority_max}; allow it with `systemctl edit {self.unit}` and the lines [Service],"
                f" LimitRTPRIO={priority} and RestrictRealtime=no, or leave lane_priority out"
            )

    def become_user(self) -> None:
        """Give up root for the daemon's user, for good.

        Raises:
            MissingDependency: there is no such user.
        """
        try:
            entry = pwd.getpwnam(self.user)
        except KeyError:
            raise MissingDependency(
                f"{self.unit} runs as user {self.user}, whom this machine does not have: systemd-sysusers"
            ) from None
        os.initgroups(self.user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)


def view_of(config_file: Path, root: Path = Path("/")) -> ServiceView | None:
    """The view of the service that reads this configuration, None where none is installed below `root`."""
    file = root / config_file.absolute().relative_to("/")
    if file.parent != root / CONFIGURATION.lstrip("/") or file.suffix != ".toml":
        return None
    instance = "" if file.stem == "sigd" else file.stem
    at = f"@{instance}" if instance else ""
    settings = _settings(root, "sigd", "service", instance)
    if settings is None:
        return None

    def last(name: str, default: str = "") -> str:
        return (settings.get(name) or [default])[-1].replace("%i", instance)

    def listens(name: str) -> str:
        return ((_settings(root, name, "socket", instance) or {}).get("ListenStream") or [""])[-1].replace(
            "%i", instance
        )

    words = {name: [word for line in lines for word in line.split()] for name, lines in settings.items()}
    strict = last("ProtectSystem") == "strict"
    writable = [
        *(Path("/var/lib", word.replace("%i", instance)) for word in words.get("StateDirectory", ())),
        *(Path("/run", word.replace("%i", instance)) for word in words.get("RuntimeDirectory", ())),
        *(Path(word.lstrip("+-").replace("%i", instance)) for word in words.get("ReadWritePaths", ())),
    ]
    memory = words.get("RuntimeDirectory", [""])[0].replace("%i", instance)
    return ServiceView(
        unit=f"sigd{at}.service",
        command=last("ExecStart").split(" ")[0],
        user=last("User", "root"),
        hides_homes=last("ProtectHome", "no") not in ("no", "false", "read-only"),
        hides_tmp=last("PrivateTmp", "no") not in ("no", "false"),
        writable=tuple(writable) if strict else None,
        priority_max=0 if last("RestrictRealtime", "no") in _YES else _limit(last("LimitRTPRIO", "0")),
        memory=Path("/run", memory) if memory else None,
        socket=listens("sigd"),
        admin_socket=listens("sigd-admin"),
    )


def _limit(text: str) -> int:
    """The soft one of a unit's limit, such as 5, 5:10 or infinity; 0 for anything else."""
    soft = text.partition(":")[0]
    return PRIORITY_MAX if soft == "infinity" else int(soft) if soft.isdecimal() else 0


def _settings(root: Path, name: str, kind: str, instance: str) -> dict[str, list[str]] | None:
    """All assignments of a unit and its drop-ins, in their order; None where the unit is not installed."""
    units = root / UNITS.lstrip("/")
    template = f"{name}@.{kind}" if instance else f"{name}.{kind}"
    main = units / template
    if not main.exists():
        return None
    folders = [f"{template}.d", *([f"{name}@{instance}.{kind}.d"] if instance else [])]
    drop_ins = sorted(
        (file for folder in folders for file in (units / folder).glob("*.conf")), key=lambda file: file.name
    )
    return _assignments(text for file in (main, *drop_ins) if (text := _read(file)) is not None)


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return None


def _assignments(texts: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        for line in text.splitlines():
            name, equals, value = line.strip().partition("=")
            if not equals or name.startswith(("#", ";")):
                continue
            if value.strip():
                found.setdefault(name.strip(), []).append(value.strip())
            else:
                # An empty assignment takes back those before it.
                found.pop(name.strip(), None)
    return found
