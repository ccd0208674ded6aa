"""The plan's memory against two estimators of other authors: parameters, bytes and cache within 2%."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sigd.bench.plan import memory
from sigd.bench.plan.catalogue import ModelPart, language_models
from sigd.bench.plan.memory import Layout

WITHIN = 0.02
REASON = "make test-oracles fetches it"
RIDGEPOINT = {"llama-3-8b": "llama-3.1-8b", "llama-3-70b": "llama-3.1-70b"}
DENSE = sorted(name for name, model in language_models().models.items() if model.kv_latent is None)


def model(name: str) -> ModelPart:
    return language_models().models[name]


def bytes_of(name: str, weights: str) -> float:
    return memory.bytes_of(model(name), language_models().weights[weights]).best


def architecture(name: str) -> Any:
    """The model as vramcalc reads it from a config.json."""
    arch = pytest.importorskip("vramcalc.arch", reason=REASON)
    part = model(name)
    return arch.Arch.from_config(
        {
            "model_type": "qwen2" if part.qkv_bias.value else "llama",
            "hidden_size": int(part.hidden.value),
            "num_hidden_layers": int(part.layers.value),
            "num_attention_heads": int(part.heads.value),
            "num_key_value_heads": int(part.kv_heads.value),
            "intermediate_size": int(part.intermediate.value),
            "vocab_size": int(part.vocabulary.value),
            "tie_word_embeddings": bool(part.tied.value),
        }
    )


def fitted(name: str, weights: str) -> Any:
    """What ridgepoint says of a model on two RTX 3090 under vLLM, with 4,096 tokens of context."""
    ridgepoint = pytest.importorskip("ridgepoint", reason=REASON)
    return json.loads(ridgepoint.fit(name, "rtx3090-24gb", count=2, dtype=weights, ctx=4096, as_json=True))


@pytest.mark.parametrize("name", DENSE)
def test_vramcalc_counts_the_same(name: str) -> None:
    formulas = pytest.importorskip("vramcalc.memory", reason=REASON)
    arch = architecture(name)
    assert arch.param_count() == pytest.approx(memory.parameters(model(name)), rel=WITHIN)
    assert formulas.weights(arch, 2) == pytest.approx(bytes_of(name, "fp16"), rel=WITHIN)
    cache = 3 * 4096 * memory.cache_bytes(model(name))
    assert formulas.kv_cache(arch, 3, 4096, 2) == pytest.approx(cache, rel=WITHIN)


@pytest.mark.parametrize("name", RIDGEPOINT)
@pytest.mark.parametrize("weights", ["fp16", "awq"])
def test_ridgepoint_counts_the_same(name: str, weights: str) -> None:
    found, ours = fitted(name, weights), RIDGEPOINT[name]
    assert found["model"]["params"] == pytest.approx(memory.parameters(model(ours)), rel=WITHIN)
    if name == "llama-3-70b" or weights == "fp16":
        # Of a small model it counts the 4-bit embeddings otherwise; these are checked for the large one.
        assert found["memory"]["weights_bytes"]["best"] == pytest.approx(bytes_of(ours, weights), rel=WITHIN)
    cache = 4096 * memory.cache_bytes(model(ours))
    assert found["capacity"]["bytes_per_seq"] == pytest.approx(cache, rel=WITHIN)


def test_overhead_lies_within_the_bounds_of_ridgepoint() -> None:
    """Of both cards together; it is not a formula there either, so within its bounds is enough."""
    found = fitted("llama-3-70b", "awq")["memory"]["overhead_bytes"]
    ours = memory.total(memory.overhead(model("llama-3.1-70b"), Layout(2))).times(2)
    assert found["low"] <= ours.best <= found["high"]
