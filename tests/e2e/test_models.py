"""Several models in one real daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.wire.errors import Rejected
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

ROW = np.array([3, 1, 2, 5], np.float32)


def tables(folder: Path, *models: tuple[str, Path], more: str = "") -> Path:
    """A configuration file; `more` goes into the last table."""
    text = "".join(f"[[model]]\nname = '{name}'\npath = '{path}'\n" for name, path in models)
    file = folder / "models.toml"
    file.write_text(text + more)
    return file


def test_each_client_gets_the_model_that_it_names(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    config = tables(
        tmp_path, ("copy", models.copied(4)), ("twice", models.doubled(4)), ("sum", models.summed(4)),
        more="in_flight_max = 2\n",
    )  # fmt: skip
    daemon = start_daemon("--config", str(config))
    assert " model=copy (4 -> 4) " in daemon.ready
    assert " model=twice (4 -> 4) " in daemon.ready
    with (
        daemon.connect() as default,
        daemon.connect(model_name="twice") as twice,
        daemon.connect(model_name="sum") as total,
    ):
        assert [client.welcome.model_name for client in (default, twice, total)] == ["copy", "twice", "sum"]
        assert (default.welcome.in_flight_max, total.welcome.in_flight_max) == (256, 2)
        for _ in range(3):
            assert default.request(ROW).outputs.tolist() == ROW.tolist()
            assert twice.request(ROW).outputs.tolist() == (2 * ROW).tolist()
            assert total.request(ROW).outputs.tolist() == [11.0]
        default.send_many([ROW] * 50)
        twice.send_many([ROW] * 50)
        total.send_many([ROW] * 50)
        assert (default.receive_many(50)["status"] == Status.OK).all()
        assert (twice.receive_many(50)["outputs"] == 2 * ROW).all()
        assert set(total.receive_many(50)["status"]) == {Status.OK, Status.BUSY}, "its own bound"
    served = daemon.status().models
    assert [model.name for model in served] == ["copy", "twice", "sum"]
    assert [model.answers["OK"] for model in served[:2]] == [53, 53]
    assert served[2].answers["BUSY"] > 0
    assert served[0].answers["BUSY"] == served[1].answers["BUSY"] == 0
    assert all(sum(model.batches_by_rows.values()) > 3 for model in served)


def test_a_name_that_is_not_served_is_refused(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    daemon = start_daemon("--config", str(tables(tmp_path, ("a", models.copied(4)), ("b", models.copied(4)))))
    with pytest.raises(Rejected, match="'a' is served, not 'c'"):
        daemon.connect(model_name="c")


def test_status_shows_each_of_them(start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path) -> None:
    config = tables(tmp_path, ("a", models.copied(4)), ("b", models.summed(4)))
    daemon = start_daemon("--config", str(config))
    with daemon.connect(model_name="b") as client:
        client.request(ROW)
    command = [sys.executable, "-P", "-m", "sigd.daemon", "status", "--socket", str(daemon.socket)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first, second = said.split("model a ")[1].split("model b ")
    assert first.startswith("(4 -> 4) generation 1 on ")
    assert "answers: none yet" in first
    assert second.startswith("(4 -> 1) generation 1 on ")
    assert "answers: OK 1" in second


def test_check_opens_all_of_them(models: ModelMaker, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--check", "--config"]
    good = tables(tmp_path, ("a", models.copied(4)), ("b", models.summed(4)))
    done = subprocess.run([*command, str(good)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("good: ")) == (0, 2), done.stderr
    bad = tables(tmp_path, ("a", models.copied(4)), ("b", broken))
    done = subprocess.run([*command, str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "broken.onnx: not an ONNX model" in done.stderr
