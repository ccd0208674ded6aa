"""Writes a report, with its figures as data beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sigd.bench.files import write_whole
from sigd.bench.page.html import Page


def write_report(file: Path, page: Page, json: bytes, hgrms: dict[str, str] | None = None) -> list[Path]:
    """Write `file`, the same name with .json, and for each latency a .hgrm.

    Args:
        hgrms: texts of HdrHistogram by a name, "" for the only one.

    Returns:
        What was written, the page first.

    Raises:
        MissingDependency: the folder cannot be written to.
    """
    beside = {file.with_suffix(".json"): json}
    for name, text in (hgrms or {}).items():
        beside[file.with_name(f"{file.stem}{'-' if name else ''}{name}.hgrm")] = text.encode()
    whole = replace(page, files=[path.name for path in beside])
    for path, content in ({file: whole.text().encode()} | beside).items():
        write_whole(path, content)
    return [file, *beside]
