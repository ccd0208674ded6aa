"""What is particular to ONNX Runtime: memory shared with it, prepared calls, denormals, refusals."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from sigd.models import onnxrt
from sigd.models.denormals import denormals_flushed
from sigd.models.errors import BackendFailed, BackendUnavailable, ModelRefused
from sigd.models.onnxrt import OnnxRuntimeBackend
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


@pytest.fixture
def backend(models: ModelMaker) -> Iterator[OnnxRuntimeBackend]:
    backend = OnnxRuntimeBackend(read_spec(models.doubled()), batch_rows_max=8)
    backend.open()
    yield backend
    backend.close()


def test_the_arrays_start_on_a_page(backend: OnnxRuntimeBackend) -> None:
    assert backend.inputs.ctypes.data % 4096 == 0
    assert backend.outputs.ctypes.data % 4096 == 0


def test_values_made_of_our_arrays_share_their_memory() -> None:
    """What the whole backend rests on: ONNX Runtime reads and writes our arrays where they are."""
    rows = np.zeros((8, 4), np.float32)[:2]
    assert onnxruntime.OrtValue.ortvalue_from_numpy(rows).data_ptr() == rows.ctypes.data


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_a_batch_is_read_from_and_written_to_our_arrays(backend: OnnxRuntimeBackend, rows: int) -> None:
    backend.inputs[:] = np.arange(32, dtype=np.float32).reshape(8, 4)
    assert backend.submit(rows) is True
    assert backend.ready() is True
    np.testing.assert_array_equal(backend.outputs[:rows], 2 * backend.inputs[:rows])


def test_batch_runs_its_own_rows_and_no_other(backend: OnnxRuntimeBackend) -> None:
    backend.inputs[:] = 1
    backend.outputs[:] = -1
    backend.submit(5)
    assert backend.outputs[:, 0].tolist() == [2, 2, 2, 2, 2, -1, -1, -1]


def test_large_batches_share_the_call_of_their_bucket(
    models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxrt, "EXACT_ROWS_MAX", 4)
    backend = OnnxRuntimeBackend(read_spec(models.doubled()), batch_rows_max=8)
    backend.open()
    assert backend.bare_call(5) is backend.bare_call(8)
    assert backend.bare_call(3) is not backend.bare_call(4)
    backend.close()


def test_rows_may_be_counted_by_numpy(backend: OnnxRuntimeBackend) -> None:
    assert backend.submit(cast(int, np.int64(2))) is True


def test_a_release_without_the_wrapped_objects_is_called_in_public(models: ModelMaker) -> None:
    class Session:
        calls: list[tuple[Any, Any]] = []  # noqa: RUF012

        def run_with_iobinding(self, binding: Any, run_options: Any) -> None:
            self.calls.append((binding, run_options))

    # A session that lacks the method; the installed one has it.
    call = onnxrt._prepared_call(Session(), "binding", "options")
    call()
    assert Session.calls == [("binding", "options")]


def test_this_release_has_the_wrapped_objects(backend: OnnxRuntimeBackend) -> None:
    """Should this fail after an upgrade, `_prepared_call` has lost its short way: see its docstring."""
    call: Any = backend.bare_call(1)
    assert "run_with_iobinding" in repr(call.func)
    assert type(call.func.__self__).__module__.startswith("onnxruntime.capi.onnxruntime_pybind11_state")


def test_denormals_are_flushed_though_another_session_came_first(models: ModelMaker) -> None:
    """ONNX Runtime's own setting counts for the first session of the process alone, and this is not it."""
    path = models.scaled(2.0**100)
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert not denormals_flushed()
    backend = OnnxRuntimeBackend(read_spec(path), batch_rows_max=1)
    backend.open()
    assert denormals_flushed()
    backend.inputs.view(np.uint32)[:] = 1 << 16
    backend.submit(1)
    assert backend.outputs.tolist() == [[0.0] * 4]


