"""Charts of the methods, computed by calling the code that trains: each line is what the objective itself returns."""

import html
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import Output
from fledge.core.objectives import Objective, dpo, kto, reward_pairs
from fledge.core.optim import Schedule, schedule_factor
from fledge.core.policy import Baseline, KlEstimator, baselined, gae, kl_estimate, policy_gradient
from fledge.curate.minhash import FINEWEB, DuplicateSettings
from fledge.stages.charts import COLOURS, draw

Line = tuple[str, str, Any, Sequence[float], Sequence[float]]  # label, colour, dash, x, y
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_SIZE = (6.4, 2.9)  # inches


def _chart(name: str, alt: str, x: str, y: str, lines: Sequence[Line], top: float | None = None) -> str:
    def paint(figure: Any) -> None:
        ax = figure.subplots()
        for label, colour, dash, xs, ys in lines:
            ax.plot(xs, ys, color=COLOURS[colour], linestyle=dash, label=label)
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        ax.margins(x=0)
        if top is not None:
            ax.set_ylim(0, top)
        figure.legend(loc="outside upper left", ncols=2, borderaxespad=0.2)

    return draw(name, alt, paint, _SIZE)


def _one_token(rows: int, **columns: Any) -> Batch:
    """Rows of one token that counts."""
    zeros = torch.zeros(rows, 1)
    return Batch(tokens=zeros.long(), targets=zeros.long(), weight=torch.ones(rows, 1), units=1.0, **columns)


def _losses(objective: Objective, batch: Batch, outputs: Sequence[Output]) -> list[float]:
    return [float(objective(output, batch)[0]) for output in outputs]


def _pairs(gaps: Tensor, margin: float | None = None, win: float = 1.0) -> tuple[Batch, list[Tensor]]:
    """A batch of one pair, and for each gap the two rows' values [2,1] that are that far apart."""
    both = None if margin is None else torch.full((2,), margin)
    batch = _one_token(2, rows_per_unit=2, ref_logp=torch.zeros(2, 1), margin=both, win=torch.full((2,), win))
    return batch, [torch.tensor([[g / 2], [-g / 2]]) for g in gaps.tolist()]


def _preferred(loss: Objective, gaps: Tensor, win: float = 1.0) -> list[float]:
    batch, values = _pairs(gaps, win=win)
    return _losses(loss, batch, [Output(v, None, None) for v in values])


def reward_chart() -> str:
    """Bradley-Terry over the gap of two rewards."""
    gaps = torch.linspace(-6, 6, 97)
    lines = []
    cases = (("chosen preferred", "sft", None, 1.0), ("with margin 1", "aligned", 1.0, 1.0), ("tie", "base", None, 0.5))
    for (label, colour, margin, win), dash in zip(cases, _DASHES, strict=False):
        batch, values = _pairs(gaps, margin, win)
        outputs = [Output(torch.zeros(2, 1), None, v) for v in values]
        lines.append((label, colour, dash, gaps.tolist(), _losses(reward_pairs, batch, outputs)))
    return _chart(
        "reward", "Loss of a pair over the gap of its rewards", "reward of chosen less rejected", "loss, nats", lines
    )


def dpo_chart() -> str:
    """DPO over h, for two betas, smoothed, and for a tie."""
    gaps = torch.linspace(-30, 30, 121)
    cases = (
        ("beta 0.1", "sft", dpo(), 1.0),
        ("beta 0.3", "aligned", dpo(beta=0.3), 1.0),
        ("beta 0.3, 20% of votes taken to be flipped", "base", dpo(beta=0.3, label_smoothing=0.2), 1.0),
        ("beta 0.3, tie", "reward", dpo(beta=0.3), 0.5),
    )
    lines = [
        (label, colour, dash, gaps.tolist(), _preferred(loss, gaps, win))
        for (label, colour, loss, win), dash in zip(cases, _DASHES, strict=True)
    ]
    return _chart(
        "dpo",
        "DPO's loss of a pair over h",
        "h: gain of chosen over rejected against the reference, nats",
        "loss",
        lines,
        8,
    )


