"""Builds the C extensions into the wheel, where there is a C compiler; without one the wheel is pure Python.

SIGD_NATIVE says what is wanted: "auto" (the default), "off", or "required", which makes a failed build an
error. `python hatch_build.py` builds them in place, for a checkout. SIGD_OBJECTS names a folder in which what
is compiled is kept for the next build of the same sources; without it nothing is.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
FLAGS = [
    *("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    # The bits of an answer belong to the source: no product is contracted into a sum behind its back.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
]
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")


class Extension(NamedTuple):
    """A module in C for the stable interface of Python 3.11 and later, or a library for C++ programs.

    Attributes:
        name: its file's name without the ending.
        folder: where its sources lie, and it itself in the package.
        sources: C files in that folder, with the flags that each needs beside the common ones.
        include: further folders with headers.
        for_python: False for a library.
    """

    name: str
    folder: str
    sources: dict[str, tuple[str, ...]]
    include: tuple[str, ...] = ()
    for_python: bool = True

    @property
    def file(self) -> str:
        """What Python, or a linker, looks for."""
        return f"{self.folder}/{self.name}{'.abi3' if self.for_python else ''}.so"


def extensions() -> list[Extension]:
    """All of them, as this machine's processor family needs them."""
    plain = ("runner.c", "plan.c", "pack.c", "trees.c", "isa_plain.c")
    kernels: dict[str, tuple[str, ...]] = dict.fromkeys(plain, ())
    if platform.machine() == "x86_64":
        kernels |= {"isa_avx2.c": AVX2, "isa_avx512.c": AVX512}
    native_module: dict[str, tuple[str, ...]] = dict.fromkeys(
        ("module.c", "sliding_module.c", "sliding.c", "step_view.c", "columns.c", "column_view.c"), ()
    )
    return [
        Extension("_kernels", "models/native", native_module | kernels),
        # What `sigd/engine.hpp` links: the same kernels without Python.
        Extension("libsigd_engine", "models/native", {"engine_file.c": (), **kernels}, for_python=False),
        # The fast path runs a native engine by the entry that `engine.h` describes.
        Extension("_fast_path", "daemon/serving", {"fast_path.c": ()}, ("models/native",)),
        # The same in a thread of its own.
        Extension("_lane", "daemon/serving", {"lane.c": (), "lane_module.c": ()}, ("models/native",)),
        Extension("_stream", "models/features/native", {"module.c": ()}),
    ]


def compiler() -> list[str] | None:
    """The command of a C compiler: CC, or the first of the usual names that is there."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def build(extension: Extension, command: list[str], target: Path, objects: Path) -> None:
    """Compile an extension into the file `target`.

    Args:
        objects: a folder for compiled sources; what is there already is taken.

    Raises:
        subprocess.CalledProcessError: the compiler refused it; its `stderr` says why.
        OSError: the compiler cannot be started.
    """
    include = [f"-I{ROOT / folder}" for folder in extension.include]
    include.append(f"-I{sysconfig.get_path('include')}")

    def compiled(source: tuple[str, tuple[str, ...]]) -> str:
        name, flags = source
        path = ROOT / extension.folder / name
        to = objects / f"{extension.folder.replace('/', '.')}.{name}.o"
        if not to.exists():
            # Renamed when it is whole: another build may use the same folder.
            with tempfile.TemporaryDirectory(dir=objects) as aside:
                part = Path(aside, to.name)
                _run([*command, *FLAGS, *flags, *include, "-c", str(path), "-o", str(part)])
                part.replace(to)
        return str(to)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        linked = list(pool.map(compiled, extension.sources.items()))
    soname = [] if extension.for_python else [f"-Wl,-soname,{target.name}"]
    # A process may have the old one mapped: it keeps that.
    beside = target.with_name(f".{target.name}.new")
    with tempfile.TemporaryDirectory(dir=objects) as aside:
        whole = Path(aside, target.name)
        _run([*command, "-shared", *soname, *linked, "-lm", "-o", str(whole)])
        shutil.copyfile(whole, beside)
    beside.replace(target)


@contextmanager
def folder_of_objects(command: list[str]) -> Iterator[Path]:
    """Where compiled sources go: a folder in SIGD_OBJECTS for these sources and this compiler, or one for
    this build alone.

    Raises:
        OSError: the compiler cannot be started, or the folder cannot be made.
    """
    kept = os.environ.get("SIGD_OBJECTS")
    if not kept:
        with tempfile.TemporaryDirectory() as objects:
            yield Path(objects)
        return
    version = subprocess.run([*command, "--version"], check=False, capture_output=True, text=True).stdout
    # The paths as well: assertions and debuggers name them.
    seen = hashlib.sha256("\0".join((*command, version, *FLAGS, sysconfig.get_path("include"))).encode())
    for extension in extensions():
        seen.update(repr(extension).encode())
        for folder in (extension.folder, *extension.include):
            for source in sorted((ROOT / folder).glob("*.[ch]")):
                seen.update(f"{source}\0".encode() + source.read_bytes())
    objects = Path(kept, seen.hexdigest()[:24])
    objects.mkdir(parents=True, exist_ok=True)
    yield objects


def _run(words: list[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


def _wanted() -> str:
    wanted = os.environ.get("SIGD_NATIVE", "auto")
    if wanted not in ("auto", "off", "required"):
        raise SystemExit(f"SIGD_NATIVE is {wanted!r}, expected auto, off or required")
    return wanted


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """What hatchling calls while it builds a wheel, editable or not."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what can be built, and tell hatchling where it goes."""
        wanted = _wanted()
        command = compiler()
        if wanted == "off":
            return
        if command is None:
            self._absent(wanted, "there is no C compiler (apt-get install gcc, or set CC)")
            return
        try:
            _build_all(command)
        except subprocess.CalledProcessError as error:
            self._absent(wanted, f"{shlex.join(command)} refused it:\n{error.stderr}")
            return
        except OSError as error:
            self._absent(wanted, str(error))
            return
        if version != "editable":
            for extension in extensions():
                build_data["force_include"][str(ROOT / extension.file)] = f"sigd/{extension.file}"
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def _absent(self, wanted: str, why: str) -> None:
        if wanted == "required":
            raise SystemExit(f"the C extensions were not built, and SIGD_NATIVE=required: {why}")
        self.app.display_warning(f"the C extensions were not built, sigd will run without them: {why}")


def _build_all(command: list[str]) -> None:
    """Build all of them in place. Raises as `build` does."""
    with folder_of_objects(command) as objects:
        for extension in extensions():
            build(extension, command, ROOT / extension.file, objects)


def main() -> int:
    """Build all of them in place."""
    command = compiler()
    if command is None:
        print("sigd: there is no C compiler: apt-get install gcc, or set CC", file=sys.stderr)
        return 3
    try:
        _build_all(command)
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    for extension in extensions():
        print(f"built {extension.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