def test_several_threads_give_the_same_answers(models: ModelMaker) -> None:
    answers = []
    path = models.mlp(features=64, hidden=[128])
    for threads in (1, 2):
        backend = OnnxRuntimeBackend(read_spec(path), batch_rows_max=64, intra_op_threads=threads)
        backend.open()
        backend.inputs[:] = np.random.default_rng(0).random((64, 64), np.float32)
        backend.submit(64)
        answers.append(backend.outputs.copy())
        backend.close()
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-5)


def test_a_failed_batch_says_what_onnx_runtime_says(
    models: ModelMaker, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = OnnxRuntimeBackend(read_spec(models.failing()), batch_rows_max=2)
    backend.open()
    backend.inputs[1, 0] = 99.0
    with pytest.raises(
        BackendFailed, match=r"ONNX Runtime failed on a batch of 2 rows: .*out of data bounds"
    ) as failure:
        backend.submit(2)
    assert failure.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_an_output_of_another_shape_than_stated_is_refused(models: ModelMaker) -> None:
    path = models.graph([helper.make_node("Relu", ["features"], ["logits"])], ["N", 4], ["N", 5])
    with pytest.raises(
        ModelRefused,
        match=r"does not run on a batch of 1 rows .* expected \(1, 5\) from \(1, 4\): .* export it again",
    ):
        OnnxRuntimeBackend(read_spec(path), batch_rows_max=2).open()


def test_a_batch_that_was_fixed_unseen_is_refused(models: ModelMaker) -> None:
    """The file says that any batch will do, and a reshape inside it says otherwise."""
    shape = helper.make_tensor("shape", 7, [2], [1, 4])
    nodes = [helper.make_node("Reshape", ["features", "shape"], ["logits"])]
    with pytest.raises(
        ModelRefused, match=r"does not run on a batch of 2 rows .* free batch axis, or serve it with"
    ):
        OnnxRuntimeBackend(
            read_spec(models.graph(nodes, ["N", 4], ["M", 4], [shape])), batch_rows_max=2
        ).open()


def test_a_graph_that_onnx_runtime_cannot_load_is_refused(models: ModelMaker) -> None:
    node = helper.make_node("Unheard", ["features"], ["logits"], domain="com.example")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("features", 1, ["N", 4])],
        [helper.make_tensor_value_info("logits", 1, ["N", 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    path = models.new_path()
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    with pytest.raises(ModelRefused, match=r"ONNX Runtime [\d.]+ refuses it: .*Unheard"):
        OnnxRuntimeBackend(read_spec(path)).open()


def test_a_missing_package_is_named(models: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match="pip install onnxruntime"):
        OnnxRuntimeBackend(read_spec(models.mlp())).open()


def test_the_answers_outlive_a_model_file_that_is_overwritten(models: ModelMaker) -> None:
    path = models.doubled()
    backend = OnnxRuntimeBackend(read_spec(path), batch_rows_max=1)
    backend.open()
    path.write_bytes(b"")
    backend.inputs[:] = 1.0
    backend.submit(1)
    assert backend.outputs.tolist() == [[2.0] * 4]


def test_a_prepared_call_keeps_the_arrays_that_it_writes_to(models: ModelMaker) -> None:
    backend = OnnxRuntimeBackend(read_spec(models.doubled()), batch_rows_max=1)
    backend.open()
    call = backend.bare_call(1)
    arrays = [
        weakref.ref(array.base) for array in (backend.inputs, backend.outputs) if array.base is not None
    ]
    del backend
    gc.collect()
    assert [array() is not None for array in arrays] == [True, True]
    del call
    gc.collect()
    assert [array() for array in arrays] == [None, None]


def test_denormals_are_flushed_on_the_sessions_own_threads(models: ModelMaker) -> None:
    """Enough work for a batch to be shared out."""
    path = models.scaled(2.0**100, features=16_000)
    backend = OnnxRuntimeBackend(read_spec(path), batch_rows_max=64, intra_op_threads=3)
    backend.open()
    backend.inputs.view(np.uint32)[:] = 1 << 16
    backend.submit(64)
    assert not backend.outputs.any()
