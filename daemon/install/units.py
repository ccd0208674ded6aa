"""The unit files for an installation: which there are, where they go, and what of them depends on the
installation.

They lie in the package as they stand in systemd/, valid for /opt/sigd and the user sigd. What differs is
exchanged line by line; a line that is expected and missing is an error, so that no change to the files goes
past this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from sigd.daemon.errors import UsageError

UNITS: Final = "/etc/systemd/system"
CONFIGURATION: Final = "/etc/sigd"

_COMMAND: Final = "/opt/sigd/bin/sigd"
_INSTANCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}")


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be installed.

    Attributes:
        command: the `sigd` that the units start, an absolute path.
        user: who runs it.
        group: the user's, whose members may connect.
        instance: "" is the one daemon sigd.service, else one of several, sigd@NAME.service.
        realtime_cpu: the core of realtime.conf; None is without it.
        gpu: with gpu.conf.
        metrics: with metrics.conf.
    """

    command: str = _COMMAND
    user: str = "sigd"
    group: str = "sigd"
    instance: str = ""
    realtime_cpu: int | None = None
    gpu: bool = False
    metrics: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            UsageError: a name or path that no unit can hold.
        """
        if not re.fullmatch(r"/[^\s%\"'\\$]+", self.command):
            raise UsageError(
                f"{self.command}: a unit cannot start it from there: no blanks, quotes, %, $ or \\"
            )
        for name in (self.user, self.group):
            if not _USER.fullmatch(name):
                raise UsageError(f"{name!r} is no name of a system user: small letters, digits, _ and -")
        if self.instance and (not _INSTANCE.fullmatch(self.instance) or self.instance == "sigd"):
            raise UsageError(
                f"{self.instance!r} is no name of an instance: 1 to 48 letters, digits, _, . and -, and not"
                " sigd"
            )

    @property
    def service(self) -> str:
        """The unit that is started and stopped."""
        return f"sigd@{self.instance}.service" if self.instance else "sigd.service"

    @property
    def sockets(self) -> tuple[str, str]:
        """The units of the sockets: stopping the first stops all."""
        at = f"@{self.instance}" if self.instance else ""
        return f"sigd{at}.socket", f"sigd-admin{at}.socket"

    @property
    def socket_path(self) -> str:
        """Where clients connect."""
        return f"/run/sigd/{self.instance or 'sigd'}.sock"


@dataclass(frozen=True, slots=True)
class File:
    """One file to install.

    Attributes:
        path: absolute.
        source: its name in systemd/.
        configuration: the user's own from the moment it is there: never overwritten.
        shared: other daemons on this machine use it too.
    """

    path: str
    content: str
    source: str
    configuration: bool = False
    shared: bool = False


def files(target: Target) -> list[File]:
    """What `target` needs, in the order in which it is written."""
    template = bool(target.instance)
    at = "@" if template else ""
    found = [
        File("/etc/sysusers.d/sigd.conf", _sysusers(target), "sigd.sysusers", shared=True),
        File("/etc/tmpfiles.d/sigd.conf", _tmpfiles(target), "sigd.tmpfiles", shared=True),
    ]
    for name in (f"sigd{at}.service", f"sigd{at}.socket", f"sigd-admin{at}.socket"):
        found.append(File(f"{UNITS}/{name}", _unit(name, target), name, shared=template))
    dropins = f"{UNITS}/{target.service}.d"
    if target.realtime_cpu is not None:
        cpu = f"CPUAffinity={target.realtime_cpu}"
        content = _exchange(_dropin("realtime.conf", target), r"^CPUAffinity=.*$", cpu)
        found.append(File(f"{dropins}/realtime.conf", content, "realtime.conf"))
    for name, wanted in (("gpu.conf", target.gpu), ("metrics.conf", target.metrics)):
        if wanted:
            found.append(File(f"{dropins}/{name}", _dropin(name, target), name))
    configuration = f"{CONFIGURATION}/{target.instance or 'sigd'}.toml"
    found.append(File(configuration, _configuration(target), "sigd.toml", configuration=True))
    return found


def read(name: str) -> str:
    """A file of systemd/, as it lies in the package."""
    return resources.files("sigd").joinpath("systemd", name).read_text("utf-8")


def _unit(name: str, target: Target) -> str:
    text = read(name)
    if name.endswith(".service"):
        text = _exchange(text, rf"(?<==){re.escape(_COMMAND)}(?= )", target.command)
        text = _exchange(text, "^User=sigd$", f"User={target.user}")
        return _exchange(text, "^Group=sigd$", f"Group={target.group}")
    text = _exchange(text, "^SocketUser=sigd$", f"SocketUser={target.user}")
    return _exchange(text, "^SocketGroup=sigd$", f"SocketGroup={target.group}")


def _sysusers(target: Target) -> str:
    return _exchange(read("sigd.sysusers"), "^u sigd ", f"u {target.user} ")


def _tmpfiles(target: Target) -> str:
    return _exchange(read("sigd.tmpfiles"), " root sigd -$", f" root {target.group} -")


def _dropin(name: str, target: Target) -> str:
    """The path in its first line is where it goes."""
    return _exchange(read(name), rf"{UNITS}/sigd\.service\.d/", f"{UNITS}/{target.service}.d/")


def _configuration(target: Target) -> str:
    text = read("sigd.toml")
    if not target.instance:
        return text
    text = _exchange(text, re.escape("/etc/sigd/sigd.toml"), f"/etc/sigd/{target.instance}.toml")
    # An instance may write to its own part of the state directory alone.
    text = _exchange(text, "/var/lib/sigd/", f"/var/lib/sigd/{target.instance}/")
    return _exchange(text, r"sigd\.socket and sigd-admin\.socket", " and ".join(target.sockets))


def _exchange(text: str, pattern: str, replacement: str) -> str:
    changed, count = re.subn(pattern, lambda _: replacement, text, flags=re.MULTILINE)
    if not count:
        raise AssertionError(f"nothing in the packaged unit matches {pattern}")
    return changed


def hidden_part(paths: list[Path]) -> Path | None:
    """The first of `paths` that a hardened service of another user cannot reach: below a home (ProtectHome=),
    or in a directory that only its owner may enter."""
    homes = (Path("/home"), Path("/root"), Path("/run/user"))
    for path in paths:
        for step in (path, *path.parents):
            if step in homes or (step.is_dir() and not step.stat().st_mode & 0o001):
                return path
    return None
