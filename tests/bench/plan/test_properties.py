"""What holds for every machine: more cards never fit less, more context never needs less, a verdict follows
the cap."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from sigd.bench.plan import memory, power, serving, training
from sigd.bench.plan.catalogue import language_models, parts
from sigd.bench.plan.machine import Battery, Card, Machine, Sigd, Supply, Work
from sigd.bench.plan.plan import make
from sigd.bench.plan.serving import ORDER

MODELS = st.sampled_from(sorted(language_models().models))
FORMATS = st.sampled_from(sorted(language_models().weights))
CARDS = st.sampled_from(sorted(parts().cards))
TOKENS = st.integers(1, 200_000)
SEQUENCES = st.integers(1, 64)


def machine_of(cards: list[str], *, sigd: bool = False, limit_w: float | None = None) -> Machine:
    return Machine(
        name="any",
        cards=tuple(Card(model=card, limit_w=limit_w) for card in cards),
        sigd=Sigd(card=0) if sigd else None,
    )


@given(
    name=MODELS, weights=FORMATS, cards=st.lists(CARDS, min_size=2, max_size=5),
    tokens=TOKENS, sequences=SEQUENCES,
    kept=st.integers(1, 4), sigd=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_more_cards_never_fit_less(
    name: str, weights: str, cards: list[str], tokens: int, sequences: int, kept: int, sigd: bool
) -> None:
    machine = machine_of(cards, sigd=sigd)
    fewer = Work(
        name="w", kind="serve", model=name, weights=weights, cards=tuple(range(min(kept, len(cards) - 1))),
        context_tokens=tokens, sequences=sequences,
    )  # fmt: skip
    more = msgspec.structs.replace(fewer, cards=tuple(range(len(cards))))
    assert ORDER.index(serving.fit(machine, more).level) <= ORDER.index(serving.fit(machine, fewer).level)


@given(
    name=MODELS, weights=FORMATS, count=st.integers(1, 4), tokens=TOKENS, added=TOKENS, sequences=SEQUENCES
)
@settings(max_examples=40, deadline=None)
def test_more_context_never_needs_less(
    name: str, weights: str, count: int, tokens: int, added: int, sequences: int
) -> None:
    model, weight = language_models().models[name], language_models().weights[weights]
    for layout in memory.layouts(model, weight, count):
        little = memory.total(memory.serving_need(model, weight, layout, tokens * sequences, 2))
        much = memory.total(memory.serving_need(model, weight, layout, (tokens + added) * sequences, 2))
        assert (much.low, much.best, much.high) > (little.low, little.best, little.high)
    machine = machine_of(["RTX 3090"] * count)
    short = Work(
        name="w", kind="serve", model=name, weights=weights, cards=tuple(range(count)),
        context_tokens=tokens, sequences=sequences,
    )  # fmt: skip
    long = msgspec.structs.replace(short, context_tokens=tokens + added)
    assert ORDER.index(serving.fit(machine, long).level) >= ORDER.index(serving.fit(machine, short).level)


@given(
    count=st.integers(1, 4),
    low=st.integers(100, 350),
    added=st.integers(0, 250),
    rating=st.integers(500, 2000),
    battery=st.integers(300, 2000),
    standard=st.sampled_from(["atx2", "atx3"]),
)
@settings(max_examples=40, deadline=None)
def test_power_verdicts_are_monotone_in_the_cap(
    count: int, low: int, added: int, rating: int, battery: int, standard: str
) -> None:
    def levels(limit_w: float | None) -> list[int]:
        machine = msgspec.structs.replace(
            machine_of(["RTX 3090"] * count, limit_w=limit_w),
            supply=Supply(rating_w=rating, standard=standard),  # type: ignore[arg-type]
            battery=Battery(rating_w=battery),
            processor="Ryzen 9 5900X",
        )
        return [ORDER.index(one.level) for one in make(machine).verdicts if one.area == "power"]

    lower, higher, none = levels(low), levels(low + added), levels(None)
    assert len(lower) == 3
    assert all(left <= right for left, right in zip(lower, higher, strict=True))
    assert all(left <= right for left, right in zip(higher, none, strict=True))


@given(
    low=st.floats(50, 400), added=st.floats(0, 300), curve=st.sampled_from(sorted(parts().curves)), card=CARDS
)
@settings(max_examples=40, deadline=None)
def test_a_higher_cap_is_never_slower(low: float, added: float, curve: str, card: str) -> None:
    from sigd.bench.plan.speed import limit_share

    part = parts().cards[card]
    left, right = limit_share(curve, part, low), limit_share(curve, part, low + added)
    assert 0 < left <= right <= 1


@given(
    kind=st.sampled_from(["lora", "qlora", "full"]),
    name=MODELS,
    cards=st.integers(1, 7),
    rows=st.integers(1, 16),
)
@settings(max_examples=40, deadline=None)
def test_training_over_more_cards_needs_less_of_each(kind: str, name: str, cards: int, rows: int) -> None:
    model = language_models().models[name]
    fewer = memory.total(training.tuning_need(kind, model, cards, rows, 1024, 16))
    more = memory.total(training.tuning_need(kind, model, cards + 1, rows, 1024, 16))
    assert more.high < fewer.high


@given(rating=st.integers(800, 2000), battery=st.integers(700, 2000), count=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_cap_that_is_advised_fits(rating: int, battery: int, count: int) -> None:
    machine = msgspec.structs.replace(
        machine_of(["RTX 3090"] * count), supply=Supply(rating_w=rating), battery=Battery(rating_w=battery)
    )
    cap = power.highest_cap_w(machine)
    if cap is None:
        machine = power.with_limit(machine, power.CAP_MIN_W)
        assert any(one.area == "power" and one.level != "fits" for one in make(machine).verdicts)
        return
    fitted = power.with_limit(machine, cap)
    assert all(one.level == "fits" for one in make(fitted).verdicts if one.area == "power")
