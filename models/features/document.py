"""Print the reference of the features as Markdown:
`python -m sigd.models.features.document > docs/features.md`."""

from __future__ import annotations

from collections.abc import Iterator

from sigd.models.features.catalogue import EVEN, FAMILIES, FEATURE_COUNT, FEATURE_VERSION, WINDOWS, Family

_INTRODUCTION = """\
# The {count} features

Compute them from a market's events, as training, replay and the demo do:

    stream = FeatureStream()              # sigd.models.features
    for event in read_capture(path):      # sigd.models.market.capture
        if stream.on_event(event):        # True: this event is a sample
            send(stream.features)         # float32[{count}], overwritten by the next sample

Version {version}. `python -m sigd.models.features.document > docs/features.md` prints this page from the catalogue;
`pytest tests/models/features/test_features_speed.py --benchmark-enable` times an event.

## When a sample is taken

At every quote (change of the best bid or ask, in price or size) and every trade, in the order they were received, once

- the order book is synchronised: a depth snapshot, and an unbroken chain of depth messages since; and
- the warm-up time has passed since the first quote, by default the longest window ({longest}).

Depth messages update the book and give no sample. Where one is missing, no sample is taken until the next snapshot;
`book_breaks` counts that. Impossible quotes and trades (a bid not below the ask, a price or size not above 0) are left out;
`events_ignored` counts them.

## What holds for all of them

- Prices count in ticks or basis points, sizes relative to other sizes, so that a model of one instrument can be tried on
  another. The tick is given, or the greatest common divisor of the first snapshot's prices.
- Each is finite, clipped to its bounds, and never denormal: 0, or a quotient, root or logarithm of integers.
- Windows are {windows}. A window W holds the events received in (now - W, now], the present one included.
- Sums over windows are integers, kept by adding and subtracting: the same events give the same bits.
- Mirror: exchanging the market's sides (bids and asks, buyers and sellers, up and down) changes the sign of the features
  marked "-" and leaves those marked "+".
- Only receive times of one clock are used, no exchange times.

## Symbols

P and q: a price and the size resting there; b: the best bid, a: the best ask; tick: the price step. Mid m = (Pb + Pa) / 2.
A sum over W runs over the window's events; ' marks the value at now - W. s, p, q of a trade: its side (+1 where the buyer
took), price and size. A quotient whose divisor is 0 counts as 0, unless it says otherwise. ln is natural, us are
microseconds, and 1[c] is 1 where c holds.
"""


def document() -> str:
    """The page."""
    introduction = _INTRODUCTION.format(
        count=FEATURE_COUNT,
        version=FEATURE_VERSION,
        longest=WINDOWS[-1][0],
        windows=", ".join(name for name, _ in WINDOWS),
    )
    sections = []
    number = 0
    for family in FAMILIES:
        sections.append("\n".join(_section(family, number)))
        number += len(family.features)
    return "\n\n".join((introduction.rstrip("\n"), *sections)) + "\n"


def _section(family: Family, number: int) -> Iterator[str]:
    yield f"## {family.title}\n\n{family.source}\n"
    yield "| # | name | formula | bounds | mirror |"
    yield "| --- | --- | --- | --- | --- |"
    for place, feature in enumerate(family.features, start=number):
        formula = feature.formula.replace("|", "\\|")
        mirror = "+" if feature.mirror == EVEN else "-"
        yield f"| {place} | `{feature.name}` | {formula} | {feature.lower:g} to {feature.upper:g} | {mirror} |"


if __name__ == "__main__":
    print(document(), end="")
