"""What goes on around a daemon that serves a model of several inputs and outputs: recordings and their
replay, shadows, reloads, comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from onnx import helper
from tests.e2e.test_any_model import write_classifier
from tests.e2e.test_replay_recording import sigd, told
from tests.e2e.test_shadow import until
from tests.models.onnx.test_flatten import FLOAT, INT64, value, write
from tests.models.onnx.test_missing import write_tree

from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import BuildRequest

if TYPE_CHECKING:
    from tests.e2e.conftest import Daemon, StartDaemon


def instruments(count: int) -> npt.NDArray[np.float32]:
    """Rows of `write_classifier`: a number from 0 to 7, and 6 features."""
    rows = np.random.default_rng(4).standard_normal((count, 7)).astype(np.float32)
    rows[:, 0] = np.arange(count) % 8
    return rows


def windows(folder: Path) -> Path:
    """The mean over a free axis T, and the place of the greatest."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("ArgMax", ["mean"], ["best"], axis=1, keepdims=0),
    ]
    outputs = [value("best", INT64, ["N"]), value("mean", FLOAT, ["N", 2])]
    return write(folder, nodes, [value("x", FLOAT, ["N", "T", 2])], outputs, weights=())


def ask(daemon: Daemon, rows: npt.NDArray[np.float32]) -> None:
    """All rows at once and each for itself."""
    with daemon.connect() as client:
        client.send_many(rows)
        assert not client.receive_many(len(rows))["status"].any()
        for row in rows:
            assert client.request(row).status == 0


def test_a_classifier_is_recorded_replayed_and_shadowed(start_daemon: StartDaemon, tmp_path: Path) -> None:
    model, engine, recordings = write_classifier(tmp_path), tmp_path / "m.engine", tmp_path / "recordings"
    build_engine(BuildRequest(model=model, engine=engine, runtime="onnxruntime"))
    daemon = start_daemon("--model", str(model), "--record", str(recordings), "--shadow", str(engine))
    ask(daemon, instruments(20))
    until(daemon, lambda shadow: shadow.statistics.compared == 40 and shadow.statistics.agreed == 40)
    assert daemon.stop() == 0
    same = told("replay", recordings)
    assert (same["replayed"], same["models"][0]["equal"], same["passed"]) == (40, 40, True)
    (other,) = told("replay", recordings, "--model", engine, "--tolerance", "1e-5")["models"]
    assert other["decisions_changed"] == 0


def test_sizes_of_free_axes_go_with_recording_shadow_reload_and_comparison(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    model, engine, recordings = windows(tmp_path), tmp_path / "m.engine", tmp_path / "recordings"
    build_engine(BuildRequest(model=model, engine=engine, runtime="onnxruntime", sizes={"T": 3}))
    options = ("--dim", "T=3", "--record", str(recordings), "--shadow", str(engine))
    daemon = start_daemon("--model", str(model), *options)
    ask(daemon, np.random.default_rng(1).standard_normal((10, 6)).astype(np.float32))
    until(daemon, lambda shadow: shadow.statistics.agreed == 20)
    reloaded = sigd("reload", "--socket", daemon.socket, "--model", engine)
    assert reloaded.returncode == 0, reloaded.stderr
    assert daemon.stop() == 0
    assert told("replay", recordings)["models"][0]["equal"] == 20
    assert told("replay", recordings, "--model", model, "--dim", "x.1=3")["passed"]
    wrong = sigd("replay", recordings, "--dim", "U=3")
    assert (wrong.returncode, "--dim U=3 names no axis" in wrong.stderr) == (2, True)
    compared = told("compare", model, engine, "--dim", "T=3", "--rows", "64", "--calls", "10")
    assert (compared["label_agreement"], compared["comparable"]) == (1.0, 64)
    wrong = sigd("compare", model, engine, "--dim", "T=3", "--dim", "U=3")
    assert wrong.returncode == 2
    assert "--dim U=3: neither" in wrong.stderr


def test_missing_values_are_recorded_replayed_and_compared(start_daemon: StartDaemon, tmp_path: Path) -> None:
    model, recordings = write_tree(tmp_path), tmp_path / "recordings"
    daemon = start_daemon("--model", str(model), "--record", str(recordings))
    rows = np.random.default_rng(1).standard_normal((10, 4)).astype(np.float32)
    rows[::2] = np.nan
    ask(daemon, rows)
    assert daemon.stop() == 0
    assert told("replay", recordings)["models"][0]["equal"] == 20
    data = tmp_path / "rows.npy"
    np.save(data, rows)
    compared = told("compare", model, model, "--backend-b", "oracle", "--data", data, "--calls", "10")
    assert (compared["label_agreement"], compared["rows"]) == (1.0, 10)
