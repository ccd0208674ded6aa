"""Prepare what the tests of the GPU path need on a machine without a GPU, and run a command with it.

    python tests/simcuda/prepare.py                                  prepare, and say where
    python tests/simcuda/prepare.py -- pytest tests/simcuda          prepare, then run a command in it

Everything goes into one folder under $XDG_CACHE_HOME/sigd, named by a digest of what it is made from, and is
made once:

    site/              PyCUDA, compiled here, and cuda-bindings, as pip installs them; NVIDIA's headers
    driver-DIGEST/     libcuda.so.1, compiled from tests/simcuda/driver
    bindings/VERSION/  TensorRT's Python bindings, with empty libraries in place of TensorRT: to be read only

No CUDA toolkit, no driver and no GPU is used, and none that this machine may have. It takes a C and a C++
compiler, the project's development environment, and PyPI the first time (about two minutes, nearly all of it
PyCUDA's compilation).
Exit code 3: one of those is missing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
DRIVER: Final = HERE / "driver"
LOCKS: Final = HERE / "locks"
BINDINGS: Final = {
    "tensorrt-10.13.3.9": ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"),
    "tensorrt-10.16.1.11": ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"),
    "tensorrt-11.4.0.106": ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"),
    "tensorrt-rtx-1.7.1.116": ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
}
"""Versions of the bindings that are read, and the libraries that each of them is linked with."""
_C_FLAGS: Final = (
    "-O2",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-deprecated-declarations",
    "-fPIC",
    "-shared",
)
_COMPILED: Final = "pycuda"
"""The one package that comes as source."""


class Missing(Exception):
    """The machine lacks something; the message says what, and how to get it."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="example: prepare.py -- pytest tests/simcuda -q"
    )
    parser.add_argument("command", nargs="*", help="what to run in the environment")
    command = parser.parse_args().command
    try:
        home = prepare()
    except Missing as error:
        print(f"simcuda: {error}", file=sys.stderr)
        sys.exit(3)
    if not command:
        print(f"ready in {home}; run a command in it with: python {sys.argv[0]} -- COMMAND")
        return
    os.execvpe(command[0], command, {**os.environ, **environment(home)})


def prepare() -> Path:
    """Make what is not there yet; the folder."""
    home = _home()
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        site = home / "site"
        _once(site, "headers, cuda-bindings and the like from PyPI", _install_wheels)
        driver = driver_folder(home)
        _once(driver, "the simulated driver", lambda folder: _compile_driver(folder, site))
        _once(
            site / "pycuda",
            "PyCUDA, compiled (a minute or two)",
            lambda folder: _install_pycuda(folder, site, driver),
        )
        for name, libraries in BINDINGS.items():
            _once(
                home / "bindings" / name,
                f"the bindings of {name}",
                lambda folder, name=name, libraries=libraries: _install_bindings(folder, name, libraries),  # type: ignore[misc]
            )
    return home


def environment(home: Path) -> dict[str, str]:
    """The variables in which the tests run."""
    before = {name: os.environ.get(name, "") for name in ("LD_LIBRARY_PATH", "PYTHONPATH")}
    return {
        "SIMCUDA_HOME": str(home),
        "LD_LIBRARY_PATH": _joined(driver_folder(home), before["LD_LIBRARY_PATH"]),
        "PYTHONPATH": _joined(HERE / "standin", home / "site", before["PYTHONPATH"]),
    }


def driver_folder(home: Path) -> Path:
    """Where the driver of the present sources is or will be."""
    return home / f"driver-{_digest(sorted(DRIVER.iterdir()))}"


def _home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        cache
        / "sigd"
        / f"simcuda-{_digest(sorted(LOCKS.glob('*.lock')), sys.version, sysconfig.get_platform())}"
    )


def _digest(files: Sequence[Path], *texts: str) -> str:
    digest = hashlib.sha256()
    for content in (*(file.read_bytes() for file in files), *(text.encode() for text in texts)):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _joined(*paths: Path | str) -> str:
    return os.pathsep.join(str(path) for path in paths if str(path))


