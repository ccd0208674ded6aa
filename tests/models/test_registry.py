"""Backends by name, and which of them a file gets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.onnxrt import OnnxRuntimeBackend
from sigd.models.oracle import OracleBackend
from sigd.models.registry import BackendOptions, backend_names, make_backend, open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


def test_auto_comes_first_among_the_names() -> None:
    assert backend_names()[0] == "auto"
    assert {"onnxruntime", "oracle"} <= set(backend_names())


@pytest.mark.parametrize("suffix", [".onnx", ".ONNX"])
def test_auto_gives_an_onnx_file_to_onnx_runtime(models: ModelMaker, suffix: str) -> None:
    path = models.mlp()
    assert isinstance(make_backend(path.rename(path.with_suffix(suffix))), OnnxRuntimeBackend)


def test_a_name_overrules_the_ending(models: ModelMaker) -> None:
    path = models.mlp()
    assert isinstance(make_backend(path.rename(path.with_suffix(".model")), "oracle"), OracleBackend)


def test_what_is_no_file_is_not_read_to_see_what_it_is(tmp_path: Path) -> None:
    """The one never ends, the other never begins."""
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(ModelRefused, match="a pipe, a socket or a device, expected a regular file"):
            make_backend(path)


def test_an_ending_that_says_nothing_is_refused() -> None:
    with pytest.raises(
        ModelRefused,
        match=r"its ending '\.pt' .* expected \.onnx \(onnxruntime\) or \.engine: .*: onnxruntime, native,"
        r" tensorrt, oracle",
    ):
        make_backend(Path("model.pt"))


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(
        ValueError,
        match="no backend is called 'cuda', expected one of auto, onnxruntime, native, tensorrt, oracle",
    ):
        open_backend("model.onnx", backend="cuda")


def test_open_backend_opens_with_what_it_is_told(models: ModelMaker) -> None:
    backend = open_backend(str(models.mlp()), batch_rows_max=3, name="lob")
    assert (backend.spec.name, backend.batch_rows_max) == ("lob", 3)
    assert backend.submit(3)
    assert not backend.inputs.any()


def test_the_default_batch_is_64(models: ModelMaker) -> None:
    assert open_backend(models.mlp()).batch_rows_max == BackendOptions().batch_rows_max == 64


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_rows_max is 0, expected at least 1"):
        BackendOptions(batch_rows_max=0)
    with pytest.raises(ValueError, match="intra_op_threads is -1, expected at least 1"):
        BackendOptions(intra_op_threads=-1)


def test_a_backend_that_is_refused_is_closed(models: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[OnnxRuntimeBackend] = []

    def close(backend: OnnxRuntimeBackend) -> None:
        closed.append(backend)

    monkeypatch.setattr(OnnxRuntimeBackend, "close", close)
    with pytest.raises(ModelRefused):
        open_backend(models.mixing())
    assert len(closed) == 1


def test_no_memory_is_no_fault_of_the_models(models: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: object) -> None:
        raise MemoryError

    path = models.doubled()
    monkeypatch.setattr(OnnxRuntimeBackend, "open", none_left)
    with pytest.raises(BackendUnavailable, match=f"{path}: there is not enough memory to open it"):
        open_backend(path)
