"""The quantities that the claims of a plan are compared with, each computed from the tables or from the
machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sigd.bench.plan import links, memory, power, serving, speed, training
from sigd.bench.plan.catalogue import ModelPart, WeightsPart, language_models, parts
from sigd.bench.plan.machine import Machine, Work
from sigd.bench.plan.memory import Layout
from sigd.bench.plan.ranges import Range, exactly

CARD = "RTX 3090"
CONTEXT_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Quantity:
    """A computed value with the unit that it is printed in."""

    found: Range
    unit: str

    def __str__(self) -> str:
        low, high = _digits(self.found.low), _digits(self.found.high)
        return f"{low} {self.unit}" if low == high else f"{low} to {high} {self.unit}"


def _digits(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.0f} million"
    if abs(value) >= 1e3:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def quantities(machine: Machine) -> Mapping[str, Quantity]:
    """All of them for a machine, by name."""
    found: dict[str, tuple[Range | float, str]] = {
        **_cards(),
        **_links(machine),
        **_power(machine),
        **_sizes(),
        **_speeds(),
        **_offload(machine),
        **_training(),
        **_rest(machine),
    }
    return {
        name: Quantity(value if isinstance(value, Range) else exactly(value), unit)
        for name, (value, unit) in found.items()
    }


Found = dict[str, tuple["Range | float", str]]


def _model(name: str) -> ModelPart:
    return language_models().models[name]


def _weights(name: str) -> WeightsPart:
    return language_models().weights[name]


def _cards() -> Found:
    cards = parts().cards
    card, other = cards[CARD], cards["RTX 4090"]
    assert card.fp32 is not None
    assert card.int8 is not None
    assert card.memory_limit is not None
    return {
        "bandwidth": (card.bandwidth.range, "GB/s"),
        "card_memory": (card.memory.range, "GiB"),
        "fp32": (card.fp32.range, "TFLOPS"),
        "card_limit": (card.limit.value, "W"),
        "tensor": (card.tensor.range, "TFLOPS"),
        "tensor_pair": (card.tensor.value * 2, "TFLOPS"),
        "tensor_4090": (other.tensor.range, "TFLOPS"),
        "int8": (card.int8.range, "TOPS"),
        "memory_limit": (card.memory_limit.range, "C"),
        "m2_bandwidths": (
            Range(*(cards[name].bandwidth.value for name in ("M2", "M2 Pro", "M2 Max"))),
            "GB/s",
        ),
        "copy_expected": (0.8 * card.bandwidth.value, "GB/s"),
    }


def _links(machine: Machine) -> Found:
    both = 2 * parts().cards[CARD].nvlink.value
    slot = links.link_gb_s(8, 4)
    model, weights, card = _model("llama-3.1-70b"), _weights("awq"), parts().cards[CARD]
    slow, fast = (
        speed.decode_s(model, weights, Layout(2), card, speed.exchange(way)).best
        for way in ("host", "nvlink")
    )
    exchanges = {name: speed.exchange(name).rate.times(1e-9) for name in ("host", "p2p")}
    lanes, nic = links.lanes_of(machine, 0), links.nic_lanes(machine)
    assert lanes is not None
    assert nic is not None
    return {
        "nvlink": (both, "GB/s"),
        "nvlink_over_pcie": (both / 2 / slot, "times"),
        "slot_lanes": (lanes, "lanes"),
        "slot_rate": (slot, "GB/s"),
        "chipset_slot": (links.link_gb_s(4, 4), "GB/s"),
        "nic_lanes": (nic, "lanes"),
        "nic_slot": (links.link_gb_s(nic, 2), "GB/s"),
        "nvlink_decode_gain": (Range(3, 5, max(5, 100 * (slow / fast - 1))), "%"),
        "exchange_host": (exchanges["host"], "GB/s"),
        "exchange_p2p": (exchanges["p2p"], "GB/s"),
        "payload_1500": (links.payload_gbit_s(10, 1500), "Gbit/s"),
        "payload_9000": (links.payload_gbit_s(10, 9000), "Gbit/s"),
    }


def _power(machine: Machine) -> Found:
    assert machine.supply is not None
    card = parts().cards[CARD]
    limit, factor = card.limit.value, card.transient.range
    cap = power.highest_cap_w(machine)
    assert cap is not None
    return {
        "supply_dc": (machine.supply.rating_w, "W"),
        "card_peak": (factor.times(limit), "W"),
        "wall": (power.wall_w(power.dc_w(machine), machine.supply.rating_w), "W"),
        "battery": (parts().supply.battery.range, "W"),
        "cap": (cap, "W"),
        "decode_at_250": (100 * parts().curves["decode"].share(250, limit), "%"),
        "airflow_925": (power.airflow_m3_h(925), "m3/h"),
    }


def _sizes() -> Found:
    def gb(name: str, weights: str) -> float:
        return memory.bytes_of(_model(name), _weights(weights)).best / 1e9

    drive = parts().drives["990 Pro"]
    read = speed.load_s(gb("llama-3.1-70b", "awq") * 1e9, drive.read.range)
    sizes = [size.value for size in drive.sizes]
    return {
        "size_70b_int8": (gb("llama-3.1-70b", "int8"), "GB"),
        "size_70b_awq": (gb("llama-3.1-70b", "awq"), "GB"),
        "size_72b_awq": (gb("qwen2.5-72b", "awq"), "GB"),
        "size_deepseek": (gb("deepseek-v2", "awq"), "GB"),
        "cache_deepseek": (memory.cache_bytes(_model("deepseek-v2")), "bytes"),
        "card_70b_fp16": (gb("llama-3.1-70b", "fp16") / 2, "GB"),
        "card_70b_int8": (gb("llama-3.1-70b", "int8") / 2, "GB"),
        "card_70b_awq": (gb("llama-3.1-70b", "awq") / 2, "GB"),
        "disk_70b_awq": (read, "s"),
        "start_70b_awq": (read + parts().serving.startup.range, "s"),
        "drive_sizes": (Range(min(sizes), sizes[1], max(sizes)), "TB"),
    }


def _speeds() -> Found:
    def rate(name: str, weights: str, layout: Layout, card: str = CARD) -> Range:
        way = speed.exchange("host")
        return speed.decode_s(_model(name), _weights(weights), layout, parts().cards[card], way).inverse()

    def roof(name: str, weights: str, tensor: int) -> float:
        bandwidth = parts().cards[CARD].bandwidth.value * speed.GIGA
        return speed.roof_tokens_s(_model(name), _weights(weights), tensor, bandwidth)

    pair = rate("llama-3.1-70b", "awq", Layout(2))
    return {
        "decode_70b_awq": (pair, "tok/s"),
        "tokens_in_1500_ms": (pair.times(1.5), "tokens"),
        "decode_8b_fp16": (rate("llama-3.1-8b", "fp16", Layout()), "tok/s"),
        "decode_8b_q4": (rate("llama-3.1-8b", "q4_k_m", Layout()), "tok/s"),
        "decode_70b_layers": (rate("llama-3.1-70b", "q4_k_m", Layout(1, 2)), "tok/s"),
        "decode_m2_ultra": (rate("llama-3.1-8b", "q4_k_m", Layout(), "M2 Ultra"), "tok/s"),
        "roof_70b_fp16": (roof("llama-3.1-70b", "fp16", 2), "tok/s"),
        "roof_70b_int8": (roof("llama-3.1-70b", "int8", 2), "tok/s"),
        "roof_70b_awq": (roof("llama-3.1-70b", "awq", 2), "tok/s"),
        "roof_8b_fp16": (roof("llama-3.1-8b", "fp16", 1), "tok/s"),
    }


def _offload(machine: Machine) -> Found:
    def rate(weights: str, cards: tuple[int, ...]) -> Range:
        work = Work(
            name="offloaded",
            kind="serve",
            model="llama-3.1-70b",
            weights=weights,
            cards=cards,
            context_tokens=CONTEXT_TOKENS,
            offload=True,
        )
        seconds = serving.offloaded_s(machine, work, serving.fit(machine, work))
        assert seconds is not None
        return seconds.inverse()

    return {
        "offload_70b_int8": (rate("int8", (0, 1)), "tok/s"),
        "offload_70b_awq": (rate("awq", (1,)), "tok/s"),
    }


def _training() -> Found:
    def gb(kind: str, name: str, cards: int, rows: int, tokens: int = 1024) -> Range:
        need = training.tuning_need(kind, _model(name), cards, rows, tokens, 16)
        return memory.total(need).times(1e-9)

    return {
        "lora_7b": (gb("lora", "llama-2-7b", 1, 4), "GB"),
        "lora_13b": (gb("lora", "llama-2-13b", 1, 2), "GB"),
        "qlora_13b": (gb("qlora", "llama-2-13b", 1, 2), "GB"),
        "full_7b": (training.full_bytes(memory.parameters(_model("llama-2-7b"))).times(1e-9), "GB"),
        "qlora_70b": (gb("qlora", "llama-3.1-70b", 2, 1), "GB"),
        "mlp_roof": (training.sample_roof_s(parts().cards[CARD]), "samples/s"),
    }


def _rest(machine: Machine) -> Found:
    assert machine.board is not None
    return {
        "memory_officially": (parts().boards[machine.board.model].memory_officially.range, "MT/s"),
        "answer_h200": (parts().sigd.answer_h200.range, "us"),
        "prices": (sum(machine.prices_usd.values()), "USD"),
    }