def _once(folder: Path, what: str, make: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print(f"simcuda: {what} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
        inside = Path(made) / folder.name
        inside.mkdir()
        make(inside)
        inside.rename(folder)
    print(f"simcuda: {what}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


# -- the driver ------------------------------------------------------------------------------------------


def _compile_driver(folder: Path, site: Path) -> None:
    library = folder / "libcuda.so.1"
    _compile(
        [
            *_C_FLAGS,
            "-fvisibility=hidden",
            "-isystem",
            str(_headers(site)),
            *map(str, sorted(DRIVER.glob("*.c"))),
        ],
        library,
    )
    (folder / "libcuda.so").symlink_to(library.name)


def _headers(site: Path) -> Path:
    return site / "nvidia" / "cu13" / "include"


def _compile(arguments: Sequence[str], library: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Missing("there is no C compiler (cc): apt-get install gcc g++, or set CC")
    _run([compiler, *arguments, f"-Wl,-soname,{library.name}", "-o", str(library), "-lpthread"])


# -- packages --------------------------------------------------------------------------------------------


def _install_wheels(folder: Path) -> None:
    with _requirements(LOCKS / "simcuda.lock", lambda name: name != _COMPILED) as wheels:
        _pip(folder, "--only-binary=:all:", "--requirement", str(wheels))


def _install_pycuda(folder: Path, site: Path, driver: Path) -> None:
    """PyCUDA against our driver and NVIDIA's headers. It is configured by a file in the home folder."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise Missing(
            "there is no C++ compiler (c++), which PyCUDA is compiled with: apt-get install g++, or set CXX"
        )
    with (
        tempfile.TemporaryDirectory() as home,
        _requirements(LOCKS / "simcuda.lock", lambda name: name == _COMPILED) as source,
    ):
        settings = {
            "CUDA_ROOT": str(_headers(site).parent),
            "CUDA_ENABLE_CURAND": False,
            "CUDADRV_LIB_DIR": [str(driver)],
        }
        lines = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        (Path(home) / ".aksetup-defaults.py").write_text(lines)
        installed = Path(home) / "installed"
        _pip(
            installed,
            *("--no-binary", _COMPILED, "--no-build-isolation", "--requirement", str(source)),
            variables={"HOME": home, **_pip_settings()},
        )
        (about,) = installed.glob(f"{_COMPILED}-*.dist-info")
        shutil.copytree(about, site / about.name, dirs_exist_ok=True)
        shutil.copytree(installed / _COMPILED, folder, dirs_exist_ok=True)


def _install_bindings(folder: Path, name: str, libraries: Sequence[str]) -> None:
    _pip(folder, "--only-binary=:all:", "--requirement", str(LOCKS / f"{name}.lock"))
    for library in libraries:
        _compile(["-O2", "-fPIC", "-shared", str(HERE / "no_tensorrt.c")], folder / library)


def _pip(target: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    _run([*pip, "--require-hashes", "--target", str(target), *arguments], variables)


def _pip_settings() -> dict[str, str]:
    """What pip would find in the home folder, for a run with another one."""
    cache = subprocess.run(
        [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=False
    )
    config = Path.home() / ".config" / "pip" / "pip.conf"
    found = {"PIP_CACHE_DIR": cache.stdout.strip(), "PIP_CONFIG_FILE": str(config) if config.exists() else ""}
    return {name: value for name, value in found.items() if value}


@contextmanager
def _requirements(lock: Path, wanted: Callable[[str], bool]) -> Iterator[Path]:
    """A file with some of the requirements of a lock."""
    chosen: list[str] = []
    keep = False
    for line in lock.read_text().splitlines():
        if line and not line[0].isspace():
            keep = wanted(line.split("==")[0])
        if keep:
            chosen.append(line)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(chosen) + "\n")
        file.flush()
        yield Path(file.name)


def _run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise Missing(f"this failed with code {done.returncode}: {' '.join(command)}\n{tail}")


if __name__ == "__main__":
    main()
