"""The extensions in C, built with the address and undefined-behaviour sanitizers, for the installed ones.

As a plugin of pytest (`-p tests.fuzz.sanitized`, with SIGD_SANITIZED a folder that `build` filled) it loads
what lies in that folder before any test imports it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
FLAGS: Final = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
PLACE: Final = "SIGD_SANITIZED"


def _hook() -> Any:
    """`hatch_build.py`, which knows what the extensions are made of."""
    found = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["hatch_build"] = module
    found.loader.exec_module(module)
    return module


def build(name: str, folder: Path, compiler: str) -> Path:
    """The extension of that name, with the sanitizers, in a folder.

    Raises:
        subprocess.CalledProcessError: the compiler has no sanitizers, or refused it.
    """
    hook = _hook()
    (extension,) = [one for one in hook.extensions() if one.name == name]
    sources = [str(ROOT / extension.folder / source) for source in extension.sources]
    include = [f"-I{ROOT / part}" for part in extension.include]
    include.append(f"-I{sysconfig.get_path('include')}")
    target = folder / f"sigd.{extension.folder.replace('/', '.')}.{name}.so"
    words = [compiler, *hook.FLAGS, *FLAGS, *include, "-shared", *sources, "-lm", "-o", str(target)]
    subprocess.run(words, check=True, capture_output=True, text=True)
    return target


def runtime(compiler: str) -> str:
    """The sanitizer's library, which a program that was not built with it has to load first."""
    words = [compiler, "-print-file-name=libasan.so"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def _load(path: Path) -> ModuleType:
    name = path.name.removesuffix(".so")
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    package, _, last = name.rpartition(".")
    sys.modules[name] = module
    setattr(importlib.import_module(package), last, module)
    return module


if PLACE in os.environ:
    LOADED: Final = [_load(path) for path in sorted(Path(os.environ[PLACE]).glob("*.so"))]

    def pytest_report_header() -> str:
        """What is tested, for the test that started this."""
        return f"sanitized: {', '.join(module.__name__ for module in LOADED)}"
