"""A trained network as plain arrays, so that measuring and exporting need no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sigd.models.features.catalogue import MIRROR
from sigd.models.training.samples import Float32Array, Float64Array

_SCALE_MIN = 1e-3
"""A feature that hardly varied in training must not be blown up where it does vary."""


@dataclass(frozen=True, slots=True)
class Standardisation:
    """What brings each feature of the training part to mean 0 and deviation 1; float64, shape (64,) each."""

    mean: Float64Array
    scale: Float64Array

    def apply(self, features: Float32Array) -> Float32Array:
        """The features in those units, float32."""
        return ((features - self.mean) / self.scale).astype(np.float32)


def standardisation_of(features: Float32Array) -> Standardisation:
    """Fitted on these samples together with their mirror images, so that a signed feature's mean is 0."""
    mean = np.where(MIRROR < 0, 0.0, features.mean(axis=0, dtype=np.float64))
    scale = np.sqrt(np.square(features - mean).mean(axis=0))
    return Standardisation(mean, np.maximum(scale, _SCALE_MIN))


@dataclass(frozen=True, slots=True)
class Layer:
    """`rows @ weight + bias`; float64, shapes (inputs, outputs) and (outputs,)."""

    weight: Float64Array
    bias: Float64Array


@dataclass(frozen=True, slots=True)
class Network:
    """Dense layers with ReLU between them. One layer is a logistic regression."""

    layers: tuple[Layer, ...]

    def folded(self, standardisation: Standardisation) -> Network:
        """The same network for raw features: the standardisation goes into the first layer."""
        first = self.layers[0]
        weight = first.weight / standardisation.scale[:, None]
        return Network((Layer(weight, first.bias - standardisation.mean @ weight), *self.layers[1:]))

    def logits(self, features: Float32Array) -> Float64Array:
        """float64, shape (samples, 3)."""
        rows = features.astype(np.float64)
        for number, layer in enumerate(self.layers):
            if number:
                rows = np.maximum(rows, 0.0)
            rows = rows @ layer.weight + layer.bias
        return rows


def softmax(logits: Float64Array) -> Float64Array:
    """Probabilities of the classes, shape (samples, 3)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Float64Array = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
