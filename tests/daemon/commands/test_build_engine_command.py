"""`sigd build-engine` from its command line to its exit code and files."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from sigd.models.engine import EngineNotWritten, read_manifest
from sigd.models.manifest import Manifest, decode_manifest

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

Run = Callable[..., Any]
STANDIN = Path(__file__).parents[2] / "models" / "build" / "standin"
WITH_STANDIN = {
    "PYTHONPATH": os.pathsep.join([str(STANDIN), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
}
RTX = ("--runtime", "tensorrt-rtx", "--compute-capability", "8.6")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tmp_path / "m.engine"


def test_help_has_examples(run_command: Run) -> None:
    ran = run_command("build-engine", "--help")
    assert ran.code == 0
    assert "sigd build-engine m.onnx --runtime tensorrt-rtx --compute-capability 8.6" in ran.out


def test_a_build_says_what_it_made(run_command: Run, models: ModelMaker, engine: Path) -> None:
    ran = run_command(
        "build-engine", models.mlp(), "-o", engine, "--runtime", "onnxruntime", "--batch-max", "4"
    )
    assert ran.code == 0, ran.err
    assert "building for onnxruntime: asked for" in ran.err
    assert "fp32, batches 1, 2, 4, in" in ran.out
    assert "accuracy of the engine: max abs" in ran.out
    assert str(engine) + ".json" in ran.out


def test_json_is_the_manifest(run_command: Run, models: ModelMaker, engine: Path) -> None:
    ran = run_command("build-engine", models.mlp(), "-o", engine, "--json")
    assert decode_manifest(ran.out.encode(), engine) == read_manifest(engine)


def test_without_an_output_the_engine_lies_beside_its_model(
    run_command: Run, models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.mlp()
    assert run_command("build-engine", model).code == 0
    assert read_manifest(model.with_suffix(".engine")).source.file == model.name


@pytest.mark.parametrize("folder", [".", "/"])
def test_folder_without_a_name_is_refused_as_a_folder(run_command: Run, folder: str) -> None:
    refused = run_command("build-engine", folder)
    assert refused.code == 2
    assert f"{folder}: a directory, expected an ONNX file" in refused.err


def test_the_rebuild_command_builds_the_same_engine(
    run_command: Run, models: ModelMaker, engine: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows of today.npy"
    np.save(rows, np.random.default_rng(0).standard_normal((64, 8), np.float32))
    options = ("--precision", "int8", "--calibration", rows, "--batch-buckets", "1,16", "--seed", "3")
    assert run_command("build-engine", models.mlp(), "-o", engine, *options).code == 0
    first = read_manifest(engine)
    words = shlex.split(shlex.join(first.rebuild))
    assert words[0] == "sigd"
    assert run_command(*words[1:]).code == 0
    again = read_manifest(engine)
    assert again.plan == first.plan
    assert again.profiles == first.profiles
    assert again.rebuild == first.rebuild


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--precision", "int8"), 2, "give some with --calibration"),
        (("--batch-buckets", "1,two"), 2, "'1,two' is not a list of sizes"),
        (("--max-workspace", "lots"), 2, "'lots' is not a size"),
        (("--max-workspace", "0"), 2, "'0' is not a size"),
        (("--max-workspace", "256M", "--runtime", "onnxruntime"), 2, "--max-workspace: for a GPU only"),
        (("--batch-min", "9", "--batch-opt", "8"), 2, "min <= opt <= max"),
        (("--precision", "tf32", "--runtime", "onnxruntime"), 2, "give --precision fp32"),
        (("--calibration", "gone.npy"), 2, "gone.npy: cannot be read"),
    ],
)
def test_what_cannot_be_asked_for_ends_with_a_reason_and_no_file(
    run_command: Run, models: ModelMaker, engine: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    ran = run_command("build-engine", models.mlp(), "-o", engine, *options)
    assert ran.code == code
    assert message in ran.err
    assert not list(engine.parent.iterdir())


@pytest.mark.parametrize(("runtime", "extra"), [("tensorrt", "gpu"), ("tensorrt-rtx", "rtx")])
def test_no_such_runtime_names_the_extra_and_exits_3(
    run_command: Run,
    models: ModelMaker,
    engine: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, runtime.replace("-", "_"), None)
    ran = run_command(
        "build-engine", models.mlp(), "-o", engine, "--runtime", runtime, "--compute-capability", "8.6"
    )
    assert ran.code == 3
    assert f"pip install 'sigd[{extra}]'" in ran.err
    assert not list(engine.parent.iterdir())


def test_no_model_exits_2(run_command: Run, engine: Path) -> None:
    ran = run_command("build-engine", "gone.onnx", "-o", engine)
    assert ran.code == 2
    assert "gone.onnx: no such file" in ran.err


def test_a_disk_that_is_full_exits_3(run_command: Run, models: ModelMaker, tmp_path: Path) -> None:
    ran = run_command("build-engine", models.mlp(), "-o", tmp_path / "gone" / "m.engine")
    assert ran.code == 3
    assert "cannot be written (No such file or directory)" in ran.err


def test_too_little_agreement_exits_1(
    run_command: Run, models: ModelMaker, engine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # One row is so large that in int8 all others are zeros.
    rows = tmp_path_factory.mktemp("rows") / "rows.npy"
    small = np.random.default_rng(0).standard_normal((256, 8), np.float32) * 1e-3
    small[0] = 100.0
    np.save(rows, small)
    weights = numpy_helper.from_array(np.eye(8, 3, dtype=np.float32), "weights")
    node = helper.make_node("MatMul", ["features", "weights"], ["logits"])
    model = models.graph([node], ["N", 8], ["N", 3], [weights])
    options = ("--precision", "int8", "--calibration", rows, "--agreement-min", "0.9")
    ran = run_command("build-engine", model, "-o", engine, *options)
    assert ran.code == 1
    assert "nothing was written" in ran.err
    assert not list(engine.parent.iterdir())


def start(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
    """`sigd ARGUMENTS` in a process of its own that finds the stand-in for TensorRT-RTX."""
    return subprocess.Popen(
        [sys.executable, "-m", "sigd.daemon", *map(str, arguments)],
        env={**os.environ, **WITH_STANDIN, **variables},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_build_leaves_nothing(
    models: ModelMaker, engine: Path, number: signal.Signals, code: int
) -> None:
    # 50 steps of a second each: too long for a test.
    with start("build-engine", models.mlp(), "-o", engine, *RTX, STANDIN_STEP_S="1") as process:
        deadline = time.monotonic() + 60
        while not list(engine.parent.iterdir()):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert not list(engine.parent.iterdir())
    if number == signal.SIGINT:
        assert "cancelled; nothing was written" in err


def test_bars_are_drawn_on_a_terminal(models: ModelMaker, engine: Path) -> None:
    """On a pseudo-terminal, because there are none elsewhere."""
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sigd.daemon", "build-engine", str(models.mlp()), "-o", str(engine), *RTX],
        env={
            **os.environ,
            **WITH_STANDIN,
            "STANDIN_STEP_S": "0.02",
            "TERM": "xterm",
            "COLUMNS": "120",
        },
        stderr=follower,
        stdout=subprocess.DEVNULL,
    )
    os.close(follower)
    drawn = b""
    try:
        while chunk := os.read(leader, 65536):
            drawn += chunk
    except OSError:
        pass  # how a pseudo-terminal ends
    finally:
        os.close(leader)
    assert process.wait(30) == 0
    assert re.search(rb"Building engine.*\d+/50", drawn)


def test_an_unsupported_operator_is_named(run_command: Run, models: ModelMaker, engine: Path) -> None:
    node = helper.make_node("Det", ["features"], ["logits"], name="covariance")
    model = models.graph([node], ["N", 4, 4], ["N"])
    with start("build-engine", model, "-o", engine, *RTX) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "does not support operator Det (node 'covariance'" in err
    assert not list(engine.parent.iterdir())


def test_an_engine_that_is_there_survives_a_failed_build(
    run_command: Run, models: ModelMaker, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_command("build-engine", models.mlp(), "-o", engine).code == 0
    before = {path: path.read_bytes() for path in engine.parent.iterdir()}

    def refuse(*_: object) -> None:
        raise EngineNotWritten("no room")

    monkeypatch.setattr("sigd.models.build.pipeline.publish_engine", refuse)
    assert run_command("build-engine", models.mlp(seed=1), "-o", engine).code == 3
    assert {path: path.read_bytes() for path in engine.parent.iterdir()} == before


def test_serve_refuses_an_engine_for_a_runtime_that_is_not_here(
    run_command: Run, models: ModelMaker, engine: Path
) -> None:
    with start("build-engine", models.mlp(), "-o", engine, *RTX, "--json") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert isinstance(decode_manifest(out.encode(), engine), Manifest)
    ran = run_command("serve", "--model", engine, "--check")
    assert ran.code == 3
    assert "tensorrt-rtx" in ran.err


def test_serve_takes_an_engine_of_onnx_runtime(run_command: Run, models: ModelMaker, engine: Path) -> None:
    assert run_command("build-engine", models.mlp(), "-o", engine, "--runtime", "onnxruntime").code == 0
    ran = run_command("serve", "--model", engine, "--check")
    assert ran.code == 0
    assert "runs on onnxruntime" in ran.out
    manifest = json.loads(Path(f"{engine}.json").read_text())
    manifest["tools"]["onnxruntime"] = "1.0.0"
    Path(f"{engine}.json").write_text(json.dumps(manifest))
    ran = run_command("serve", "--model", engine, "--check")
    assert ran.code == 2
    assert "built by onnxruntime 1.0.0" in ran.err
    assert "build it again: sigd build-engine" in ran.err
