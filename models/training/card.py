"""The model card, written from the figures of the run and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from sigd.models.training.fit import HIDDEN
from sigd.models.training.measure import Evaluation, Gain
from sigd.models.training.outcome import CLASSES
from sigd.models.training.run import FLAT_NAME, LOGISTIC_NAME, NETWORK_NAME, Report
from sigd.models.training.split import HELD_OUT_FROM, VALIDATION_FROM

_PREDICTORS = (NETWORK_NAME, LOGISTIC_NAME, FLAT_NAME)


def card(report: Report) -> str:
    """The card as Markdown."""
    sections = (
        _introduction(report),
        _verdict(report),
        _data(report),
        _scores(report),
        _held_out(report),
        _training(report),
        _limits(),
    )
    return "\n\n".join(sections) + "\n"


def summary(report: Report) -> Table:
    """The scores as a table for the terminal."""
    table = Table(title="log-loss (nats) / balanced accuracy; lower / higher is better")
    table.add_column("samples of", overflow="fold")
    table.add_column("number", justify="right")
    for predictor in _PREDICTORS:
        table.add_column(predictor, justify="right")
    for evaluation in report.evaluations:
        scores = [
            f"{evaluation.scores[name].log_loss:.4f} / {evaluation.scores[name].balanced_accuracy:.3f}"
            for name in _PREDICTORS
        ]
        table.add_row(evaluation.name, f"{evaluation.samples:,}", *scores)
    return table


def verdict(gain: Gain, other: str) -> str:
    """What the interval of a gain over another predictor says, in words."""
    if gain.low > 0:
        return f"better than {other}"
    if gain.high < 0:
        return f"worse than {other}"
    return f"not to be told from {other}"


def _introduction(report: Report) -> str:
    widths = "-".join(str(width) for width in (64, *HIDDEN, 3))
    return f"""\
# lob-mlp

Down, flat or up: where the mid of an order book will be {_ms(report.outcome.horizon_ns)} from now, for each quote and
each trade. A {widths} perceptron with ReLU in {report.model_bytes:,} bytes of ONNX
(SHA-256 `{report.model_sha256}`); input `features` float32
[batch, 64] as `docs/features.md` lists them (version {report.feature_version}), output `logits` float32 [batch, 3] in
the order {", ".join(CLASSES)}. Softmax of the logits gives probabilities.

It is here so that the daemon can be tried and measured with a model of realistic size on real features. It was trained
on minutes of one instrument. Do not trade on it.

This card is written by the training run: `make train`. So are all its figures."""


def _verdict(report: Report) -> str:
    lines = []
    for evaluation in report.evaluations:
        words = [verdict(gain, _ARTICLES[other] + other) for other, gain in evaluation.gains.items()]
        lines.append(f"- {evaluation.name}: {', '.join(words)}.")
    first = report.evaluations[0]
    logistic, flat = first.gains[LOGISTIC_NAME], first.gains[FLAT_NAME]
    moves = {call.name: call.mean_move_bps for call in report.calls}
    return f"""\
## In short

By log-loss, with 95% intervals over blocks of time, the network is

{chr(10).join(lines)}

On the held-out part its log-loss is lower than that of always flat by {_gain(flat)} nats, and than that of the logistic
regression by {_gain(logistic)} nats. Its balanced accuracy is {first.scores[NETWORK_NAME].balanced_accuracy:.3f} over all
samples and {first.apart[NETWORK_NAME].balanced_accuracy:.3f} over samples a horizon apart. Where it says down or up the mid
then moves {moves["down"]:+.3f} or {moves["up"]:+.3f} bps on average, before any cost: that is the whole edge, and the fees
of taking liquidity are commonly larger."""


_ARTICLES = {LOGISTIC_NAME: "a ", FLAT_NAME: ""}


def _data(report: Report) -> str:
    outcome = report.outcome
    rows = [
        (
            part.name,
            f"{part.samples:,}",
            f"{part.seconds:.1f}",
            *(f"{share:.3f}" for share in part.shares),
        )
        for part in report.parts
    ]
    return f"""\
## Data and split

Capture: `{report.capture}`, every quote and trade once the features are warm. Split by time, not by sample:

{_table(("part", "samples", "seconds", *CLASSES), rows)}

- The first {HELD_OUT_FROM:.0%} of the time trains; of that the last stretch (from {VALIDATION_FROM:.0%} on) only decides
  when to stop. The rest is held out.
- Before each edge {report.gap_ns / 1e9:g} s of samples are left out: the horizon and the longest feature window. No market
  event is seen by the samples of two parts.
- Horizon and threshold were chosen on the training part alone, by class balance: {_ms(outcome.horizon_ns)} is the
  shortest of a fixed ladder at which no class is a majority; flat is a move of at most {outcome.flat_bps:g} bps.
