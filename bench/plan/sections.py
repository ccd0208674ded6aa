"""The computed parts of the document, one function for each place in the template."""

from __future__ import annotations

from collections.abc import Iterator

from sigd.bench.plan import catalogue, memory, speed
from sigd.bench.plan import placement as places_of
from sigd.bench.plan.catalogue import language_models, parts
from sigd.bench.plan.comparison import Cell, Column, comparable
from sigd.bench.plan.figures import GRADES, Curve
from sigd.bench.plan.machine import Machine
from sigd.bench.plan.markdown import span, table
from sigd.bench.plan.memory import GIB
from sigd.bench.plan.plan import Plan
from sigd.bench.plan.table import grouped
from sigd.bench.plan.verdict import Verdict
from sigd.bench.plan.verification import verifications
from sigd.bench.plan.vllm import cpus


def change(plan: Plan) -> str:
    """What has to change, most harmful first."""
    rows = []
    for number, same in enumerate(grouped(plan.change), 1):
        first = same[0]
        rows.append((str(number), first.level, "; ".join(one.subject for one in same), first.why, first.fix))
    return table(("#", "verdict", "what", "why", "do"), rows)


def placement(planned: Machine, recommended: Machine) -> str:
    """The recommendation in words, from the numbers."""
    place = places_of.recommended(planned)
    assert place is not None
    assert planned.sigd is not None
    cards = ", ".join(map(str, place.work.cards))
    budget, turn = parts().sigd.budget.value, parts().sigd.time_slice_short.value
    lines = [
        (
            f"- **Card {planned.sigd.card}: sigd alone.** Without MPS a neighbour's turn on the card takes"
            f" {turn:,.0f} us at the"
            f" shortest, and the budget is {budget:.0f} us."
        ),
        (
            f"- **Card {cards}: the language model.** The largest that fits for certain is {place.work.model}"
            " in"
            f" {place.work.weights}: {place.fit.need.best / GIB:.1f} of {place.fit.limit.best / GIB:.1f} GiB,"
            f" {span(place.rate)} tok/s a stream without a power limit. Training takes the same card while"
            " vLLM is stopped."
        ),
        (
            "- **Both cards: only with sigd stopped,** on its CPU engine, or under MPS with its tail measured"
            " (`sigd bench --neighbour CMD`)."
        ),
        (
            f"- **{recommended.limit_w(0):.0f} W a card,** the highest limit with which the battery bears the"
            " machine."
        ),
    ]
    return "\n".join(lines)


def places(machine: Machine) -> str:
    """Which models fit on the free card, and which on both."""
    rows = [
        (
            place.work.model,
            place.work.weights,
            "both" if place.work.sharing == "stopped" else "free card",
            str(place.fit.layout),
            place.fit.level,
            f"{span(place.fit.need.times(1 / GIB))} of {place.fit.limit.best / GIB:.1f}",
            f"{place.fit.tokens:,}" if place.fit.level != "does not fit" else "",
            span(place.rate) if place.fit.level != "does not fit" else "",
        )
        for place in places_of.places(machine)
        if memory.parameters(language_models().models[place.work.model]) > 5e9
        and (place.work.weights == "awq" or place.fit.level != "does not fit")
    ]
    return table(
        ("model", "weights", "cards", "layout", "verdict", "GiB a card", "room for tokens", "tok/s"), rows
    )


def hardware(planned: Machine, recommended: Machine) -> str:
    """Each part as planned and as recommended."""

    def cells(machine: Machine) -> Iterator[tuple[str, str]]:
        names = [card.model for card in machine.cards]
        yield "graphics cards", f"{len(names)}x {names[0]}, {machine.limit_w(0):.0f} W each"
        lanes = [str(card.slot_lanes) for card in machine.cards]
        yield "slots", f"{machine.board.model if machine.board else ''}, x{' + x'.join(lanes)}"
        yield "processor", machine.processor or ""
        if machine.memory is not None:
            yield (
                "memory",
                f"{machine.memory.modules} x {machine.memory.module_gb} GB, {machine.memory.mts} MT/s",
            )
        if machine.supply is not None:
            yield "supply", f"{machine.supply.rating_w:.0f} W"
        if machine.battery is not None:
            yield "battery", f"{machine.battery.rating_w:.0f} W"
        if machine.drive is not None:
            yield "disk", f"{machine.drive.model}, {machine.drive.size_tb:g} TB"
        if machine.nic is not None:
            yield "network", f"{machine.nic.model}, x{machine.nic.lanes}, MTU {machine.nic.mtu}"
        if machine.fans is not None:
            yield "fans", f"{machine.fans.bought}"
        yield "bridge", "NVLink" if machine.nvlink else "none"

    pairs = zip(cells(planned), cells(recommended), strict=True)
    rows = [
        (name, before, after if after != before else "as planned") for (name, before), (_, after) in pairs
    ]
    return table(("part", "as planned", "recommended"), rows)