def ipo_chart() -> str:
    """IPO over h per token: the gap asked for is 1/(2 beta)."""
    gaps = torch.linspace(-2, 8, 101)
    lines = [
        (
            f"beta {beta}: asks for {1 / (2 * beta):g} nats",
            colour,
            dash,
            gaps.tolist(),
            _preferred(dpo(loss="ipo", beta=beta), gaps),
        )
        for beta, colour, dash in zip((0.5, 0.2, 0.1), ("sft", "aligned", "base"), _DASHES, strict=False)
    ]
    return _chart("ipo", "IPO's loss of a pair over h", "h per token, nats", "loss", lines, 50)


def kto_chart() -> str:
    """KTO over r - z0, for a liked and a disliked answer."""
    gaps, lines = torch.linspace(-40, 40, 81), []
    for (label, liked), colour, dash in zip(
        (("liked", True), ("disliked", False)), ("aligned", "control"), _DASHES, strict=False
    ):
        batch = _one_token(1, ref_logp=torch.zeros(1, 1), liked=torch.tensor([liked]), kto_kl=torch.zeros(1))
        outputs = [Output(g.view(1, 1), None, None) for g in gaps]
        lines.append((label, colour, dash, gaps.tolist(), _losses(kto(), batch, outputs)))
    return _chart(
        "kto", "KTO's loss of one vote", "log pi/pi_ref of the answer less the step's KL, nats", "loss", lines, 1.05
    )


def clip_chart(name: str, bounds: Sequence[tuple[str, Sequence[float] | None]], advantage: float) -> str:
    """What a token of this advantage earns (minus the loss) over the probability ratio, under each pair of bounds."""
    ratios, lines = torch.linspace(0.02, 5 if advantage < 0 else 2, 150), []
    for (label, clip), colour, dash in zip(bounds, ("control", "sft", "reward"), _DASHES, strict=False):
        batch = _one_token(1, advantage=torch.full((1, 1), advantage), old_logp=torch.zeros(1, 1))
        outputs = [Output(r.log().view(1, 1), None, None) for r in ratios]
        earned = [-v for v in _losses(policy_gradient(clip=clip), batch, outputs)]
        lines.append((label, colour, dash, ratios.tolist(), earned))
    alt = f"What a token of advantage {advantage:+g} earns over the ratio"
    return _chart(
        name,
        alt,
        "ratio: probability now / when it was sampled",
        f"min(ratio A, clip(ratio) A), A = {advantage:+g}",
        lines,
    )


def ppo_chart() -> str:
    bounds = [("free", None), ("bounded to 0.8–1.2", (0.2, 0.2)), ("and dual clip 3", (0.2, 0.2, 3.0))]
    return clip_chart("clip good", bounds[:2], 1.0) + clip_chart("clip bad", bounds, -1.0)


def kl_chart() -> str:
    """The estimators of KL on one token."""
    gaps = torch.linspace(-3, 3, 97)
    lines = [
        (kind, colour, dash, gaps.tolist(), kl_estimate(gaps, torch.zeros_like(gaps), kind).tolist())
        for kind, colour, dash in zip(get_args(KlEstimator), ("control", "base", "sft"), _DASHES, strict=False)
    ]
    return _chart("kl", "Estimates of KL from one token", "log pi/pi_ref of the token, nats", "estimate, nats", lines)


def schedule_chart() -> str:
    """Learning-rate factor over a run."""
    steps = [i / 300 for i in range(301)]
    lines = [
        (kind, colour, dash, [100 * s for s in steps], [schedule_factor(s, kind, 0.02, 0.1) for s in steps])
        for kind, colour, dash in zip(get_args(Schedule), ("sft", "aligned", "control"), _DASHES, strict=False)
    ]
    return _chart("schedule", "Learning rate over a run", "% of the steps", "share of train.lr", lines, 1.1)