- Means and scales of the features were fitted on the training part and folded into the first layer.
- Other captures were never trained on. Those of the same minutes are also scored on the held-out minutes alone, because
  markets move together."""


def _scores(report: Report) -> str:
    def rows(evaluations: Iterable[Evaluation]) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for evaluation in evaluations:
            for name in _PREDICTORS:
                score, apart = evaluation.scores[name], evaluation.apart[name]
                gain = evaluation.gains.get(name)
                found.append(
                    (
                        evaluation.name if name == NETWORK_NAME else "",
                        f"{evaluation.samples:,}" if name == NETWORK_NAME else "",
                        name,
                        f"{score.log_loss:.4f}",
                        f"{score.balanced_accuracy:.3f}",
                        _gain(gain) if gain else "",
                        f"{apart.log_loss:.4f}",
                        f"{apart.balanced_accuracy:.3f}",
                    )
                )
        return found

    header = (
        "samples of",
        "number",
        "predictor",
        "log-loss",
        "balanced accuracy",
        "the network's gain, nats",
        "log-loss, apart",
        "balanced accuracy, apart",
    )
    numbers = ", ".join(f"{evaluation.samples_apart:,}" for evaluation in report.evaluations)
    return f"""\
## Scores

Log-loss in nats, lower is better. Balanced accuracy: the mean share of each class that is recognised; always the same
class gives 1/3. Always flat is the class shares of the training part. The logistic regression has the same features,
samples and stopping rule. Gains carry 95% intervals from a bootstrap over blocks of 5 s.

{_table(header, rows(report.evaluations))}

"Apart": samples at least a horizon from each other, so that no outcome counts twice ({numbers} of them). Samples come
in bursts that share one outcome; these columns weigh quiet times like busy ones and are the sterner test."""


def _held_out(report: Report) -> str:
    first = report.evaluations[0]
    call_rows = [
        (
            f"said {call.name}",
            f"{call.share:.3f}",
            *(f"{count:,}" for count in call.recognised),
            f"{call.mean_move_bps:+.3f}",
        )
        for call in report.calls
    ]
    bins = [
        (
            f"{found.low:.1f} to {found.high:.1f}",
            f"{found.predictions:,}",
            f"{found.predicted:.3f}",
            f"{found.observed:.3f}",
        )
        for found in report.calibration
    ]
    late = first.late
    return f"""\
## The held-out part in detail

{_table(("", "share", *(f"was {name}" for name in CLASSES), "mean move after, bps"), call_rows)}

Probabilities of down and of up, and how often they came true:

{_table(("predicted", "predictions", "mean", "came true"), bins)}

Counted from the mid 1 ms after the sample, as a trader who reacts that late would find it, the log-loss is
{late.log_loss:.4f} and the balanced accuracy {late.balanced_accuracy:.3f}: within a burst part of the move that is
predicted happens in the next microseconds."""


def _training(report: Report) -> str:
    recipe = report.recipe
    rows = [
        (
            str(seed.seed),
            str(seed.epoch),
            f"{seed.validation_loss:.4f}",
            f"{seed.held_out.log_loss:.4f}",
            f"{seed.held_out.balanced_accuracy:.3f}",
        )
        for seed in report.seeds
    ]
    return f"""\
## Training

Each sample is seen with its mirror image (sides of the market exchanged, down and up exchanged), so that the drift of the
training minutes is not learnt. AdamW, learning rate {recipe.learning_rate:g}, weight decay {recipe.weight_decay:g}, dropout
{recipe.dropout:g} on the features and the hidden layers, batches of {recipe.batch_rows:,}, at most {recipe.epochs_max}
passes, stopped after {recipe.patience} without a lower validation loss. These were chosen by the validation loss, by hand; scores on the
held-out part were seen while features and recipe took shape, so they are not those of a blind test. The shipped weights
are those of seed {report.seed}, whatever the other seeds gave:

{_table(("seed", "passes", "validation log-loss", "held-out log-loss", "held-out balanced accuracy"), rows)}

Throughput: {report.samples_per_s:,.0f} samples/s at batch {recipe.batch_rows:,} (forward, backward and step; PyTorch
{report.torch_version}, {_where(report)}).

The ONNX reference evaluator and ONNX Runtime agree with the trained network within {report.error_max:.1e} on every logit.
On one machine the same seed gives the same file, byte for byte."""


def _where(report: Report) -> str:
    """What the network was fitted on."""
    if report.device != "cpu":
        return f"{report.device}, {report.machine}"
    return f"{report.threads} thread{'s' if report.threads > 1 else ''}, {report.machine}"


def _limits() -> str:
    return """\
## Limits

- A few minutes of one day hold few independent moves of the mid, whatever the number of samples: the intervals above say
  how few. Another day may look nothing like it.
- No fee, no queue position, no latency of one's own and no market impact is considered.
- Times are those of one collector. Where it received messages in bursts, a live feed may not."""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _gain(gain: Gain) -> str:
    return f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"


def _ms(duration_ns: int) -> str:
    return f"{duration_ns / 1e6:g} ms"
