"""The tables of parts and of models, read once, each figure with its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sigd.bench.plan.errors import UnknownPart
from sigd.bench.plan.figures import Curve, Figure

FOLDER = Path(__file__).parent
Value = TypeVar("Value")


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of figures; a name that it does not know is an error, and so is one that it misses."""


class CardPart(Table, frozen=True):
    """A graphics card, or the GPU of an Apple chip with the memory of its machine.

    Attributes:
        usable: memory that a program can get, in GiB.
        tensor: dense 16-bit products with 32-bit sums, in TFLOPS; the rate that PyTorch and vLLM see.
        transient: peaks of milliseconds, as a multiple of the power limit.
        mbu_4: the share of the bandwidth that 4-bit weights reach, where it is not as elsewhere.
        nvlink: GB/s in one direction; 0 without a connector.
    """

    memory: Figure
    usable: Figure
    bandwidth: Figure
    tensor: Figure
    limit: Figure
    transient: Figure
    nvlink: Figure
    mbu_4: Figure | None = None
    int8: Figure | None = None
    fp32: Figure | None = None
    memory_limit: Figure | None = None


class BoardPart(Table, frozen=True):
    """A main board. `lanes` are those of the first, second and third card when as many are in."""

    generation: Figure
    cpu_lanes: Figure
    lanes: tuple[Figure, ...]
    chipset_lanes: Figure
    dimms: Figure
    memory_officially: Figure


class ProcessorPart(Table, frozen=True):
    """A processor. Thread n + cores is the sibling of thread n, as Linux numbers them."""

    cores: Figure
    threads: Figure
    package: Figure


class ExchangePart(Table, frozen=True):
    """How two cards exchange: `start` before the first byte in us, `rate` in GB/s."""

    start: Figure
    rate: Figure


class SupplyPart(Table, frozen=True):
    """The supply's efficiency by load, what it bears for milliseconds, and what the rest of the machine
    draws."""

    load_20: Figure
    load_50: Figure
    load_100: Figure
    excursion_atx2: Figure
    excursion_atx3: Figure
    rest: Figure
    battery: Figure


class AirPart(Table, frozen=True):
    density: Figure
    heat: Figure
    rise: Figure


class NetworkPart(Table, frozen=True):
    payload_1500: Figure
    payload_9000: Figure


class DrivePart(Table, frozen=True):
    read: Figure
    sizes: tuple[Figure, ...]


class NicPart(Table, frozen=True):
    generation: Figure
    lanes: Figure
    rate: Figure


class ServingPart(Table, frozen=True):
    """What an engine takes on each card beside weights and cache, and how near it comes to the card's
    rates."""

    context: Figure
    graphs: Figure
    collectives: Figure
    batched_tokens: Figure
    sequences: Figure
    startup: Figure
    mfu: Figure
    mbu_16: Figure
    mbu_4: Figure


class SigdPart(Table, frozen=True):
    context: Figure
    budget: Figure
    time_slice_short: Figure
    mps_slowdown: Figure
    answer_h200: Figure


class HostPart(Table, frozen=True):
    """Host memory; `mbu` is the share of its rate that reading weights reaches."""

    channels: Figure
    bus: Figure
    mbu: Figure


class Measured(Table, frozen=True):
    """One stream on the real thing: tokens/s that were measured, and for the prompt where that is known."""

    card: str
    cards: int
    model: str
    weights: str
    decode: Figure
    prompt: Figure | None = None


class Parts(Table, frozen=True):
    """parts.toml."""

    sources: dict[str, str]
    cards: dict[str, CardPart]
    boards: dict[str, BoardPart]
    processors: dict[str, ProcessorPart]
    lanes: dict[str, Figure]
    exchange: dict[str, ExchangePart]
    supply: SupplyPart
    air: AirPart
    network: NetworkPart
    drives: dict[str, DrivePart]
    nics: dict[str, NicPart]
    serving: ServingPart
    sigd: SigdPart
    host: HostPart
    curves: dict[str, Curve]
    measured: tuple[Measured, ...]


class WeightsPart(Table, frozen=True):
    """A format of weights: `bits` of one in a linear layer, `scales` bits more for each `group` of them, and
    `rest` bits for a weight of the embeddings, the head and the norms."""

    bits: Figure
    scales: Figure
    group: Figure
    rest: Figure


class ModelPart(Table, frozen=True):
    """The architecture of a language model of Llama's kind; with kv_latent one whose attention is over a
    latent.

    Attributes:
        parameters: given where they do not follow from the rest (experts).
        active: those that one token uses.
    """

    layers: Figure
    hidden: Figure
    heads: Figure
    kv_heads: Figure
    head_size: Figure
    intermediate: Figure
    vocabulary: Figure
    tied: Figure
    qkv_bias: Figure
    kv_latent: Figure | None = None
    kv_rope: Figure | None = None
    parameters: Figure | None = None
    active: Figure | None = None


class Models(Table, frozen=True):
    """models.toml."""

    sources: dict[str, str]
    weights: dict[str, WeightsPart]
    models: dict[str, ModelPart]


@cache
def parts() -> Parts:
    """The table of parts."""
    return msgspec.toml.decode((FOLDER / "parts.toml").read_bytes(), type=Parts)


@cache
def language_models() -> Models:
    """The table of models."""
    return msgspec.toml.decode((FOLDER / "models.toml").read_bytes(), type=Models)


def named(table: Mapping[str, Value], name: str, kind: str) -> Value:
    """The entry of a table.

    Raises:
        UnknownPart: there is none; the message lists those that there are.
    """
    if name not in table:
        raise UnknownPart(f"{kind} {name!r} is not known: expected one of {', '.join(sorted(table))}")
    return table[name]


def figures(table: Any, path: str = "") -> Iterator[tuple[str, Figure | Curve]]:
    """Every figure and curve of a table, with the path to it."""
    if isinstance(table, Figure | Curve):
        yield path, table
    elif isinstance(table, msgspec.Struct):
        for name in table.__struct_fields__:
            yield from figures(getattr(table, name), f"{path}.{name}")
    elif isinstance(table, dict):
        for name, entry in table.items():
            yield from figures(entry, f"{path}.{name}")
    elif isinstance(table, tuple):
        for number, entry in enumerate(table):
            yield from figures(entry, f"{path}[{number}]")
