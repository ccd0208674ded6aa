"""Each formula against a value that was computed or measured elsewhere."""

from __future__ import annotations

import pytest

from sigd.bench.plan import links, memory, power, speed, training
from sigd.bench.plan.catalogue import CardPart, ModelPart, WeightsPart, language_models, parts
from sigd.bench.plan.memory import Layout
from sigd.bench.plan.ranges import exactly


def model(name: str) -> ModelPart:
    return language_models().models[name]


def weights(name: str) -> WeightsPart:
    return language_models().weights[name]


def card(name: str = "RTX 3090") -> CardPart:
    return parts().cards[name]


def way(start_us: float, rate_gb_s: float) -> speed.Exchange:
    return speed.Exchange(exactly(start_us * 1e-6), exactly(rate_gb_s * 1e9))


@pytest.mark.parametrize(
    ("name", "giga"),
    [("llama-3.1-70b", 70.554), ("llama-3.1-8b", 8.030), ("qwen2.5-72b", 72.706), ("llama-2-7b", 6.738)],
)
def test_parameters_follow_from_the_architecture(name: str, giga: float) -> None:
    assert memory.parameters(model(name)) / 1e9 == pytest.approx(giga, abs=0.0006)


@pytest.mark.parametrize(
    ("name", "format_name", "gb"),
    [
        ("llama-3.1-70b", "awq", 39.77),
        ("llama-3.1-70b", "fp16", 141.1),
        ("llama-3.1-70b", "int8", 72.7),
        ("llama-3.1-70b", "nf4", 36.4),
        ("qwen2.5-72b", "awq", 41.46),
        ("qwen2.5-32b", "awq", 19.3),
        ("llama-3.1-8b", "fp16", 16.06),
        ("llama-2-13b", "fp16", 26.0),
    ],
)
def test_checkpoint_has_its_size(name: str, format_name: str, gb: float) -> None:
    assert memory.bytes_of(model(name), weights(format_name)).best / 1e9 == pytest.approx(gb, abs=0.05)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama-3.1-70b", 327_680),
        ("qwen2.5-72b", 327_680),
        ("llama-3.1-8b", 131_072),
        ("qwen2.5-32b", 262_144),
        ("deepseek-v2", 69_120),
    ],
)
def test_cache_of_a_token_has_its_size(name: str, count: int) -> None:
    assert memory.cache_bytes(model(name)) == count


def test_cache_in_8_bits_is_half() -> None:
    assert memory.cache_bytes(model("llama-3.1-8b"), 1) == 65_536


def test_latent_cache_is_on_every_card_of_a_tensor_parallel_model() -> None:
    assert memory.cache_split(model("deepseek-v2"), Layout(2, 1)) == 1
    assert memory.cache_split(model("llama-3.1-70b"), Layout(2, 1)) == 2
    assert memory.cache_split(model("llama-3.1-70b"), Layout(16, 1)) == 8


def test_tensor_parallel_needs_whole_groups() -> None:
    assert memory.tensor_fault(model("llama-3.1-70b"), weights("awq"), 2) is None
    assert "padded" in (memory.tensor_fault(model("qwen2.5-72b"), weights("awq"), 2) or "")
    assert memory.tensor_fault(model("qwen2.5-72b"), weights("fp16"), 2) is None
    assert "64 heads" in (memory.tensor_fault(model("llama-3.1-70b"), weights("fp16"), 3) or "")


@pytest.mark.parametrize(
    ("start_us", "rate", "tokens", "ms"),
    [
        (25, 11, 1, 4.2),
        (8, 13, 1, 1.5),
        (8, 50, 1, 1.3),
        (25, 11, 2048, 490),
        (8, 13, 2048, 410),
        (8, 50, 2048, 109),
    ],
)
def test_all_reduce_takes_its_time(start_us: float, rate: float, tokens: int, ms: float) -> None:
    found = speed.all_reduce_s(model("llama-3.1-70b"), tokens, way(start_us, rate)).best * 1e3
    assert found == pytest.approx(ms, rel=0.026)


@pytest.mark.parametrize(
    ("name", "format_name", "tensor", "tok_s"),
    [
        ("llama-3.1-70b", "awq", 2, 47),
        ("llama-3.1-70b", "int8", 2, 25.8),
        ("llama-3.1-70b", "fp16", 2, 13.3),
        ("llama-3.1-8b", "fp16", 1, 58),
    ],
)
def test_bandwidth_sets_a_roof(name: str, format_name: str, tensor: int, tok_s: float) -> None:
    roof = speed.roof_tokens_s(model(name), weights(format_name), tensor, card().bandwidth.value * 1e9)
    assert roof == pytest.approx(tok_s, rel=0.01)