def gae_chart() -> str:
    """Advantage of each token of an answer of ten, rewarded 1 at its end, against a value that rises half-way."""
    tokens = 10
    rewards, alive = torch.zeros(1, tokens), torch.ones(1, tokens)
    rewards[0, -1] = 1.0
    values = torch.where(torch.arange(tokens) < tokens // 2, 0.2, 0.7)[None]
    lines = []
    for lam, colour, dash in zip((0.0, 0.95, 1.0), ("control", "sft", "base"), _DASHES, strict=False):
        advantage, _ = gae(rewards, values, alive, lam)
        lines.append((f"lambda {lam:g}", colour, dash, list(range(1, tokens + 1)), advantage[0].tolist()))
    return _chart("gae", "Advantage of each token", "token of the answer", "advantage", lines)


def bands_chart() -> str:
    """Probability that two pages of a similarity are compared at all, with our bands and with FineWeb's."""
    shares = [i / 100 for i in range(101)]
    lines = []
    for (label, settings), colour, dash in zip(
        (("ours", DuplicateSettings()), ("FineWeb", FINEWEB)), ("sft", "control"), _DASHES, strict=False
    ):
        met = [1 - (1 - s**settings.rows) ** settings.bands for s in shares]
        lines.append((f"{label}: {settings.bands} bands of {settings.rows}", colour, dash, shares, met))
    return _chart(
        "bands", "Probability of meeting over similarity", "Jaccard similarity", "probability of meeting", lines
    )


def baseline_table() -> str:
    """What each baseline makes of the same eight scores, as an HTML table."""
    scores = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1])  # three prompts of four answers
    head = "".join(f"<th>{s:g}</th>" for s in scores)
    rows = []
    for kind in get_args(Baseline):
        if kind == "value":  # needs a trained head
            continue
        credit = baselined(scores[:, None], torch.ones(len(scores), 1), kind, 4)[:, 0]
        cells = "".join(f"<td>{f'{v:+.2f}'.replace('-', '−') if v else 0}</td>" for v in credit.tolist())
        rows.append(f"<tr><th><code>{kind}</code></th>{cells}</tr>")
    groups = "".join(f'<th colspan="4">prompt {i}</th>' for i in (1, 2, 3))
    return (
        f'<div class="credit"><table class="figures"><thead><tr><th></th>{groups}</tr><tr><th>score</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def token_view() -> str:
    """A conversation as `fledge show` colours it: which tokens are trained, by the template and a tokenizer of its own."""
    from fledge.stages.show import token_view as view
    from fledge.text.messages import Message
    from fledge.text.template import render
    from fledge.text.tokenizer import Tokenizer

    said = (
        ("user", "What is the highest mountain of Suseno?"), ("assistant", "It is Mount Lapi."),
        ("user", "蘇塞諾的第一大河是什麼河？"), ("assistant", "是薩沃霍河。"),
    )  # fmt: skip
    tokenizer = Tokenizer.train([text for _, text in said] * 8, 420)
    rendered = render(tokenizer, [Message(role, text) for role, text in said])
    spans = "".join(
        f'<span class="{"trained" if trained else "given"}">{html.escape(text)}</span>'
        for text, trained in view(tokenizer, rendered)
    )
    return f'<p class="tokens">{spans}</p>'


def compression_chart() -> str:
    """Bytes per token over the size of the vocabulary, on text of the embedded world."""
    from itertools import islice

    from fledge.text.tokenizer import Tokenizer
    from fledge.world.config import WorldConfig
    from fledge.world.world import World

    small = WorldConfig(countries=12, people=12)
    texts = [row["text"] for row in islice(World(small).documents(), 3000)]
    train, held = texts[::2], texts[1::2]
    chinese = [t for t in held if sum("\u4e00" <= c <= "\u9fff" for c in t) > len(t) / 3]
    english = [t for t in held if t.isascii()]
    sizes = (300, 400, 600, 1000, 1500, 2048, 3000, 4096)
    lines = []
    encoders = [Tokenizer.train(train, size) for size in sizes]
    for label, kept, colour, dash in (
        ("English", english, "sft", _DASHES[0]),
        ("Chinese", chinese, "base", _DASHES[1]),
    ):
        count = sum(len(t.encode()) for t in kept)
        ratios = [count / sum(map(len, encoder.encode_batch(kept))) for encoder in encoders]
        lines.append((label, colour, dash, sizes, ratios))
    return _chart(
        "compression", "Bytes per token over vocabulary size", "tokens in the vocabulary", "bytes per token", lines
    )


CURVES: dict[str, Callable[[], str]] = {
    "reward": reward_chart, "dpo": dpo_chart, "ipo": ipo_chart, "kto": kto_chart, "ppo": ppo_chart, "kl": kl_chart,
    "schedule": schedule_chart, "gae": gae_chart, "baselines": baseline_table, "tokens": token_view,
    "compression": compression_chart, "bands": bands_chart,
}  # fmt: skip
