"""Verdicts on the work: memory and speed of language models and of training, and the tail of sigd beside
them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from sigd.bench.plan import memory, serving, speed, training
from sigd.bench.plan.catalogue import language_models, parts
from sigd.bench.plan.links import exchange_way
from sigd.bench.plan.machine import Machine, Work
from sigd.bench.plan.memory import GIB
from sigd.bench.plan.ranges import Range, exactly
from sigd.bench.plan.verdict import Harm, Level, Verdict, judge, reaches


def of_work(machine: Machine) -> Iterator[Verdict]:
    """Verdicts on every piece of work, in the order of the file."""
    for work in machine.work:
        if work.kind == "serve":
            yield from _serving(machine, work)
        elif work.kind in ("lora", "qlora", "full"):
            yield _tuning(machine, work)
        else:
            yield _network(machine, work)
        yield from _tail(machine, work)
        yield from _resident(machine, work)


def _gib(need: Range) -> Range:
    return need.times(1 / GIB)


def _serving(machine: Machine, work: Work) -> Iterator[Verdict]:
    best = serving.fit(machine, work)
    model, weights = language_models().models[work.model], language_models().weights[work.weights]
    size = memory.bytes_of(model, weights).best / 1e9
    named = ", ".join(f"{name} {need.best / GIB:.1f}" for name, need in best.items)
    held = f"; sigd keeps {best.sigd.best / GIB:.1f} of its card" if best.sigd.best else ""
    yield Verdict(
        area="memory",
        subject=work.name,
        level=best.level,
        why=f"{work.model} in {work.weights} is {size:.1f} GB; {best.layout} needs a card {named} GiB{held};"
        f" room for {best.tokens:,} tokens of cache",
        fix="" if best.level == "fits" else _smaller(machine, work, best),
        harm=Harm.DOES_NOT_START,
        unit="GiB a card",
        need=_gib(best.need),
        limit=_gib(best.limit),
    )
    if len(work.cards) > 1:
        fault = serving.padded_fault(model, weights, len(work.cards))
        if fault is not None:
            yield Verdict(
                area="memory",
                subject=f"{work.name}: tensor parallel",
                level="does not fit",
                why=f"TP={len(work.cards)} is not possible: {fault}",
                fix="load a checkpoint that is padded for tensor parallelism, or split by layers"
                f" (--pipeline-parallel-size {len(work.cards)})",
                harm=Harm.DOES_NOT_START,
            )
    if work.wanted or best.level != "does not fit":
        yield _decoding(machine, work, best)


def _smaller(machine: Machine, work: Work, best: serving.Fit) -> str:
    """What to change so that a model fits: less in the cache, fewer bits, or a smaller model."""
    if best.tokens >= 1024:
        return f"keep at most {best.tokens:,} tokens in the cache (--max-model-len, --max-num-seqs)"
    bits = language_models().weights[work.weights].bits.value
    for name in ("int8", "awq"):
        if language_models().weights[name].bits.value < bits:
            other = msgspec.structs.replace(work, weights=name)
            if serving.fit(machine, other).level == "fits":
                return f"use {name} weights"
    return "take a smaller model: 32 G parameters in awq, or 8 G in fp16, fit one card of 24 GB"


def _decoding(machine: Machine, work: Work, best: serving.Fit) -> Verdict:
    model, weights = language_models().models[work.model], language_models().weights[work.weights]
    card = serving.slowest_card(machine, work)
    roof = speed.roof_tokens_s(model, weights, best.layout.tensor, card.bandwidth.value * speed.GIGA)
    offloaded = serving.offloaded_s(machine, work, best) if work.offload else None
    if best.level == "does not fit" and offloaded is not None:
        rate = offloaded.inverse()
        why = f"{rate.best:.1f} tok/s with the rest of the weights in host memory"
    else:
        rate = serving.decode_s(machine, work, best.layout).inverse()
        way = speed.exchange(exchange_way(machine))
        first = speed.prefill_s(model, best.layout, card, way, work.context_tokens)
        share = serving.power_share(machine, work, "prefill")
        why = (
            f"{rate.best:.0f} tok/s a stream at {work.context_tokens:,} tokens of context;"
            f" bandwidth's roof {roof:.0f}; first token of such a prompt after {first.best / share:.1f} s"
        )
        if best.level == "does not fit":
            why = f"would be {why}, if it fitted"
    level: Level = reaches(rate, work.wanted) if work.wanted else "fits"
    return Verdict(
        area="speed",
        subject=work.name,
        level=level,
        why=why + (f"; the plan asks for {work.wanted:g}" if work.wanted else ""),
        fix="" if level == "fits" else f"plan with {rate.low:.1f} to {rate.high:.1f} tok/s, or fewer bits",
        harm=Harm.SLOWER,
        unit="tok/s",
        need=rate,
        limit=exactly(work.wanted) if work.wanted else None,
    )


def _tuning(machine: Machine, work: Work) -> Verdict:
    model = language_models().models[work.model]
    items = training.tuning_need(
        work.kind, model, len(work.cards), work.group, work.context_tokens, work.rank
    )
    need = memory.total(items)
    limit = min((serving.room(machine, work, number) for number in work.cards), key=lambda one: one.best)
    level = judge(need, limit)
    named = ", ".join(f"{name} {part.best / GIB:.1f}" for name, part in items)
    cures = {
        "full": "train LoRA or QLoRA adapters, or divide states over cards and host memory (ZeRO-3 with"
        " offload)",
        "lora": "use QLoRA: the base in 4 bits",
        "qlora": "divide the base over both cards (FSDP with QLoRA), or shorten the sequences",
    }
    return Verdict(
        area="training",
        subject=work.name,
        level=level,
        why=f"{work.kind} of {work.model}, {work.group} x {work.context_tokens:,} tokens: {named} GiB a card",
        fix="" if level == "fits" else cures[work.kind],
        harm=Harm.DOES_NOT_START,
        unit="GiB a card",
        need=_gib(need),
        limit=_gib(limit),
    )


def _network(machine: Machine, work: Work) -> Verdict:
    card = serving.slowest_card(machine, work)
    roof = training.sample_roof_s(card) * serving.power_share(machine, work, "training")
    count = training.network_parameters()
    if work.kind == "rl":
        if work.environment_us is None:
            return Verdict(
                area="training",
                subject=work.name,
                level="tight",
                why="the time of one step of the environment is not given, and it bounds everything else",
                fix="measure one step of the environment and set environment_us",
            )
        rate = training.episode_samples_s(work.environment_us, 1)
        why = f"one environment gives {rate:,.0f} steps/s; the network could learn from {roof:,.0f}"
        bounds = exactly(min(rate, roof))
    else:
        bounds = Range(min(training.CPU_SAMPLES_S, roof), roof, roof)
        why = (
            f"{count:,} parameters, batches of {training.SIGNAL_BATCH_ROWS:,}: arithmetic allows {roof:,.0f}"
            " samples/s;"
            f" a CPU of two cores gives {training.CPU_SAMPLES_S:,}; the loader decides between them"
        )
    level: Level = reaches(bounds, work.wanted) if work.wanted else "fits"
    return Verdict(
        area="training",
        subject=work.name,
        level=level,
        why=why + (f"; the plan asks for {work.wanted:,.0f}" if work.wanted else ""),
        fix="" if level == "fits" else "measure it: make train DEVICE=cuda:1",
        harm=Harm.UNCERTAIN,
        unit="samples/s",
        need=bounds,
        limit=exactly(work.wanted) if work.wanted else None,
    )


def _tail(machine: Machine, work: Work) -> Iterator[Verdict]:
    """What the work does to sigd's slowest answers where they share a card."""
    if machine.sigd is None or machine.sigd.card not in work.cards:
        return
    figures = parts().sigd
    budget = figures.budget.value
    subject = f"{work.name}: sigd on card {machine.sigd.card}"
    if work.sharing in ("stopped", "cpu"):
        how = "is stopped" if work.sharing == "stopped" else "runs on its CPU engine"
        yield Verdict(area="placement", subject=subject, level="fits", why=f"sigd {how} while this runs")
        return
    if work.sharing == "time-sliced":
        yield Verdict(
            area="placement",
            subject=subject,
            level="does not fit",
            why=f"without MPS the driver gives each process its turn, {figures.time_slice_short.value:,.0f}"
            " us at the"
            f" shortest setting, against a budget of {budget:.0f} us",
            fix="run it on another card; or stop sigd, or give sigd its CPU engine, while it runs",
            harm=Harm.LATE_SIGNALS,
            unit="us",
            need=figures.time_slice_short.range,
            limit=exactly(budget),
        )
        return
    slower = figures.mps_slowdown.range.times(figures.answer_h200.value)
    yield Verdict(
        area="placement",
        subject=subject,
        level="tight",
        why="under MPS both run at once and share the memory's bandwidth; a fatal error of one ends the"
        " other; the"
        " tail has to be measured",
        fix="measure the tail: sigd bench --neighbour CMD",
        harm=Harm.LATE_SIGNALS,
        unit="us",
        need=slower,
        limit=exactly(budget),
    )


def _resident(machine: Machine, work: Work) -> Iterator[Verdict]:
    """Work that needs a card on which a language model is always served."""
    if work.served or work.kind == "serve":
        return
    for other in machine.work:
        shared = sorted(set(work.cards) & set(other.cards))
        if other.served and shared:
            yield Verdict(
                area="placement",
                subject=f"{work.name}: beside {other.name}",
                level="tight",
                why=f"both want card {', '.join(map(str, shared))}, and a served model leaves no memory"
                " there",
                fix="stop vllm.service while it trains",
                harm=Harm.DOES_NOT_START,
            )
