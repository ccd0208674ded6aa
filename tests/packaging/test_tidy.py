"""The rules of the repository, as tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("daemon", "models", "wire", "bench")
FILE_LINES_MAX = 600  # a hint to think: a file holds one stage
FUNCTION_LINES_MAX = 60
BLOB_BYTES_MAX = 600_000
BANNED = {
    r"\btime\.time\(": "the wall clock steps: time.monotonic_ns",
    r"\b(TODO|FIXME|XXX)\b": "finish it, or write down why not",
    r"^\s*from \.": "absolute imports only",
    r"\bimport (daemon|models|wire|bench)\b": "import sigd.*",
}
OPTIONAL = ("torch", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "pyarrow", "pynvml", "matplotlib")


def python_files() -> list[Path]:
    return sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))


def modules() -> Iterator[str]:
    for path in python_files():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__":
            yield ".".join(("sigd", *parts)).removesuffix(".__init__")


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def functions_in(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    return [inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_there_is_something_to_check() -> None:
    assert len(python_files()) > 50


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_one_readable_stage(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert len(lines) <= FILE_LINES_MAX, f"{len(lines)} lines: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A closure of the hot path is a function of its own, and so is what makes it.
            length = lines_of(node) - sum(map(lines_of, functions_in(node)))
            docstring = ast.get_docstring(node)
            length -= len(docstring.splitlines()) if docstring else 0
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines: split it"
    for number, line in enumerate(lines, 1):
        for pattern, why in BANNED.items():
            assert not re.search(pattern, line), f"line {number}: {line.strip()}: {why}"


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path)
        for path in python_files()
        if path.read_text() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_every_module_imports_with_the_base_installation() -> None:
    """In one process in which none of the optional packages can be imported."""
    program = f"""
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ImportError(f"{{name}} is not part of the base installation")
sys.meta_path.insert(0, Blocked())
for module in {list(modules())!r}:
    importlib.import_module(module)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_serving_process_never_loads_the_bench() -> None:
    program = """
import sys
import sigd.daemon.service, sigd.daemon.commands.serve, sigd.daemon.cli
print([name for name in sys.modules if name.startswith("sigd.bench")])
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_nothing_large_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    large = [str(path) for path in files if path.is_file() and path.stat().st_size > BLOB_BYTES_MAX]
    assert large == []
