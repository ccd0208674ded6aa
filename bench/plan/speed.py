"""Speed of language models: the roof that bandwidth sets, decoding, prompts, exchange between cards,
loading."""

from __future__ import annotations

from dataclasses import dataclass

from sigd.bench.plan.catalogue import CardPart, ModelPart, WeightsPart, parts
from sigd.bench.plan.memory import (
    Layout,
    active_parameters,
    bytes_of,
    cache_bytes,
    cache_split,
    parameters,
)
from sigd.bench.plan.ranges import NOTHING, Range

GIGA = 1e9
MICRO = 1e-6
SMALL_BITS = 6
"""Formats below have the share of bandwidth that 4-bit weights reach: their unpacking costs time."""
REFERENCE_CARD = "RTX 3090"
"""The card that the curves of speed at a power limit were measured on."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """How two cards exchange: seconds before the first byte, and bytes/s."""

    start_s: Range
    rate: Range


def exchange(name: str) -> Exchange:
    """The way of exchange: "host" (through host memory), "p2p" or "nvlink"."""
    part = parts().exchange[name]
    return Exchange(part.start.range.times(MICRO), part.rate.range.times(GIGA))


def all_reduce_s(model: ModelPart, tokens: float, way: Exchange) -> Range:
    """Seconds of exchange in one step of `tokens` tokens: two all-reduces a layer, 16-bit values."""
    size = 2 * model.hidden.value * tokens
    return (way.start_s + way.rate.inverse(size)).times(2 * model.layers.value)


def roof_tokens_s(model: ModelPart, weights: WeightsPart, tensor: int, bandwidth: float) -> float:
    """Tokens/s of one stream that bandwidth (bytes/s) alone allows: each weight is read once a token."""
    share = active_parameters(model) / parameters(model)
    return tensor * bandwidth / (bytes_of(model, weights).best * share)


def bandwidth_share(card: CardPart, weights: WeightsPart) -> Range:
    """The share of its bandwidth that reading weights of a format reaches."""
    serving = parts().serving
    if weights.bits.value >= SMALL_BITS:
        return serving.mbu_16.range
    return (card.mbu_4 or serving.mbu_4).range


def limit_share(curve: str, card: CardPart, limit_w: float) -> float:
    """The share of a card's speed that is left at a power limit. The curves are of one card; for another the
    limit counts as a share of its own."""
    reference_w = parts().cards[REFERENCE_CARD].limit.value
    return parts().curves[curve].share(limit_w * reference_w / card.limit.value, reference_w)


def decode_s(
    model: ModelPart,
    weights: WeightsPart,
    layout: Layout,
    card: CardPart,
    way: Exchange,
    *,
    context_tokens: int = 0,
    sequences: int = 1,
    value_bytes: int = 2,
) -> Range:
    """Seconds of one step, which gives each sequence one token: reading weights and cache, and exchange.

    The cards of a pipeline work one after the other, so they do not shorten a step.
    """
    share = active_parameters(model) / parameters(model)
    bandwidth = bandwidth_share(card, weights).times(card.bandwidth.value * GIGA)
    of_weights = bytes_of(model, weights).best * share / layout.tensor
    cache = sequences * context_tokens * cache_bytes(model, value_bytes)
    of_cache = cache * layout.pipeline / cache_split(model, layout)
    step = bandwidth.inverse(of_weights + of_cache)
    if layout.tensor > 1:
        step = step + all_reduce_s(model, sequences, way)
    return step + _hops(model, layout, sequences, way)


def prefill_s(
    model: ModelPart, layout: Layout, card: CardPart, way: Exchange, tokens: int, context_tokens: int = 0
) -> Range:
    """Seconds until a prompt of `tokens` has its first answer, on an idle card."""
    rate = parts().serving.mfu.range.times(card.tensor.value * 1e12 * layout.tensor)
    attention = 2 * model.layers.value * tokens * (tokens / 2 + context_tokens) * 2 * model.hidden.value
    result = rate.inverse(2 * active_parameters(model) * tokens + attention)
    if layout.tensor > 1:
        result = result + all_reduce_s(model, tokens, way)
    return result + _hops(model, layout, tokens, way)


def _hops(model: ModelPart, layout: Layout, tokens: float, way: Exchange) -> Range:
    if layout.pipeline == 1:
        return NOTHING
    size = 2 * model.hidden.value * tokens
    return (way.start_s + way.rate.inverse(size)).times(layout.pipeline - 1)


def offloaded_s(on_cards: float, in_host: float, bandwidth: Range, host_rate: float) -> Range:
    """Seconds a token where some weights lie in host memory.

    Args:
        on_cards, in_host: bytes read a token.
        bandwidth: bytes/s of the cards together, as reached.
        host_rate: peak bytes/s of host memory.
    """
    return bandwidth.inverse(on_cards) + parts().host.mbu.range.times(host_rate).inverse(in_host)


def host_rate(mts: float) -> float:
    """Peak bytes/s of host memory at so many MT/s."""
    host = parts().host
    return mts * 1e6 * host.channels.value * host.bus.value


def load_s(size: float, read: Range) -> Range:
    """Seconds to read a checkpoint of `size` bytes at `read` GB/s, without what the engine does
    afterwards."""
    return read.times(GIGA).inverse(size)
