"""Memory of language models: parameters, weights, cache, and what one card holds of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sigd.bench.plan.catalogue import ModelPart, WeightsPart, parts
from sigd.bench.plan.ranges import Range, exactly

GIB = 2**30
MIB = 2**20
LOGIT_BYTES = 8
"""A float32 value and its probability."""
ACTIVATION_BAND = Range(0.7, 1.0, 1.3)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model lies over cards: each layer split over `tensor` of them, the layers over `pipeline`
    groups."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def cards(self) -> int:
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"TP={self.tensor}" + (f" PP={self.pipeline}" if self.pipeline > 1 else "")


def linear_parameters(model: ModelPart) -> float:
    """Weights of the linear layers inside the blocks: those that a format of weights shrinks."""
    if model.parameters is not None:
        return model.parameters.value - 2 * model.vocabulary.value * model.hidden.value
    query = model.heads.value * model.head_size.value
    cache = model.kv_heads.value * model.head_size.value
    hidden = model.hidden.value
    attention = 2 * hidden * query + 2 * hidden * cache
    return model.layers.value * (attention + 3 * hidden * model.intermediate.value)


def parameters(model: ModelPart) -> float:
    """All weights: linear layers, norms, biases, embeddings and head."""
    if model.parameters is not None:
        return model.parameters.value
    layers, hidden = model.layers.value, model.hidden.value
    norms = (2 * layers + 1) * hidden
    tables = (2 - model.tied.value) * model.vocabulary.value * hidden
    width = (model.heads.value + 2 * model.kv_heads.value) * model.head_size.value
    return linear_parameters(model) + norms + tables + model.qkv_bias.value * layers * width


def active_parameters(model: ModelPart) -> float:
    """Weights that one token uses."""
    return parameters(model) if model.active is None else model.active.value


def bytes_of(model: ModelPart, weights: WeightsPart) -> Range:
    """Size of the checkpoint in bytes."""
    linear = linear_parameters(model)
    bits = weights.bits.value + weights.scales.value / weights.group.value
    rest = parameters(model) - linear
    return exactly(linear * bits / 8) + weights.rest.range.times(rest / 8)


def cache_bytes(model: ModelPart, value_bytes: int = 2) -> float:
    """Bytes of cache for one token, over all cards together (a latent cache is on each card once more)."""
    if model.kv_latent is not None and model.kv_rope is not None:
        return model.layers.value * (model.kv_latent.value + model.kv_rope.value) * value_bytes
    return 2 * model.layers.value * model.kv_heads.value * model.head_size.value * value_bytes


def cache_split(model: ModelPart, layout: Layout) -> int:
    """Over how many cards the cache of a token is divided: heads divide, copies of heads and latents do
    not."""
    if model.kv_latent is not None:
        return layout.pipeline
    return layout.pipeline * min(layout.tensor, int(model.kv_heads.value))


def tensor_fault(model: ModelPart, weights: WeightsPart, tensor: int) -> str | None:
    """Why a layer cannot be split over so many cards; None where it can."""
    heads, kv_heads = int(model.heads.value), int(model.kv_heads.value)
    if heads % tensor:
        return f"{heads} heads do not divide by {tensor}"
    if kv_heads % tensor and tensor % kv_heads:
        return f"{kv_heads} heads of the cache neither divide by {tensor} nor into it"
    width, group = int(model.intermediate.value), int(weights.group.value)
    if width % tensor or (width // tensor) % group:
        return f"{width:,} / {tensor} is no multiple of the group of {group}: the checkpoint has to be padded"
    return None


def layouts(model: ModelPart, weights: WeightsPart, cards: int) -> Iterator[Layout]:
    """Every layout that so many cards allow, those that leave cards idle included."""
    for tensor in range(1, cards + 1):
        if tensor_fault(model, weights, tensor) is None:
            for pipeline in range(1, cards // tensor + 1):
                if pipeline <= model.layers.value:
                    yield Layout(tensor, pipeline)


def activations(model: ModelPart, layout: Layout) -> Range:
    """Bytes on one card for one chunk of a prompt and the logits of a step, as vLLM's profiling run meets
    them."""
    serving = parts().serving
    values = 8 * model.hidden.value + 4 * model.intermediate.value / layout.tensor
    chunk = serving.batched_tokens.value * values * 2
    logits = serving.sequences.value * model.vocabulary.value * LOGIT_BYTES
    return _band(ACTIVATION_BAND, chunk + logits)


def overhead(model: ModelPart, layout: Layout) -> tuple[tuple[str, Range], ...]:
    """What an engine takes on one card beside weights and cache, by name, in bytes."""
    serving = parts().serving
    items = [
        ("activations", activations(model, layout)),
        ("graphs", serving.graphs.range.times(GIB)),
        ("context", serving.context.range.times(GIB)),
    ]
    if layout.tensor > 1:
        items.append(("collectives", serving.collectives.range.times(GIB)))
    return tuple(items)


def serving_need(
    model: ModelPart, weights: WeightsPart, layout: Layout, tokens: int, value_bytes: int
) -> tuple[tuple[str, Range], ...]:
    """Bytes on one card, by name: weights, cache for `tokens` in all sequences together, and the engine's
    overhead."""
    cache = tokens * cache_bytes(model, value_bytes) / cache_split(model, layout)
    return (
        ("weights", bytes_of(model, weights).times(1 / layout.cards)),
        ("cache", exactly(cache)),
        *overhead(model, layout),
    )


def sigd_need(engine_mib: float) -> Range:
    """Bytes that the daemon holds on its card: the CUDA context and its engine."""
    return parts().sigd.context.range.times(GIB) + exactly(engine_mib * MIB)


def total(items: tuple[tuple[str, Range], ...]) -> Range:
    """The sum of needs."""
    result = exactly(0.0)
    for _, need in items:
        result = result + need
    return result


def _band(band: Range, value: float) -> Range:
    return Range(band.low * value, band.best * value, band.high * value)
