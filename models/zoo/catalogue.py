"""Models to measure with, in shapes that the field publishes figures for. Only the shapes are public: the
weights are drawn from a seed, so a model answers fast or slow as a trained one does and means nothing.

The same name and seed give the same bytes on every machine: the draws come from PCG64's own stream, and the
file says nothing of when, where or with which packages it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Final

from sigd.models.errors import ModelRefused
from sigd.models.zoo.draws import Draws
from sigd.models.zoo.networks import deeplob, lstm, mlp
from sigd.models.zoo.trees import trees

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A shape.

    Attributes:
        name: as it is asked for.
        what: the layers, in a few words.
        row_dims: the input's axes without the batch.
        parameters: numbers that training would fit; of trees their thresholds and leaves.
        outputs: values of an answer.
        make: the model, from draws.
    """

    name: str
    what: str
    row_dims: tuple[int, ...]
    parameters: int
    outputs: int
    make: Callable[[Draws], ModelProto]


_MODELS: Final = (
    ZooModel("lstm_a", "2 LSTM layers of 100", (50, 100), 160_901, 1, partial(lstm, 50, 100, [100] * 2)),
    ZooModel("lstm_b", "3 LSTM layers of 200", (100, 250), 1_002_601, 1, partial(lstm, 100, 250, [200] * 3)),
    ZooModel("gbt_a", "250 trees of 31 leaves", (60,), 15_250, 1, partial(trees, 60, 250)),
    ZooModel("gbt_b", "1,000 trees of 31 leaves", (125,), 61_000, 1, partial(trees, 125, 1000)),
    ZooModel("mlp_295k", "dense 384-384-128, ReLU", (256,), 295_808, 128, partial(mlp, [256, 384, 384, 128])),
    ZooModel("mlp_1m", "dense 640-640-640-3, ReLU", (256,), 986_883, 3, partial(mlp, [256, *[640] * 3, 3])),
    ZooModel("deeplob", "convolutions, inception, LSTM of 64", (100, 40), 142_435, 3, deeplob),
)

ZOO: Final = {model.name: model for model in _MODELS}


def zoo_model(name: str) -> ZooModel:
    """The shape of a name, in any case.

    Raises:
        ModelRefused: there is none; names the nearest.
    """
    found = ZOO.get(name.lower())
    if found is None:
        near = get_close_matches(name.lower(), ZOO, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelRefused(f"no model is called {name!r}, expected one of {', '.join(ZOO)}{hint}")
    return found


def zoo_file(name: str, seed: int = 1) -> bytes:
    """The ONNX file of a model.

    Args:
        name: one of `ZOO`.
        seed: of its weights, 0 or more.

    Raises:
        ModelRefused: no model has that name.
    """
    return bytes(zoo_model(name).make(Draws(seed)).SerializeToString(deterministic=True))
