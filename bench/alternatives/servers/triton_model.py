"""The model of Triton's Python backend, which loads this file in a process of its own."""

from __future__ import annotations

import os
from typing import Any


class TritonPythonModel:
    """As the backend's documentation names it and its methods."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Open the session."""
        import numpy as np
        import triton_python_backend_utils
        from session import open_model

        self._utilities: Any = triton_python_backend_utils
        self._infer = open_model(os.environ["BENCH_MODEL"])
        self._frombuffer = np.frombuffer

    def execute(self, requests: list[Any]) -> list[Any]:
        """An answer for each request."""
        answers = []
        for request in requests:
            row = self._utilities.get_input_tensor_by_name(request, "features").as_numpy()
            outputs = self._frombuffer(self._infer(row.tobytes()), "float32").reshape(1, -1)
            tensor = self._utilities.Tensor("answer", outputs)
            answers.append(self._utilities.InferenceResponse([tensor]))
        return answers
