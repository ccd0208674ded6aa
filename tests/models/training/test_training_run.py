"""Training end to end on a small made market, the command's exits, and the model that is shipped."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from sigd.models.features import FEATURE_NAMES, FEATURE_VERSION
from sigd.models.features.catalogue import MIRROR
from sigd.models.registry import open_backend
from sigd.models.training.__main__ import main, throughput
from sigd.models.training.fit import LOGISTIC, Recipe, fit
from sigd.models.training.network import softmax
from sigd.models.training.outcome import CLASSES, outcome_of_model
from sigd.models.training.run import Plan, train
from sigd.models.zoo import default_model_path

TORCH_MISSING = "training needs PyTorch: pip install 'sigd[train]'"
SMALL = Recipe(hidden=(16, 16), epochs_max=3, batch_rows=256)
LINEAR = Recipe(hidden=(), learning_rate=3e-3, epochs_max=3, batch_rows=256)


class Silence:
    """Progress without a watcher."""

    def stage(self, text: str, total: int) -> Callable[[int], None]:
        return lambda steps: None


def capture_lines(seed: int, seconds: int) -> Iterator[str]:
    """A market at 20 quotes a second whose mid follows its queues."""
    draw = random.Random(seed)
    bid = 618_000

    def price(ticks: int) -> str:
        return f"{ticks / 10:.1f}"

    levels = [
        [[price(bid - 20 - n), "1.0"] for n in range(30)],
        [[price(bid + 20 + n), "1.0"] for n in range(30)],
    ]
    yield f"1 {json.dumps({'lastUpdateId': 1, 'bids': levels[0], 'asks': levels[1]})}"
    pressure = 0.5
    for number in range(seconds * 20):
        if draw.random() < 0.1:
            pressure = draw.choice((0.1, 0.5, 0.9))
        data: dict[str, object]
        if number % 5 == 4:
            buy = draw.random() < pressure
            data = {"t": number, "p": price(bid + buy), "q": "0.1", "m": not buy}
            stream = "trade"
        else:
            if draw.random() < 0.1:
                bid += 1 if draw.random() < pressure else -1
            sizes = f"{pressure * 4 + draw.random():.3f}", f"{(1 - pressure) * 4 + draw.random():.3f}"
            data = {"u": number, "b": price(bid), "B": sizes[0], "a": price(bid + 1), "A": sizes[1]}
            stream = "bookTicker"
        yield f"{2 + number * 50_000_000} {json.dumps({'stream': f'btcusdt@{stream}', 'data': data})}"


def write_capture(path: Path, seed: int, seconds: int) -> Path:
    path.write_bytes(gzip.compress("\n".join(capture_lines(seed, seconds)).encode()))
    return path


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("captures") / "usdm_btcusdt_made.gz", seed=1, seconds=180)


# ---- with PyTorch --------------------------------------------------------------------------------------


def problem(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal features of which the first, a signed one, decides."""
    features = np.random.default_rng(seed).standard_normal((rows, 64)).astype(np.float32)
    return features, np.digitize(features[:, 0], (-0.4, 0.4)).astype(np.int64)


def test_fitting_learns_and_repeats_itself_bit_by_bit() -> None:
    pytest.importorskip("torch", reason=TORCH_MISSING)
    recipe = Recipe(hidden=(32,), dropout=0.1, learning_rate=1e-2, batch_rows=512, epochs_max=15)
    training, validation = problem(4_000, 0), problem(1_000, 1)
    first, again, other = (fit(recipe, training, validation, seed) for seed in (1, 1, 2))
    assert first.validation_loss < 0.5 * np.log(3)
    for layer, same, different in zip(
        first.network.layers, again.network.layers, other.network.layers, strict=True
    ):
        assert layer.weight.tobytes() == same.weight.tobytes()
        assert layer.bias.tobytes() == same.bias.tobytes()
        assert layer.weight.tobytes() != different.weight.tobytes()


def test_the_logistic_regression_sees_the_market_as_its_mirror_does() -> None:
    pytest.importorskip("torch", reason=TORCH_MISSING)
    features, classes = problem(2_000, 0)
    biased = classes.copy()
    biased[:800] = 2  # a drift, which the mirror images cancel
    fitted = fit(LOGISTIC, (features, biased), (features, classes), seed=1).network
    held = problem(1_000, 2)[0]
    plain, mirror = softmax(fitted.logits(held)), softmax(fitted.logits(held * MIRROR))
    assert plain[:, 2].mean() == pytest.approx(plain[:, 0].mean(), abs=0.03)
    np.testing.assert_allclose(plain.mean(axis=0), mirror.mean(axis=0)[::-1], atol=0.03)


def test_training_stops_once_patience_is_out_and_keeps_the_best_pass() -> None:
    pytest.importorskip("torch", reason=TORCH_MISSING)
    training, (features, classes) = problem(300, 0), problem(300, 1)
    told: list[float] = []
    recipe = Recipe(hidden=(64,), dropout=0.0, learning_rate=1e-2, batch_rows=64, epochs_max=60, patience=3)
    fitted = fit(recipe, training, (features, classes), 1, report=lambda epoch, loss: told.append(loss))
    assert fitted.validation_loss == min(told)
    assert fitted.epoch == told.index(min(told)) + 1
    assert fitted.epochs == len(told) == fitted.epoch + 3


