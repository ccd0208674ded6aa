"""Which files `sigd reload --model` said to serve, kept for the next start: a crash must not bring the old
model back.

The file is there only while another file is served than the configuration names. It counts as long as the
configuration names the same file as then: an edit of the configuration decides anew.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from sigd.daemon.runtime.text import as_utf8
from sigd.models.errors import ModelRefused
from sigd.models.trusted_file import read_file

log = logging.getLogger(__name__)

STATE_VARIABLE: Final = "STATE_DIRECTORY"
"""Where the service manager has a place for it; without one it lies beside the socket."""
STARTS_MAX: Final = 3
"""So many starts with the remembered file may end before the daemon is ready; then the configured one is
served."""


class Told(msgspec.Struct, forbid_unknown_fields=True):
    """What a reload said of one model.

    Attributes:
        configured: the file of the configuration at that time, as text for people.
        path: the file to serve, absolute.
        at: when, UTC.
        starts: how often the daemon has begun to open it without getting ready.
    """

    configured: str
    path: str
    at: str
    starts: int = 0


def place_of(socket_path: Path, environ: Mapping[str, str]) -> Path:
    """Where a daemon keeps what it was told."""
    directory = environ.get(STATE_VARIABLE, "").split(":")[0]
    if directory:
        return Path(directory) / "served.json"
    return socket_path.with_name(socket_path.name + ".served")


class RememberedModels:
    """What one daemon was told to serve, by the names of its models. Not for several threads at a time.

    Attributes:
        configured: the file that the configuration names, from `choose` on.
        reverted: models that a reload changed, and that serve the configured file again because the other one
            could not be opened.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._told: dict[str, Told] = {}
        self.configured: dict[str, Path] = {}
        self.reverted: set[str] = set()

    def load(self) -> None:
        """Read what was told. A file that cannot be read is said in the log, and counts for nothing."""
        try:
            self._told = msgspec.json.decode(read_file(self._place), type=dict[str, Told])
        except FileNotFoundError:
            return
        except (OSError, ModelRefused, msgspec.DecodeError) as error:
            log.error(
                "%s: what `sigd reload` said to serve cannot be read, and the configured models are served:"
                " %s",
                self._place,
                error,
            )

    def choose(self, name: str, configured: Path) -> Path:
        """The file to open for a model: the one that a reload said, or else `configured`."""
        self.configured[name] = configured
        told = self._told.get(name)
        if told is None:
            return configured
        if told.configured != as_utf8(configured.absolute()):
            log.warning(
                "model %s: %s is served, for the configuration names it now; at %s `sigd reload` said to"
                " serve %s",
                name,
                configured,
                told.at,
                told.path,
            )
            self._forget(name)
            return configured
        if told.starts >= STARTS_MAX:
            self.revert(name, f"{told.starts} starts with it ended before they were ready")
            return configured
        told.starts += 1
        self._write()
        log.warning(
            "model %s: %s is served, as `sigd reload` said at %s, and not %s of the configuration, which"
            " should"
            " name it too",
            name,
            told.path,
            told.at,
            configured,
        )
        return Path(told.path)

    def revert(self, name: str, reason: str) -> None:
        """Note that the file of a reload cannot be served, and that the configured one is."""
        self.reverted.add(name)
        log.error(
            "model %s: THE OLD MODEL IS SERVED AGAIN, %s of the configuration: %s, which `sigd reload` said"
            " to serve"
            " at %s, cannot be: %s. Serve the right one with: sigd reload --name %s --model FILE",
            name,
            self.configured[name],
            self._told[name].path,
            self._told[name].at,
            reason,
            name,
        )

    def ready(self) -> None:
        """The daemon serves what was chosen."""
        if any(told.starts for name, told in self._told.items() if name not in self.reverted):
            for name, told in self._told.items():
                if name not in self.reverted:
                    told.starts = 0
            self._write()

    def remember(self, name: str, path: Path) -> str:
        """A reload has changed a model to that file; what the next start will do about it, "" where it is
        what the configuration says."""
        self.reverted.discard(name)
        configured = self.configured.get(name)
        if configured is None or path.absolute() == configured.absolute():
            self._forget(name)
            return ""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._told[name] = Told(as_utf8(configured.absolute()), str(path.absolute()), now)
        if (reason := self._write()) is not None:
            return (
                f"NOT remembered ({reason}): a restart serves {configured} again, unless the configuration"
                " names it"
            )
        return (
            f"remembered in {self._place}: a restart serves it too, until the configuration names another"
            " file"
        )

    def as_configured(self, name: str, path: Path) -> bool:
        """Whether a model serves the file that the configuration names."""
        configured = self.configured.get(name)
        return configured is None or path.absolute() == configured.absolute()

    def _forget(self, name: str) -> None:
        if self._told.pop(name, None) is not None:
            self._write()

    def _write(self) -> str | None:
        """Keep it; why it could not be kept."""
        aside = self._place.with_name(self._place.name + ".new")
        try:
            if not self._told:
                self._place.unlink(missing_ok=True)
                return None
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(self._told)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._place)
        except OSError as error:
            log.error("%s: what is served cannot be remembered: %s", self._place, error.strerror)
            return f"{self._place}: {error.strerror}"
        return None
