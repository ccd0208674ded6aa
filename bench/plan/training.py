"""Training: memory of full, LoRA and QLoRA tuning of language models; speed of the signal model's network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sigd.bench.plan.catalogue import CardPart, ModelPart, language_models, parts
from sigd.bench.plan.memory import GIB, bytes_of, parameters
from sigd.bench.plan.ranges import Range, exactly

ADAM_BYTES = Range(16, 16, 18)
"""Weights 2, gradients 2, float32 weights 4, Adam's two moments 8; the transformers guide counts 18."""
SIGNAL_LAYERS = (64, 256, 256, 3)
SIGNAL_BATCH_ROWS = 8192
CPU_SAMPLES_S = 83_000
"""Samples/s of `make train` on a CPU of two cores, measured."""


def full_bytes(count: float) -> Range:
    """Weights, gradients and Adam's states of full tuning in mixed precision."""
    return ADAM_BYTES.times(count)


def adapters(model: ModelPart, rank: int) -> float:
    """Trained weights of LoRA on every linear layer."""
    hidden = model.hidden.value
    query = model.heads.value * model.head_size.value
    cache = model.kv_heads.value * model.head_size.value
    width = model.intermediate.value
    sides = 2 * (hidden + query) + 2 * (hidden + cache) + 3 * (hidden + width)
    return model.layers.value * rank * sides


def adapter_bytes(model: ModelPart, rank: int) -> float:
    """Adapters with gradients and Adam's states: 16 bytes each."""
    return 16 * adapters(model, rank)


def qlora_base_bytes(model: ModelPart) -> Range:
    """The frozen base in NF4."""
    return bytes_of(model, language_models().weights["nf4"])


def activation_bytes(model: ModelPart, rows: int, tokens: int) -> Range:
    """Activations with checkpoints at each layer: the checkpoints, one layer computed again, and the logits.

    Low has a fused attention and loss, high keeps the matrix of attention and three copies of the logits.
    """
    values = rows * tokens * model.hidden.value
    checkpoints = 2 * values * model.layers.value
    attention = 5 * model.heads.value * tokens / model.hidden.value
    logits = rows * tokens * model.vocabulary.value
    return Range(
        checkpoints + 10 * values,
        checkpoints + 34 * values + 6 * logits,
        checkpoints + (34 + attention) * values + 14 * logits,
    )


def tuning_need(
    kind: str, model: ModelPart, cards: int, rows: int, tokens: int, rank: int
) -> tuple[tuple[str, Range], ...]:
    """Bytes on one card, by name, with weights and states divided over the cards (FSDP, ZeRO-3)."""
    states: tuple[tuple[str, Range], ...]
    if kind == "full":
        states = (("weights, gradients, states", full_bytes(parameters(model))),)
    else:
        base = exactly(2 * parameters(model)) if kind == "lora" else qlora_base_bytes(model)
        states = (("weights", base), ("adapters", exactly(adapter_bytes(model, rank))))
    return (
        *((name, need.times(1 / cards)) for name, need in states),
        ("activations", activation_bytes(model, rows, tokens)),
        ("context", parts().serving.context.range.times(GIB)),
    )


def network_parameters(layers: Sequence[int] = SIGNAL_LAYERS) -> int:
    """Weights and biases of a dense network."""
    return sum(left * right + right for left, right in itertools.pairwise(layers))


def sample_flops(layers: Sequence[int] = SIGNAL_LAYERS) -> int:
    """Operations of training on one sample: 2 forward and 4 backward for each parameter."""
    return 6 * network_parameters(layers)


def sample_roof_s(card: CardPart, layers: Sequence[int] = SIGNAL_LAYERS) -> float:
    """Samples/s that the card's arithmetic alone allows."""
    return card.tensor.value * 1e12 / sample_flops(layers)


def episode_samples_s(environment_us: float, processes: int) -> float:
    """Samples/s of reinforcement learning where the environment is the slowest part: each step is one
    sample."""
    return processes * 1e6 / environment_us
