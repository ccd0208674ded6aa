"""A page of sections with figures and tables: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; --back: #ffffff; --fore: #1b1f24; --soft: #5b6470; --line: #d5dae1;
  --card: #f6f8fa; --good: #1a7f37; --bad: #b42318; --unsure: #8a6100; }
@media (prefers-color-scheme: dark) { :root { --back: #0f1318; --fore: #e3e7ec; --soft: #98a2ae;
  --line: #333b45; --card: #181d24; --good: #4ac26b; --bad: #ff7b72; --unsure: #e0b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--back); color: var(--fore);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; } .soft { color: var(--soft); }
.verdict { display: inline-block; font-weight: 700; padding: .1rem .6rem; border: 2px solid;
  border-radius: .4rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .unsure { color: var(--unsure); }
.wide { overflow-x: auto; margin: .5rem 0 1rem; }
.figure { background: var(--card); border-radius: .5rem; padding: .5rem; }
.figure svg { display: block; width: 100%; min-width: 34rem; height: auto; color: var(--fore); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.words { text-align: left; }
ul { padding-left: 1.2rem; } code { font-size: .9em; overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 10pt; } .figure, table { break-inside: avoid; }
  .figure svg { min-width: 0; } .wide { overflow: visible; } }
"""


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column is on the left."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        words: a paragraph each.
        figures: SVG texts.
    """

    title: str
    words: Sequence[str] = ()
    figures: Sequence[str] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Page:
    """The whole report.

    Attributes:
        verdict: (word, "good", "bad" or "unsure"); None where nothing was held to a bar.
        reasons: why the verdict is what it is.
        files: what lies beside it, by name.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    verdict: tuple[str, str] | None = None
    reasons: Sequence[str] = ()
    files: Sequence[str] = field(default=())

    def text(self) -> str:
        """As HTML."""
        parts = [f"<h1>{escape(self.title)}</h1>", f'<p class="soft">{escape(self.lead)}</p>']
        if self.verdict is not None:
            word, kind = self.verdict
            parts.append(f'<p><span class="verdict {kind}">{escape(word)}</span></p>')
        if self.reasons:
            parts.append("<ul>" + "".join(f"<li>{escape(one)}</li>" for one in self.reasons) + "</ul>")
        parts += [_section(section) for section in self.sections]
        if self.files:
            links = ", ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in self.files)
            parts.append(f"<h2>The figures as data</h2><p>Beside this page: {links}.</p>")
        body = "\n".join(parts)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>\n"
            f"<body>\n{body}\n</body></html>\n"
        )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(words)}</p>" for words in section.words]
    parts += [f'<div class="wide figure">{svg}</div>' for svg in section.figures]
    parts += [f'<div class="wide">{_table(table)}</div>' for table in section.tables]
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = "".join("<tr>" + "".join(_cell(text) for text in row) + "</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(text: str) -> str:
    words = "" if not text or text[0] in "+-~0123456789" else ' class="words"'
    return f"<td{words}>{escape(text)}</td>"