def architecture(machine: Machine) -> str:
    """Who runs where, as a drawing of characters."""
    assert machine.sigd is not None
    core, allowed = machine.sigd.core, cpus(machine)
    served = places_of.served(machine)
    assert served is not None
    return f"""\
trading engine (Sydney)                        this machine
  C++ or Python client                   sshd ── /run/sigd/sigd.sock ── sigd, core {core}
  /run/sigd-tunnel/HOST/sigd.sock ══ssh══╝                              │
                                                          PCIe x8 ── card {machine.sigd.card}: sigd's engine alone
MacBook ── 10GbE ── X520, chipset x4
                                                          PCIe x8 ── card {served.cards[0]}: vLLM ({served.model}, {served.weights})
                                         vLLM, training: CPUs {allowed}        or training"""


def cap_unit(machine: Machine) -> str:
    """A unit that sets the power limits at boot."""
    commands = "\n".join(
        f"ExecStart=/usr/bin/nvidia-smi -i {number} --power-limit={machine.limit_w(number):.0f}"
        for number in range(len(machine.cards))
    )
    return f"""\
# /etc/systemd/system/gpu-power.service
[Unit]
Description=Power limits of the graphics cards
After=nvidia-persistenced.service
Before=sigd.service vllm.service

[Service]
Type=oneshot
RemainAfterExit=yes
{commands}

[Install]
WantedBy=multi-user.target"""


def verdicts(plan: Plan, recommended: Plan, area: str) -> str:
    """The verdicts of an area, as planned and as recommended."""
    after = {one.subject: one for one in recommended.verdicts if one.area == area}
    rows = []
    for one in plan.verdicts:
        if one.area == area:
            other = after.get(one.subject)
            rows.append((one.subject, one.level, _figures(one), one.why, _after(other)))
    return table(("what", "verdict", "low to high, limit", "why", "as recommended"), rows)


def _figures(one: Verdict) -> str:
    limit = "" if one.limit is None else f", {span(one.limit)}"
    return "" if one.need is None else f"{span(one.need)}{limit} {one.unit}"


def _after(one: Verdict | None) -> str:
    return "fits" if one is None else f"{one.level}: {_figures(one)}" if one.need is not None else one.level


def compute(machine: Machine) -> str:
    """Rates of one card, of the cards together inside tensor parallelism, and of the largest card to
    compare."""
    names = dict.fromkeys([*(card.model for card in machine.cards), "RTX 4090"])
    rows = []
    for name in names:
        card = parts().cards[name]
        count = sum(one.model == name for one in machine.cards)
        together = (
            "" if count < 2 else f"{count * card.tensor.value:.0f}; {count * card.bandwidth.value:,.0f}"
        )
        int8 = "" if card.int8 is None else f"{card.int8.value:.0f}"
        fp32 = "" if card.fp32 is None else f"{card.fp32.value:.1f}"
        rows.append(
            (
                name,
                f"{card.tensor.value:g}",
                int8,
                fp32,
                f"{card.bandwidth.value:,.0f}",
                f"{card.memory.value:g}",
                together,
            )
        )
    head = (
        "card", "FP16, TFLOPS", "INT8, TOPS", "FP32, TFLOPS", "GB/s", "GiB", ("both, one model split: TFLOPS;"
                                                                             " GB/s"),
    )  # fmt: skip
    return table(head, rows)


def models(plan: Plan) -> str:
    """Memory and speed of the planned language models."""
    return _by_subject(
        plan, ("memory", "speed"), {one.subject for one in plan.verdicts if one.area == "speed"}
    )


def training(plan: Plan) -> str:
    """Memory of tuning and speed of the signal network, as planned."""
    return _by_subject(plan, ("training",), {one.subject for one in plan.verdicts if one.area == "training"})


def _by_subject(plan: Plan, areas: tuple[str, ...], subjects: set[str]) -> str:
    rows = [
        (one.subject, one.area, one.level, _figures(one), one.why)
        for one in plan.verdicts
        if one.area in areas and one.subject in subjects
    ]
    return table(("work", "of", "verdict", "low to high, limit", "why"), rows)


