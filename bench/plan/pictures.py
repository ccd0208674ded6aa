"""The plots of the document: memory a card, speed at a power limit, time of exchange."""

from __future__ import annotations

from sigd.bench.plan import plots, serving, speed
from sigd.bench.plan.catalogue import language_models, parts
from sigd.bench.plan.machine import Machine
from sigd.bench.plan.memory import GIB
from sigd.bench.plan.plots import Bar, Line

WATTS = tuple(range(150, 351, 10))
TOKENS = (1, 16, 64, 256, 512, 1024, 1536, 2048)


def memory(machine: Machine) -> str:
    """What each language model of a machine needs on a card, against what the card has."""
    rows = []
    for work in machine.work:
        if work.kind == "serve":
            fit = serving.fit(machine, work)
            items = tuple((name, need.best / GIB) for name, need in fit.items)
            if fit.sigd.best:
                items = (*items, ("sigd", fit.sigd.best / GIB))
            rows.append(Bar(f"{work.name} ({fit.layout})", items))
    usable = parts().cards[machine.cards[0].model].usable.value
    title = "Memory on the card with the least room, best estimates"
    return plots.bars(title, "GiB", rows, usable, f"{usable:g} GiB usable")


def power() -> str:
    """The measured curves of speed at a power limit."""
    curves = parts().curves
    names = {"decode": "decoding, one card", "prefill": "arithmetic (gpu-burn)", "training": "training"}
    lines = [
        Line(name, tuple((watts, 100 * curves[key].share(watts, WATTS[-1])) for watts in WATTS))
        for key, name in names.items()
    ]
    return plots.curves("An RTX 3090 at a power limit", "W", "% of full speed", lines)


def exchange() -> str:
    """Milliseconds of exchange for a 70B model over two cards."""
    model = language_models().models["llama-3.1-70b"]
    names = {"host": "through host memory", "p2p": "peer to peer, x8", "nvlink": "NVLink"}
    lines = [
        Line(name, tuple((n, speed.all_reduce_s(model, n, speed.exchange(key)).best * 1e3) for n in TOKENS))
        for key, name in names.items()
    ]
    return plots.curves(
        "Exchange in one step of a 70B model over two cards", "tokens in the step", "ms", lines
    )
