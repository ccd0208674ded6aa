"""Every figure of the tables has a unit, a source and a grade; one without them is refused."""

from __future__ import annotations

import re
import tomllib

import msgspec
import pytest

from sigd.bench.plan import catalogue
from sigd.bench.plan.catalogue import Models, Parts, language_models, parts
from sigd.bench.plan.figures import GRADES, Curve, Figure

TABLES = {"parts.toml": Parts, "models.toml": Models}


def numbers_outside_figures(value: object, path: str = "") -> list[str]:
    """Paths of numbers that are not the first value of a figure, nor a bound of one, nor a point of a
    curve."""
    if isinstance(value, dict):
        if "points" in value:
            return []
        return [
            found
            for name, entry in value.items()
            for found in numbers_outside_figures(entry, f"{path}.{name}")
        ]
    if isinstance(value, list):
        if len(value) in (4, 6) and all(isinstance(entry, str) for entry in value[1:4]):
            return []
        return [found for entry in value for found in numbers_outside_figures(entry, f"{path}[]")]
    return [path] if isinstance(value, int | float) and not path.endswith("measured[].cards") else []


@pytest.mark.parametrize("table", [parts(), language_models()], ids=["parts", "models"])
def test_every_figure_has_unit_source_and_grade(table: Parts | Models) -> None:
    found = list(catalogue.figures(table))
    assert len(found) > 60
    for path, figure in found:
        assert figure.unit.strip(), path
        assert figure.grade in GRADES, path
        known = figure.source in table.sources or len(figure.source.split()) > 1
        assert known, f"{path}: {figure.source!r} is neither a key of [sources] nor words"


@pytest.mark.parametrize("name", TABLES)
def test_no_number_stands_outside_a_figure(name: str) -> None:
    text = (catalogue.FOLDER / name).read_text()
    assert numbers_outside_figures(tomllib.loads(text)) == []


@pytest.mark.parametrize("name", TABLES)
def test_every_source_is_used(name: str) -> None:
    table = parts() if name == "parts.toml" else language_models()
    used = {figure.source for _, figure in catalogue.figures(table)}
    assert set(table.sources) - used == set()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('[936.2, "GB/s", "P", "toms3090"]', '[936.2, "GB/s", "P"]'),
        ('[936.2, "GB/s", "P", "toms3090"]', '[936.2, "GB/s", "P", " "]'),
        ('[936.2, "GB/s", "P", "toms3090"]', '[936.2, "", "P", "toms3090"]'),
        ('[936.2, "GB/s", "P", "toms3090"]', '[936.2, "GB/s", "X", "toms3090"]'),
        ('[936.2, "GB/s", "P", "toms3090"]', "936.2"),
        ('[936.2, "GB/s", "P", "toms3090"]', '[936.2, "GB/s", "P", "toms3090", 950, 960]'),
        ('source = "jankyai"', 'source = ""'),
        ('grade = "P"\nsource = "jankyai"', 'source = "jankyai"'),
    ],
)
def test_a_figure_without_source_is_refused(old: str, new: str) -> None:
    text = (catalogue.FOLDER / "parts.toml").read_text()
    assert old in text
    with pytest.raises(msgspec.ValidationError):
        msgspec.toml.decode(text.replace(old, new, 1), type=Parts)


def test_a_curve_may_not_fall() -> None:
    with pytest.raises(ValueError, match="fall"):
        Curve("share at W", "P", "measured", ((200, 1.0), (300, 0.9)))


def test_no_figure_of_the_nvlink_of_another_card() -> None:
    """600 GB/s is the A100's, and half of the pages on the RTX 3090 have it."""
    assert parts().cards["RTX 3090"].nvlink.value == 56.25
    assert not re.search(r"\b600\b", (catalogue.FOLDER / "parts.toml").read_text())


def test_bounds_of_a_figure_hold_its_value() -> None:
    assert Figure(2.0, "GB", "G", "a guess", 1.0, 3.0).range.high == 3.0
    with pytest.raises(ValueError, match="one bound"):
        Figure(2.0, "GB", "G", "a guess", 1.0)
