"""What the usual exporters write by default, served: the table of docs/models.md.

    python -m tests.exporters.table FOLDER docs/models.md

FOLDER holds the files that `make_models.py` has written, with `exported.json`. Every file is opened as
`sigd serve` opens it, and its answers are compared with ONNX Runtime's on the file as it is, bit by bit. A
file that is refused is opened once more with what its refusal says. Exit code 1 where one differs, or is
refused though the line was followed.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.exporters.reference import Reference

from sigd.models.errors import ModelError
from sigd.models.reading import ReadOptions
from sigd.models.registry import open_backend
from sigd.models.rows import seeded_rows

_ROWS: Final = 16
_SIZES_TRIED: Final = (8, 50)
"""What stands for SIZE in a refusal; one that is the model's own leads to a served model."""
_MARKS: Final = re.compile(r"(<!-- models -->\n).*?(<!-- end -->)", re.DOTALL)
_DIM: Final = re.compile(r"--dim (\S+)=(\w+)")


@dataclass(frozen=True, slots=True)
class Line:
    """One file."""

    exporter: str
    kind: str
    served: str
    answer: str
    good: bool


def checked(path: Path, exporter: str) -> Line:
    """Open one file, follow its refusal where there is one, and compare the answers."""
    try:
        return _served(path, exporter, {})
    except ModelError as error:
        refusal = str(error)
    if "batch_rows_max 1" in refusal:
        return _served(path, exporter, {}, batch_rows_max=1)
    for size in _SIZES_TRIED:
        sizes = {
            name: size if given in ("SIZE", "ROWS") else int(given) for name, given in _DIM.findall(refusal)
        }
        if sizes:
            try:
                return _served(path, exporter, sizes)
            except ModelError as error:
                refusal_then = str(error)
                if size == _SIZES_TRIED[-1]:
                    refusal = refusal_then
    reason = refusal.partition(": ")[2]
    return Line(exporter, path.stem, "no", reason, good="export" in reason or "expected at most" in reason)


def _served(path: Path, exporter: str, sizes: Mapping[str, int], batch_rows_max: int = 8) -> Line:
    backend = open_backend(path, "onnxruntime", batch_rows_max, name="m", reading=ReadOptions(sizes))
    spec = backend.spec
    rows = seeded_rows(spec, _ROWS, seed=0)
    texts = next((one.labels for one in spec.output_columns if one.text), ())
    reference = Reference(path, sizes, texts)
    same = True
    for row in rows:
        backend.inputs[0] = row
        backend.submit(1)
        same &= backend.outputs[0].tobytes() == reference.answer(row).tobytes()
    backend.close()
    options = [f"`--dim {name}={size}`" for name, size in sizes.items()]
    options += ["`--batch-rows-max 1`"] if batch_rows_max == 1 else []
    how = "yes" if not options else f"with {' '.join(options)}"
    answer = ", ".join(f"{one.name} ({one.width})" for one in spec.output_columns)
    return Line(exporter, path.stem, how if same else "DIFFERS", answer, same)


def table(folder: Path) -> tuple[str, list[Line]]:
    """The Markdown, and its lines."""
    exported = json.loads((folder / "exported.json").read_text("utf-8"))
    failed: dict[str, str] = exported["failed"]
    lines = []
    for prefix, exporter in exported["versions"].items():
        lines += [checked(path, exporter) for path in sorted(folder.glob(f"{prefix}_*.onnx"))]
        lines += [
            Line(exporter, name, "no file", f"the exporter fails: {words}", good=True)
            for name, words in sorted(failed.items())
            if name.startswith(f"{prefix}_")
        ]
    head = (
        "| exporter | model | served, bit-equal to ONNX Runtime | the answer's columns, or why not |\n"
        "|---|---|---|---|\n"
    )
    text = "".join(f"{_cells(line)}\n" for line in lines)
    return head + text, lines


def _cells(line: Line) -> str:
    model, answer = line.kind.partition("_")[2], line.answer.replace("|", "/")
    return f"| {line.exporter} | {model} | {line.served} | {answer} |"


def main() -> int:
    """See the module."""
    logging.disable(logging.CRITICAL)
    folder, page = Path(sys.argv[1]), Path(sys.argv[2])
    text, lines = table(folder)
    page.write_text(_MARKS.sub(lambda match: f"{match[1]}{text}{match[2]}", page.read_text("utf-8")), "utf-8")
    for line in lines:
        if not line.good:
            print(f"{line.exporter} {line.kind}: {line.served}: {line.answer}", file=sys.stderr)
    return 0 if all(line.good for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
