"""Prepare a small Debian or Ubuntu in which systemd runs as on an operator's machine, and run a command with
it.

    python tests/systemd/prepare.py                                   prepare, and say where
    python tests/systemd/prepare.py -- pytest -m systemd              prepare, then run a command
    python tests/systemd/prepare.py --suite noble -- pytest ...       another systemd: bookworm has 252, noble (Ubuntu
                                                                      24.04) 255, trixie 257

The root goes into one folder under $XDG_CACHE_HOME/sigd, named by a digest of what it is made from, and is
made once: debootstrap's smallest system with systemd and Python, and in /opt/sigd a virtual environment with
what requirements/base.lock names. Sigd itself is installed anew by each run of the tests. It takes root,
debootstrap, systemd-nspawn, PyPI and a mirror the first time (about two minutes). Exit code 3: one of those
is missing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
LOCK: Final = ROOT / "requirements" / "base.lock"
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "ca-certificates"),
    *("procps", "util-linux", "openssh-server", "openssh-client"),
)
UBUNTU: Final = ("noble",)
UBUNTU_KEYRING: Final = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
PYTHON: Final = "/opt/sigd/bin/python"
PROGRAMS: Final = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
"""What is needed, and the Debian package that has it."""


class Missing(Exception):
    """The machine lacks something; the message says what, and how to get it."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="example: prepare.py -- pytest -m systemd"
    )
    parser.add_argument("--suite", default=os.environ.get("SIGD_SYSTEMD_SUITE", "bookworm"))
    parser.add_argument("command", nargs="*", help="what to run then, with SIGD_SYSTEMD_ROOT set")
    arguments = parser.parse_args()
    try:
        root = prepare(arguments.suite)
    except Missing as error:
        print(f"systemd: {error}", file=sys.stderr)
        sys.exit(3)
    command = arguments.command
    if not command:
        print(f"ready in {root}; run a command with it: python {sys.argv[0]} -- COMMAND")
        return
    os.execvpe(command[0], command, {**os.environ, "SIGD_SYSTEMD_ROOT": str(root)})


def prepare(suite: str) -> Path:
    """Make the root if it is not there yet; its path."""
    if os.geteuid() != 0:
        raise Missing("a machine to boot is made and run by root only: sudo make test-systemd")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise Missing(f"there is no {program}: apt-get install {package}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sigd"
    root = cache / f"systemd-{suite}-{_digest(suite)}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "systemd.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=cache) as made:
                inside = Path(made) / "root"
                _debootstrap(inside, suite)
                _install_dependencies(inside)
                inside.rename(root)
    return root


def build_wheel(folder: Path) -> Path:
    """Build the wheel of these sources into `folder`, which is empty.

    Raises:
        Missing: it cannot be built.
    """
    _run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "wheel", "--no-deps"),
        *("--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)),
    )
    (wheel,) = folder.iterdir()
    return wheel


def install_sigd(root: Path, wheel: Path) -> None:
    """Install the wheel there, as an operator would.

    Raises:
        Missing: it cannot be installed.
    """
    pip(
        root,
        *("install", "--no-deps", "--force-reinstall", f"/mnt/{wheel.name}"),
        binds=[f"--bind-ro={wheel}:/mnt/{wheel.name}"],
    )


def download_wheels(root: Path) -> Path:
    """The wheels that requirements/base.lock names, for the root's Python, in a folder beside it; fetched
    once.

    Raises:
        Missing: one cannot be fetched.
    """
    folder = root.with_name(f"{root.name}-wheels")
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
            fetched = Path(made) / "wheels"
            fetched.mkdir()
            pip(
                root,
                *("download", "--require-hashes", "-r", "/mnt/base.lock", "--dest", "/mnt/wheels"),
                binds=[f"--bind-ro={LOCK}:/mnt/base.lock", f"--bind={fetched}:/mnt/wheels"],
            )
            fetched.rename(folder)
    return folder


def pip(root: Path, *arguments: str, binds: Sequence[str] = ()) -> None:
    """Run the root's own pip in it, with this machine's network and settings of pip."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    passed["PIP_ROOT_USER_ACTION"] = "ignore"
    settings = [f"--setenv={name}={value}" for name, value in passed.items()]
    shared = [
        f"--bind-ro={path}"
        for path in ("/etc/ssl/certs", *passed.get("PIP_FIND_LINKS", "").split())
        if Path(path).is_dir()
    ]
    _run(
        *("systemd-nspawn", "--quiet", "--register=no", *keep_unit(), "--pipe", f"--directory={root}"),
        *(*settings, *shared, *binds),
        *(PYTHON, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments),
    )


def keep_unit() -> list[str]:
    """Without a systemd that runs this machine there is none to ask for a unit."""
    return [] if Path("/run/systemd/system").exists() else ["--keep-unit"]


def _digest(suite: str) -> str:
    digest = hashlib.sha256(LOCK.read_bytes())
    digest.update(" ".join((suite, *PACKAGES)).encode())
    return digest.hexdigest()[:16]


def _debootstrap(root: Path, suite: str) -> None:
    started = time.monotonic()
    print(f"systemd: the smallest {suite} with systemd and Python ...", file=sys.stderr, flush=True)
    options = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
    if suite in UBUNTU:
        mirror, script = os.environ.get("SIGD_UBUNTU_MIRROR", "https://archive.ubuntu.com/ubuntu"), ["gutsy"]
        # A Debian has no key of Ubuntu's: then it is the mirror's certificate that is trusted.
        known = UBUNTU_KEYRING.exists()
        options += [
            "--components=main,universe",
            f"--keyring={UBUNTU_KEYRING}" if known else "--no-check-gpg",
        ]
    else:
        mirror, script = os.environ.get("SIGD_DEBIAN_MIRROR", "http://deb.debian.org/debian"), []
    _run("debootstrap", *options, suite, str(root), mirror, *script)
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    print(f"systemd: {suite}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _install_dependencies(root: Path) -> None:
    started = time.monotonic()
    print("systemd: what requirements/base.lock names ...", file=sys.stderr, flush=True)
    _run("chroot", str(root), "python3", "-m", "venv", "/opt/sigd")
    pip(
        root,
        "install",
        "--require-hashes",
        "-r",
        "/mnt/base.lock",
        binds=[f"--bind-ro={LOCK}:/mnt/base.lock"],
    )
    print(f"systemd: packages: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise Missing(f"this failed with code {done.returncode}: {' '.join(command)}\n{tail}")


if __name__ == "__main__":
    main()
