"""The ONNX Runtime session that all of the servers run: as sigd opens it, one thread, one row."""

from __future__ import annotations

from collections.abc import Callable


def open_model(path: str) -> Callable[[bytes], bytes]:
    """A function from the bytes of one row of float32 features to the bytes of its outputs."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (model_input,), (model_output,) = session.get_inputs(), session.get_outputs()
    shape = [1, *model_input.shape[1:]]
    name, names, run = model_input.name, [model_output.name], session.run

    def infer(features: bytes) -> bytes:
        row = np.frombuffer(features, np.float32).reshape(shape)
        answer: bytes = run(names, {name: row})[0].tobytes()
        return answer

    infer(bytes(4 * int(np.prod(shape))))
    return infer