def test_a_run_gives_the_same_file_twice_and_a_whole_report(capture: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason=TORCH_MISSING)
    other = write_capture(tmp_path / "usdm_ethusdt_made.gz", seed=2, seconds=180)
    files, reports = [], []
    for name in ("one", "two"):
        plan = Plan(capture, [other], tmp_path / name, seed=4, seeds=2, network=SMALL, logistic=LINEAR)
        reports.append(train(plan, Silence()))
        files.append((tmp_path / name / "lob-mlp.onnx").read_bytes())
    assert files[0] == files[1]
    report = reports[0]
    assert report.model_sha256 == hashlib.sha256(files[0]).hexdigest()
    assert [seed.seed for seed in report.seeds] == [4, 5]
    assert [evaluation.name for evaluation in report.evaluations] == [
        "usdm_btcusdt_made, held out",
        "usdm_ethusdt_made, whole",
        "usdm_ethusdt_made, held-out minutes",
    ]
    assert all(
        list(evaluation.gains) == ["logistic regression", "always flat"] for evaluation in report.evaluations
    )
    assert outcome_of_model(tmp_path / "one" / "lob-mlp.onnx") == report.outcome


@pytest.mark.slow
def test_the_command_writes_model_and_card(capture: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason=TORCH_MISSING)
    arguments = ["--data", str(capture.parent), "--out", str(tmp_path), "--seeds", "1", "--json"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    card = (tmp_path / "lob-mlp.md").read_text(encoding="utf-8")
    held_out = report["evaluations"][0]["scores"]["network"]
    assert f"| {held_out['log_loss']:.4f} | {held_out['balanced_accuracy']:.3f} |" in card
    assert report["model_sha256"] in card


def test_a_capture_too_short_is_a_wrong_input(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason=TORCH_MISSING)
    short = write_capture(tmp_path / "short.gz", seed=1, seconds=25)
    result = CliRunner().invoke(main, ["--capture", str(short), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "expected a capture" in result.stderr


# ---- without -------------------------------------------------------------------------------------------


def test_without_a_capture_the_command_says_where_to_get_one(tmp_path: Path) -> None:
    for arguments in ([], ["--data", str(tmp_path)]):
        result = CliRunner().invoke(main, arguments, env={"SIGD_DATA": None})
        assert result.exit_code == 2
        assert "make train SIGD_DATA=FOLDER" in result.stderr
        assert "nkaz001/hftbacktest" in result.stderr


def test_a_dry_run_names_the_captures_it_found(capture: Path) -> None:
    result = CliRunner().invoke(main, ["--dry-run"], env={"SIGD_DATA": str(capture.parent)})
    assert result.exit_code == 0
    assert str(capture) in result.stdout


def test_without_pytorch_the_command_says_how_to_get_it(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["--capture", str(capture), "--out", str(tmp_path / "out")])
    assert result.exit_code == 3
    assert "pip install 'sigd[train]'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "Example: " in result.stdout


# ---- the shipped model
# -----------------------------------------------------------------------------------------------


def test_the_shipped_model_has_the_promised_graph() -> None:
    path = default_model_path()
    assert path.stat().st_size < 500_000
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Relu", "Gemm", "Relu", "Gemm"]
    shapes = {}
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        shapes[value.name] = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    assert shapes == {"features": ["batch", 64], "logits": ["batch", 3]}
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert [weights[f"weight{n}"] for n in (1, 2, 3)] == [[64, 256], [256, 256], [256, 3]]


def test_the_shipped_model_was_trained_on_the_features_of_this_version() -> None:
    properties = {entry.key: entry.value for entry in onnx.load(default_model_path()).metadata_props}
    assert properties["feature_version"] == str(FEATURE_VERSION)
    assert tuple(properties["feature_names"].split(",")) == FEATURE_NAMES
    assert tuple(properties["classes"].split(",")) == CLASSES
    assert int(properties["horizon_ns"]) > 0


def test_the_card_is_that_of_the_shipped_model() -> None:
    path = default_model_path()
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card, "write both anew: make train"
    assert "balanced accuracy" in card
    assert "logistic regression" in card


def test_the_shipped_model_answers_alike_on_the_oracle_and_on_onnx_runtime() -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (32, 64)).astype(np.float32)
    answers = []
    for name in ("oracle", "onnxruntime"):
        backend = open_backend(default_model_path(), name, batch_rows_max=32)
        backend.inputs[:] = rows
        backend.submit(32)
        answers.append(backend.outputs.copy())
        backend.close()
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5, atol=1e-5)
    assert np.ptp(answers[0], axis=0).min() > 0.01


def test_a_device_that_is_not_there_ends_with_3_and_names_those_that_are(
    capture: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason=TORCH_MISSING)
    result = CliRunner().invoke(
        main, ["--capture", str(capture), "--out", str(tmp_path), "--device", "cuda:9"]
    )
    assert result.exit_code == 3
    assert "--device cuda:9" in result.output
    assert "cards here" in result.output
    assert list(tmp_path.iterdir()) == []


def test_throughput_stands_beside_the_plan() -> None:
    assert throughput(83_000, 8192, "cpu") == (
        "83,000 samples/s at a batch of 8,192 on cpu; the workstation's plan asks for 100,000 (0.83 times)"
    )