def test_decoding_of_a_70b_over_two_cards_is_where_others_estimate_it() -> None:
    step = speed.decode_s(
        model("llama-3.1-70b"), weights("awq"), Layout(2, 1), card(), speed.exchange("host")
    )
    assert 25 <= step.inverse().best <= 31
    assert step.inverse().high < speed.roof_tokens_s(model("llama-3.1-70b"), weights("awq"), 2, 936.2e9)


@pytest.mark.parametrize(
    "measured", parts().measured, ids=lambda one: f"{one.card} {one.model} {one.weights}"
)
def test_measured_decoding_lies_within_the_bounds(measured: object) -> None:
    """llama.cpp, which splits by layers, at a short context."""
    from sigd.bench.plan.catalogue import Measured

    assert isinstance(measured, Measured)
    step = speed.decode_s(
        model(measured.model),
        weights(measured.weights),
        Layout(1, measured.cards),
        card(measured.card),
        speed.exchange("host"),
    )
    rate = step.inverse()
    assert rate.low * 0.98 <= measured.decode.value <= rate.high * 1.02


def test_weights_in_host_memory_cost_their_time() -> None:
    bandwidth = exactly(936.2e9 * 0.6)
    host = speed.host_rate(3600)
    assert host == pytest.approx(57.6e9)
    two = speed.offloaded_s(44.7e9, 28e9, bandwidth.times(2), host).inverse()
    assert two.low <= 1.3 <= two.high
    one = speed.offloaded_s(17.8e9, 22e9, bandwidth, host).inverse()
    assert one.best == pytest.approx(1.7, rel=0.05)


def test_checkpoint_is_read_in_its_time() -> None:
    assert speed.load_s(39.8e9, exactly(7.3)).best == pytest.approx(5.5, abs=0.05)
    assert speed.load_s(39.8e9, exactly(3.0)).best == pytest.approx(13.3, abs=0.05)


def test_full_tuning_takes_16_bytes_a_parameter() -> None:
    found = training.full_bytes(memory.parameters(model("llama-2-7b")))
    assert found.best / 1e9 == pytest.approx(108, rel=0.005)
    assert found.high / 1e9 == pytest.approx(121, rel=0.005)


def test_adapters_take_16_bytes_each() -> None:
    assert training.adapters(model("llama-3.1-8b"), 16) == 41_943_040
    assert training.adapter_bytes(model("llama-3.1-8b"), 16) / 1e9 == pytest.approx(0.67, abs=0.005)


def test_qlora_of_a_70b_fits_two_cards() -> None:
    base = training.qlora_base_bytes(model("llama-3.1-70b")).best
    assert base / 1e9 == pytest.approx(36.4, abs=0.05)
    assert base / 2 / 1e9 == pytest.approx(18.2, abs=0.05)


def test_signal_network_is_small() -> None:
    assert training.network_parameters() == 83_203
    assert training.sample_flops() == pytest.approx(0.5e6, rel=0.01)
    assert training.sample_roof_s(card()) > 1e8


@pytest.mark.parametrize(("dc", "eta", "ac"), [(851, 0.92, 925), (1021, 0.89, 1147)])
def test_losses_come_on_top_of_the_rating(dc: float, eta: float, ac: float) -> None:
    assert power.ac_w(dc, eta) == pytest.approx(ac, abs=0.5)


def test_efficiency_is_that_of_the_standard_at_its_three_points() -> None:
    assert [power.efficiency(load) for load in (0.2, 0.5, 1.0)] == [0.90, 0.92, 0.89]
    assert power.efficiency(0.05) == 0.90
    assert power.efficiency(0.75) == pytest.approx(0.905)


def test_air_carries_the_heat_away() -> None:
    assert power.airflow_m3_h(925, 10) == pytest.approx(278, abs=0.5)
    assert power.airflow_m3_h(925, 10) * power.CFM_PER_M3_H == pytest.approx(164, abs=0.5)


@pytest.mark.parametrize(("mtu", "gbit_s"), [(1500, 9.41), (9000, 9.90)])
def test_payload_of_ten_gigabit_ethernet(mtu: int, gbit_s: float) -> None:
    assert links.payload_gbit_s(10, mtu) == pytest.approx(gbit_s, abs=0.006)


def test_slot_of_eight_lanes_carries_half_of_sixteen() -> None:
    assert links.link_gb_s(8, 4) == pytest.approx(15.75, abs=0.01)
    assert links.link_gb_s(4, 2) == 2.0


@pytest.mark.parametrize(("watts", "tok_s"), [(100, 18), (200, 83), (280, 99), (350, 103)])
def test_curve_goes_through_its_points(watts: float, tok_s: float) -> None:
    assert parts().curves["decode"].at(watts) == tok_s
