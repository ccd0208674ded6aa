"""The environments that the alternatives are installed in: virtual ones of their own, from locks, in the
cache beside the native programs. Nothing of them is imported here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sigd.bench.errors import MissingDependency, PeerFailed
from sigd.bench.native.build import cache_folder

_FOLDER: Final = Path(__file__).parent
LOCKS: Final = {"servers": _FOLDER / "locks" / "servers.lock"}
"""Environments by name: packages that want different versions of another get one of their own."""
_INSTALL_TIMEOUT_S: Final = 1800

Say = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """One of the virtual environments.

    Attributes:
        name: one of LOCKS.
        folder: where it is, or would be.
    """

    name: str
    folder: Path

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    @property
    def ready(self) -> bool:
        """Whether all of the lock is installed."""
        return (self.folder / ".ready").is_file()

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    def require(self) -> None:
        """
        Raises:
            MissingDependency: it is not installed.
        """
        if not self.ready:
            raise MissingDependency("not installed: run sigd bench compare --prepare")

    def versions(self, *names: str) -> dict[str, str]:
        """Versions of installed packages, by name; what is not there is left out."""
        found = {}
        for name in names:
            prefix = name.replace("-", "_").lower()
            for info in self.packages.glob("*.dist-info"):
                package, _, version = info.name.removesuffix(".dist-info").partition("-")
                if package.lower() == prefix:
                    found[name] = version
        return found


def environment(name: str) -> Environment:
    """Where the environment of that lock is; the lock, the interpreter and nothing else decide."""
    seen = hashlib.sha256(LOCKS[name].read_bytes() + sys.version.encode()).hexdigest()[:16]
    return Environment(name, cache_folder() / "alternatives" / f"{name}-{seen}")


def prepare(say: Say) -> None:
    """Make the environments that are not there.

    Raises:
        MissingDependency: the cache cannot be written to.
        PeerFailed: pip could not install one; the message has its words.
    """
    for name in LOCKS:
        made = environment(name)
        if made.ready:
            say(f"{name}: ready in {made.folder}")
            continue
        say(f"{name}: installing {LOCKS[name].name} into {made.folder}; this takes minutes")
        shutil.rmtree(made.folder, ignore_errors=True)
        try:
            made.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MissingDependency(
                f"{made.folder.parent} cannot be made: {error.strerror}; name a folder that you can write to"
                " in SIGD_CACHE"
            ) from error
        run_or_fail([sys.executable, "-m", "venv", str(made.folder)])
        run_or_fail(
            [
                *(made.python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"),
                *("--require-hashes", "-r", str(LOCKS[name])),
            ]
        )
        (made.folder / ".ready").touch()


def run_or_fail(command: list[str]) -> None:
    """Run a command that says nothing.

    Raises:
        PeerFailed: it failed; the message has its words.
    """
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False, env=clean
    )
    if done.returncode:
        raise PeerFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:].strip()}")
