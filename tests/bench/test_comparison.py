"""Two models on the same rows: figures worked out by hand, the plot, the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper

from sigd.bench.commands.compare import compare as command
from sigd.bench.comparison import Comparison, Samples, compare
from sigd.bench.comparison_plot import error_bars, svg
from sigd.bench.errors import BadRequest
from sigd.models.backend import Backend
from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import Batches, BuildRequest
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


@pytest.fixture
def doubled(models: ModelMaker) -> Iterator[Backend]:
    with closing(open_backend(models.doubled(2))) as backend:
        yield backend


def scaled(models: ModelMaker, factor: float) -> Path:
    tensor = numpy_helper.from_array(np.array(factor, np.float32), "factor")
    node = helper.make_node("Mul", ["features", "factor"], ["logits"])
    return models.graph([node], ["N", 2], ["N", 2], [tensor])


ROWS = np.array([[1.0, 0.0], [0.0, 4.0], [-1.0, 1.0], [8.0, 2.0]], np.float32)


def test_a_model_agrees_with_itself_to_the_bit(models: ModelMaker, doubled: Backend) -> None:
    with closing(open_backend(models.doubled(2))) as again:
        found, samples = compare(again, doubled, ROWS, "by hand", 1, 5)
    assert (found.rows, found.data) == (4, "by hand")
    assert (found.label_agreement, found.bit_equal) == (1.0, 1.0)
    assert {(q.abs_error, q.rel_error) for q in found.errors} == {(0.0, 0.0)}
    assert len(samples.times_a_ns) == len(samples.times_b_ns) == found.calls == 5
    assert found.latency_ratio == found.a.p50_us / found.b.p50_us


def test_errors_are_those_of_a_against_b(models: ModelMaker, doubled: Backend) -> None:
    with closing(open_backend(scaled(models, 2.5))) as other:
        found, samples = compare(other, doubled, ROWS, "by hand", 4, 1)
    by_share = {q.share: q for q in found.errors}
    assert by_share[1.0].abs_error == 4.0
    assert by_share[1.0].rel_error == 0.25
    assert by_share[0.5].abs_error == 0.5
    assert found.label_agreement == 1.0
    assert found.bit_equal == 2 / 8
    assert found.cosine == pytest.approx(1.0)
    assert sorted(samples.abs_errors) == [0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 2.0, 4.0]


def test_labels_that_differ_are_counted(models: ModelMaker, doubled: Backend) -> None:
    with closing(open_backend(scaled(models, -1.0))) as mirrored:
        assert compare(mirrored, doubled, ROWS, "", 1, 1)[0].label_agreement == 0.0


def test_answers_that_are_not_finite_are_counted_and_left_out(models: ModelMaker, doubled: Backend) -> None:
    with closing(open_backend(scaled(models, 3e38))) as overflowing:
        found, samples = compare(overflowing, doubled, ROWS, "", 1, 1)
    # Every row with a value of 2 or more.
    assert (found.not_finite_a, found.not_finite_b) == (2, 0)
    assert samples.abs_errors.size == 4
    assert found.label_agreement == 0.5
    assert found.comparable == 2


def test_models_of_other_shapes_cannot_be_compared(models: ModelMaker, doubled: Backend) -> None:
    with (
        closing(open_backend(models.doubled(3))) as other,
        pytest.raises(BadRequest, match=r"maps 3 features to 3 outputs, .* 2 to 2"),
    ):
        compare(other, doubled, ROWS, "", 1, 1)


def test_bars_count_every_error_once() -> None:
    bars = error_bars(np.array([0.0, 0.0, 2e-6, 3e-6, 5e-3]))
    assert [(bar.label, bar.count) for bar in bars] == [
        ("exactly 0", 2),
        ("1e-06 to 1e-05", 2),
        ("1e-05 to 1e-04", 0),
        ("1e-04 to 1e-03", 0),
        ("1e-03 to 1e-02", 1),
    ]
    assert [bar.cells for bar in bars] == [40, 40, 0, 0, 20]
    assert [bar.count for bar in error_bars(np.array([]))] == [0]


@pytest.mark.parametrize("errors", [np.array([]), np.zeros(3), np.array([1e-6, 0.5, 0.0])])
def test_the_plot_is_xml_with_all_that_it_draws_inside_its_frame(
    models: ModelMaker, doubled: Backend, errors: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> None:
    found, samples = compare(doubled, doubled, ROWS, "", 1, 20)
    root = ElementTree.fromstring(svg(found, Samples(errors, samples.times_a_ns, samples.times_b_ns)))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == (3 if errors.size else 2)
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
        assert [x for x, _ in points] == sorted(x for x, _ in points)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, ["--calls", "3", "--rows", "50", *map(str, arguments)])


def test_the_command_prints_figures_for_people_or_as_json(models: ModelMaker) -> None:
    model = models.mlp()
    shown = run(model, model)
    assert shown.exit_code == 0, shown.output
    assert "labels agree for 100.0000% of 50 rows" in shown.output
    assert "medians of 3 calls in turns" in shown.output
    found = json.loads(run(model, model, "--backend-b", "oracle", "--json").output)
    assert found["a"]["backend"] in ("native", "onnxruntime")
    assert found["b"]["backend"] == "oracle"
    assert found["label_agreement"] == 1.0
    assert set(found) == set(Comparison.__struct_fields__)


def test_rows_come_from_a_file(models: ModelMaker, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.ones((7, 8), np.float32))
    found = json.loads(run(models.mlp(), models.mlp(), "--data", tmp_path / "rows.npy", "--json").output)
    assert (found["rows"], found["data"]) == (7, str(tmp_path / "rows.npy"))


def test_too_little_agreement_exits_1(models: ModelMaker) -> None:
    assert run(models.mlp(), models.mlp(), "--agreement-min", "1").exit_code == 0
    failed = run(models.mlp(seed=1), models.mlp(seed=2), "--agreement-min", "1")
    assert failed.exit_code == 1
    assert "expected at least 100.0000%" in failed.output


def test_the_plot_is_written(models: ModelMaker, tmp_path: Path) -> None:
    plot = tmp_path / "c.svg"
    assert run(models.mlp(), models.mlp(), "--plot", plot).exit_code == 0
    assert plot.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--backend-a", "cuda"), 2, "no backend is called 'cuda'"),
        (("--plot", "/nonexistent/c.svg"), 3, "/nonexistent/c.svg cannot be written"),
    ],
)
def test_what_cannot_be_done_is_told(
    models: ModelMaker, options: tuple[str, ...], code: int, message: str
) -> None:
    failed = run(models.mlp(), models.mlp(), *options)
    assert failed.exit_code == code
    assert message in failed.output


def test_more_rows_a_call_than_a_batch_takes_exits_2(models: ModelMaker, tmp_path: Path) -> None:
    failed = run(models.mlp(batch=2), models.mlp(), "--batch", "3")
    assert failed.exit_code == 2
    assert "takes at most 2 rows in a batch, 3 were asked for" in failed.output


def test_an_engine_runs_in_the_batches_that_it_was_built_for(models: ModelMaker, tmp_path: Path) -> None:
    model, engine = models.mlp(), tmp_path / "m.engine"
    build_engine(BuildRequest(model=model, engine=engine, runtime="onnxruntime", batches=Batches(rows_max=4)))
    found = json.loads(run(engine, model, "--batch", "4", "--json").output)
    assert found["label_agreement"] == 1.0
    failed = run(engine, model, "--batch", "5")
    assert "takes at most 4 rows in a batch" in failed.output


def rooted(models: ModelMaker) -> Path:
    """The square root of the first feature: NaN where that is negative."""
    return models.graph([helper.make_node("Sqrt", ["features"], ["logits"])], ["N", 2], ["N", 2])


def test_rows_that_are_no_number_on_both_sides_agree_in_nothing(models: ModelMaker) -> None:
    with closing(open_backend(rooted(models))) as a, closing(open_backend(rooted(models))) as b:
        some, _ = compare(a, b, np.array([[1, 2], [-1, 2]], np.float32), "by hand", 1, 1)
        none, _ = compare(a, b, np.array([[-1, 2], [2, -1]], np.float32), "by hand", 1, 1)
    assert (some.comparable, some.label_agreement) == (1, 1.0)
    assert (none.comparable, none.label_agreement, none.cosine) == (0, None, None)


@pytest.mark.parametrize("options", [[], ["--agreement-min", "1.0"], ["--json"]])
def test_a_comparison_of_nothing_fails(models: ModelMaker, tmp_path: Path, options: list[str]) -> None:
    model, data = str(rooted(models)), tmp_path / "rows.npy"
    np.save(data, -np.ones((8, 2), np.float32))
    ran = CliRunner().invoke(command, [model, model, "--data", str(data), "--calls", "1", *options])
    assert ran.exit_code == 1
    assert "nothing could be compared" in ran.stderr
