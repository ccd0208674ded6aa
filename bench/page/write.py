"""Writes a report, with its figures as data beside it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sigd.bench.files import write_whole
from sigd.bench.page.html import Page


def write_report(file: Path, page: Page, json: bytes, hgrms: dict[str, str] | None = None) -> list[Path]:
    """Write `file`, the same name with .json, and for each latency a .hgrm: beside them where it is the only
    one, else in a folder of their own.

    Args:
        hgrms: texts of HdrHistogram by a name, "" for the only one.

    Returns:
        What was written, the page first; a folder stands for what is in it.

    Raises:
        MissingDependency: the folder cannot be written to.
    """
    beside = {file.with_suffix(".json"): json}
    folder = file.with_name(f"{file.stem}-hgrm")
    for name, text in (hgrms or {}).items():
        beside[folder / f"{name}.hgrm" if name else file.with_suffix(".hgrm")] = text.encode()
    if any(path.parent == folder for path in beside):
        with suppress(OSError):  # the first file in it says what was wrong
            folder.mkdir(exist_ok=True)
    whole = replace(page, files=[str(path.relative_to(file.parent)) for path in beside])
    for path, content in ({file: whole.text().encode()} | beside).items():
        write_whole(path, content)
    return list(dict.fromkeys(folder if path.parent == folder else path for path in (file, *beside)))