def exchange() -> str:
    """Milliseconds of exchange by way and by tokens."""
    model = language_models().models["llama-3.1-70b"]
    names = {
        "host": "through host memory (no peer access)",
        "p2p": "peer to peer over PCIe 4.0 x8",
        "nvlink": "NVLink bridge",
    }
    rows = []
    for key, name in names.items():
        way, part = speed.exchange(key), parts().exchange[key]
        one, many = (speed.all_reduce_s(model, tokens, way).times(1e3) for tokens in (1, 2048))
        rows.append((name, span(part.start.range), span(part.rate.range), span(one), span(many)))
    return table(
        ("way", "before the first byte, us", "GB/s", "one token, ms", "prompt of 2,048 tokens, ms"), rows
    )


def tensor() -> str:
    """Over how many cards each model can be split, in 4 bits."""
    rows = []
    for name, model in language_models().models.items():
        faults = {
            count: memory.tensor_fault(model, language_models().weights["awq"], count) for count in (2, 3, 4)
        }
        rows.append((name, *(faults[count] or "yes" for count in (2, 3, 4))))
    return table(("model, awq", "TP=2", "TP=3", "TP=4"), rows)


def verification(machine: Machine) -> str:
    """The list of verification."""
    rows = [(one.what, f"`{one.command}`", one.expected) for one in verifications(machine)]
    return table(("what", "command", "what has to come out"), rows)


def compared(machine: Machine, columns: tuple[Column, ...]) -> str:
    """One row a machine, one column a piece of work."""
    work = comparable(machine)
    rows = [
        (
            one.machine,
            f"{one.memory_gib:.0f}",
            f"{one.bandwidth_gb_s:.0f}",
            span(one.draw_w),
            *(_cell(cell) for cell in one.cells),
        )
        for one in columns
    ]
    return table(("machine", "GiB usable", "GB/s a card", "W", *(piece.name for piece in work)), rows)


def _cell(cell: Cell) -> str:
    if cell.level == "does not fit":
        return "no"
    mark = "tight: " if cell.level == "tight" else ""
    return mark + (span(cell.decode) if cell.decode is not None else f"{span(cell.need)} GiB")


def first_tokens(machine: Machine, columns: tuple[Column, ...]) -> str:
    """Seconds until the first token, of each language model on each machine."""
    work = comparable(machine)
    served = [number for number, piece in enumerate(work) if piece.kind == "serve"]
    rows = [(one.machine, *(span(one.cells[number].first_s) or "no" for number in served)) for one in columns]
    return table(("seconds to the first token", *(work[number].name for number in served)), rows)


def measured() -> str:
    """Measurements that others published, beside what is computed for the same."""
    rows = []
    for one in parts().measured:
        card = parts().cards[one.card]
        layout = memory.Layout(1, one.cards)
        step = speed.decode_s(
            language_models().models[one.model],
            language_models().weights[one.weights],
            layout,
            card,
            speed.exchange("host"),
        )
        prompt = "" if one.prompt is None else f"{one.prompt.value:,.0f}"
        rows.append(
            (
                f"{one.cards}x {one.card}",
                f"{one.model} {one.weights}",
                f"{one.decode.value:g}",
                span(step.inverse()),
                prompt,
            )
        )
    return table(("machine", "model", "measured, tok/s", "computed, tok/s", "prompt measured, tok/s"), rows)


def prices(machine: Machine) -> str:
    """The sum of the parts."""
    return f"{len(machine.prices_usd)} parts for {sum(machine.prices_usd.values()):,.0f} USD, as planned."


def grades() -> str:
    """What the letters mean."""
    return "; ".join(f"{grade} {meaning}" for grade, meaning in GRADES.items())


def sources() -> str:
    """Every figure with its unit, bounds, grade and source."""
    rows = []
    for name, of_table in (("parts.toml", parts()), ("models.toml", language_models())):
        known = of_table.sources
        for path, figure in catalogue.figures(of_table):
            value = "curve" if isinstance(figure, Curve) else span(figure.range)
            best = "" if isinstance(figure, Curve) else f"{figure.value:g}"
            rows.append(
                (
                    f"{name.removesuffix('.toml')}{path}",
                    best,
                    value,
                    figure.unit,
                    figure.grade,
                    known.get(figure.source, figure.source),
                )
            )
    return table(("figure", "best", "low to high", "unit", "grade", "source"), rows)
