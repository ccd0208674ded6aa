"""MACHINE.toml: the machine, and the work that it is to do. A key that is not known is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from sigd.bench.plan.catalogue import language_models, named, parts
from sigd.bench.plan.errors import BadMachine

Sharing = Literal["time-sliced", "mps", "stopped", "cpu"]
"""How sigd shares its card with other work: by the driver's turns, under MPS, or not at all, because it is
stopped or runs on its CPU engine meanwhile."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file."""


class Card(Part, frozen=True):
    """[[cards]]. `limit_w` is the power limit that is set; without it the card's own.

    Attributes:
        slot_lanes: lanes of the slot where they are not the board's for so many cards.
        price_usd: what it costs.
    """

    model: str
    limit_w: float | None = None
    slot_lanes: int | None = None


class Board(Part, frozen=True):
    model: str
    iommu_passthrough: bool = False


class Memory(Part, frozen=True):
    """Host memory: `modules` modules of `module_gb` at `mts` MT/s."""

    modules: int
    module_gb: int
    mts: int


class Supply(Part, frozen=True):
    """The power supply: `rating_w` is what it delivers, as DC."""

    rating_w: float
    standard: Literal["atx2", "atx3"] = "atx2"


class Battery(Part, frozen=True):
    """The uninterruptible supply: watts of AC that it bears, as its owner believes."""

    rating_w: float


class Drive(Part, frozen=True):
    model: str
    size_tb: float


class Nic(Part, frozen=True):
    """The network card. `lanes` are those of its slot, of the generation that the card itself speaks."""

    model: str
    ports: int
    lanes: int
    mtu: int = 1500
    far_end: Literal["sfp+", "10gbase-t", "unknown"] = "unknown"
    wanted_gbit_s: float = 0.0


class Fans(Part, frozen=True):
    """The case: air that its fans move together, and how many there are as planned and as bought."""

    airflow_m3_h: float | None = None
    planned: int | None = None
    bought: int | None = None


class Sigd(Part, frozen=True):
    """Where the daemon runs. `link` is how clients on another machine reach it."""

    card: int = 0
    core: int | None = None
    engine_mib: float = 16.0
    link: Literal["ssh", "unix", "none"] = "ssh"


class Work(Part, frozen=True):
    """[[work]]: something that is to run on one or more cards.

    Attributes:
        kind: serve a language model; train by LoRA, QLoRA or in full; train the signal model (mlp, rl).
        weights: the format of the weights; see models.toml.
        context_tokens, sequences: how much is in the cache at once.
        utilisation: vLLM's share of the card (its flag --gpu-memory-utilization); without it the cache is set
            in bytes.
        offload: whether weights that do not fit may lie in host memory.
        sharing: how sigd shares its card with this work, where it is the same card.
        wanted: tokens/s or samples/s that the plan asks for; 0 where it asks for none.
        served: whether `sigd plan --vllm` writes its service.
        checkpoint: what vLLM is to load.
        group: rows in a micro-batch of training.
    """

    name: str
    kind: Literal["serve", "lora", "qlora", "full", "mlp", "rl"]
    cards: tuple[int, ...]
    model: str = ""
    weights: str = "fp16"
    context_tokens: int = 4096
    sequences: int = 1
    cache_bytes: int = 2
    utilisation: float | None = None
    offload: bool = False
    sharing: Sharing = "time-sliced"
    wanted: float = 0.0
    served: bool = False
    checkpoint: str = ""
    group: int = 1
    rank: int = 16
    environment_us: float | None = None


class Machine(Part, frozen=True):
    """The file."""

    name: str
    cards: tuple[Card, ...]
    work: tuple[Work, ...] = ()
    processor: str | None = None
    board: Board | None = None
    memory: Memory | None = None
    supply: Supply | None = None
    battery: Battery | None = None
    drive: Drive | None = None
    nic: Nic | None = None
    fans: Fans | None = None
    sigd: Sigd | None = None
    nvlink: bool = False
    peer_to_peer: bool = False
    unified: bool = False
    prices_usd: dict[str, float] = {}

    def limit_w(self, number: int) -> float:
        """The power limit of a card in W: the one that is set, at most the card's own."""
        card = self.cards[number]
        full = parts().cards[card.model].limit.value
        return full if card.limit_w is None else min(card.limit_w, full)


def read(path: Path) -> Machine:
    """The machine that a file describes.

    Raises:
        BadMachine: the file cannot be read or is not of this form.
        UnknownPart: it names what the tables do not have.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise BadMachine(
            f"{path}: {error.strerror}; expected a TOML file that describes a machine"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadMachine(f"{path}: {error}") from error
    except BadMachine as error:
        raise BadMachine(f"{path}: {error}") from error


def parse(text: bytes | str) -> Machine:
    """The machine that a text describes, its names checked against the tables.

    Raises:
        msgspec.MsgspecError: it is not of this form.
        BadMachine: it contradicts itself.
        UnknownPart: it names what the tables do not have.
    """
    machine = msgspec.toml.decode(text, type=Machine)
    if not machine.cards:
        raise BadMachine("no [[cards]]; expected one at least")
    for card in machine.cards:
        named(parts().cards, card.model, "card")
        if card.limit_w is not None and card.limit_w <= 0:
            raise BadMachine(f"limit_w = {card.limit_w:g}: expected watts above 0")
    if machine.board is not None:
        named(parts().boards, machine.board.model, "board")
    if machine.processor is not None:
        named(parts().processors, machine.processor, "processor")
    if machine.drive is not None:
        named(parts().drives, machine.drive.model, "drive")
    if machine.nic is not None:
        named(parts().nics, machine.nic.model, "network card")
    if machine.sigd is not None:
        _check_cards((machine.sigd.card,), machine, "sigd")
    for work in machine.work:
        _check_work(work, machine)
    return machine


def _check_work(work: Work, machine: Machine) -> None:
    _check_cards(work.cards, machine, f"work {work.name!r}")
    if work.kind in ("mlp", "rl"):
        return
    named(language_models().models, work.model, "model")
    named(language_models().weights, work.weights, "format of weights")
    if work.context_tokens < 1 or work.sequences < 1 or work.group < 1:
        raise BadMachine(f"work {work.name!r}: context_tokens, sequences and group begin at 1")
    if work.utilisation is not None and not 0 < work.utilisation <= 1:
        raise BadMachine(
            f"work {work.name!r}: utilisation = {work.utilisation:g}: expected above 0 and up to 1"
        )


def _check_cards(numbers: tuple[int, ...], machine: Machine, who: str) -> None:
    known = range(len(machine.cards))
    if not numbers or len(set(numbers)) != len(numbers) or any(number not in known for number in numbers):
        raise BadMachine(
            f"{who} is to run on the cards {list(numbers)}: expected one or more of {list(known)}, each once"
        )
