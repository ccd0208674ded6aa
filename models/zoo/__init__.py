"""The models that sigd ships. Beside each ONNX file lies its card, which says what it is worth."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

DEFAULT_MODEL = "lob-mlp"


def default_model_path() -> Path:
    """The model that is served where none is named: an ONNX file of the 64 features of
    `sigd.models.features`.

    Raises:
        FileNotFoundError: this installation was packed without it.
    """
    path = Path(str(importlib.resources.files(__name__) / f"{DEFAULT_MODEL}.onnx"))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing from this installation; install sigd from its wheel, or train the model: make"
            " train"
        )
    return path
