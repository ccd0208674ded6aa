"""What a shadow is refused for before its process is started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigd.daemon.config import Config
from sigd.daemon.errors import EnvironmentLacks, UsageError
from sigd.daemon.model_config import ShadowTable
from sigd.daemon.shadow import supervisor
from sigd.daemon.shadow.supervisor import Shadows, start_shadows
from sigd.models.errors import ModelRefused
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.daemon.conftest import Rig

CORES = {0}


def test_where_none_is_asked_for_there_is_none(make_rig: type[Rig]) -> None:
    shadows = start_shadows(Config(), [make_rig().backend], CORES)
    assert list(shadows) == []
    assert shadows.taps("fake") is None
    assert shadows.status("fake") is None
    Shadows().close()


def test_a_backend_that_does_not_exist(make_rig: type[Rig]) -> None:
    config = Config(shadow=ShadowTable(path="b.onnx", backend="tensorflow"))
    with pytest.raises(UsageError, match=r"no backend is called 'tensorflow'.*for the shadow of fake"):
        start_shadows(config, [make_rig().backend], CORES)


def test_an_engine_on_a_gpu_that_serves(make_rig: type[Rig]) -> None:
    backend = make_rig().backend
    backend.pci_bus_id = "0000:01:00.0"  # type: ignore[attr-defined]
    config = Config(gpu=1, shadow=ShadowTable(path="b.engine", backend="tensorrt"))
    with pytest.raises(UsageError, match="would run on GPU 1, which serves fake"):
        start_shadows(config, [backend], CORES)


def test_without_memory_it_says_how_much_it_wants(
    make_rig: type[Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(supervisor, "make_memory", full)
    with pytest.raises(EnvironmentLacks, match=r"b.onnx: no 8 MiB of memory .*No space left"):
        start_shadows(Config(shadow=ShadowTable(path="b.onnx")), [make_rig().backend], CORES)


def test_one_that_does_not_open_in_time_is_refused_and_leaves_nothing(
    models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "OPEN_TIMEOUT_S", 0.001)
    pid = os.getpid()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    path = models.copied(4)
    backend = open_backend(path)
    try:
        with pytest.raises(ModelRefused, match=r"opening it took longer than 0\.001 s"):
            start_shadows(Config(shadow=ShadowTable(path=str(path))), [backend], CORES)
    finally:
        backend.close()
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == children
