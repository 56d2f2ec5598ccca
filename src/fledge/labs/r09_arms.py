"""The arms of R9: what each trains, from which start, and what is measured of it (see `r09_credit`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fledge.core.config import TrainConfig
from fledge.core.log import read_jsonl
from fledge.core.model import Shape
from fledge.generate.sampling import Sampling
from fledge.generate.scoring import Asked, score
from fledge.labs.bench import Bench
from fledge.labs.worlds import Asked as AskedOf
from fledge.probe.shift import shifts
from fledge.stages import pretrain, reinforce, sft
from fledge.stages.best_of_n import answer_pool
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import messages_of, sample_of
from fledge.stages.observer import Looking, Questions
from fledge.stages.rewarding import open_rewards
from fledge.tasks.base import Example, Task, answered
from fledge.tasks.poem import Poem
from fledge.tasks.teach import Teach, near_misses, positional_distance
from fledge.tasks.worked import WorkedSums, worked
from fledge.text.template import render_prompt
from fledge.world import World, WorldConfig
from fledge.world.dice import Dice

_TEACH_TOKENS, _SUM_TOKENS = 32, 40  # longest answers
_GROUP = 8


def _train(steps: int | None, lr: float, seed: int, **more: Any) -> TrainConfig:
    return TrainConfig(steps=steps, lr=lr, weight_decay=0.0, seed=seed, **{"batch_tokens": 1024, **more})


def _taught(
    bench: Bench, name: str, parent: Path | str, chats: list[Any], train: TrainConfig, epochs: float = 4.0
) -> Path:
    """SFT on these conversations."""
    rows = bench.write(name, [{"messages": chat} for chat in chats])
    recipe = sft.SftRecipe(out=bench.out(name), parent=str(parent), chats=[rows], epochs=epochs, train=train)
    return sft.run(recipe, quiet=True)


def _rewarded(
    bench: Bench, name: str, parent: Path | str, called: str, task: Task, train: TrainConfig, answers: int, **more: Any
) -> Path:
    """Policy gradients on the task's own score, `answers` sampled at each update. called: the task's name."""
    recipe = reinforce.ReinforceRecipe(
        out=bench.out(name), parent=str(parent), task=called, reward=["task"], prompts_per_update=answers // _GROUP,
        group_size=_GROUP, train=train, **{"kl": "measure", **more},
    )  # fmt: skip

    def ask_about(recipe: reinforce.ReinforceRecipe, opened: Parent) -> Questions:
        return reinforce.fitting(recipe, opened, task, open_rewards(["task"], task), most=60)

    return reinforce.run(recipe, quiet=True, ask_about=ask_about, looking=Looking(times=1))


def accuracy(opened: Parent, task: Task, asked: Sequence[Example], samples: int, tokens: int, seed: int) -> float:
    """Share of sampled answers (temperature 1) that are right."""
    pool = answer_pool(opened, asked, samples, Sampling(temperature=1.0, max_tokens=tokens, seed=seed))
    return float(np.mean([[task.score(e, a) for a in answers] for e, answers in zip(asked, pool, strict=True)]))


def nll(opened: Parent, asked: Sequence[Example], answers: Sequence[str]) -> list[float]:
    """-log p of each answer with its end, teacher-forced, in nats per token."""
    tokenizer = opened.tokenizer
    rows = [[*tokenizer.encode(a), tokenizer.end] for a in answers]
    prompts = [render_prompt(tokenizer, messages_of(e)) for e in asked]
    scored = score(opened.model, [Asked(p, r) for p, r in zip(prompts, rows, strict=True)])
    return [-s.logp / len(r) for s, r in zip(scored, rows, strict=True)]


# --- one token turns the meaning round ------------------------------------------------------------------------------


def meaning(setup: Any, bench: Bench) -> dict[str, Any]:
    """SFT on references stopped at several steps, and GRPO on what answers mean: errors of meaning, -log p of references."""
    task = Teach()
    train, test = task.examples("train"), task.examples("test")
    chats = [answered(e, e.answers[0]) for e in train]

    def told(path: Path) -> dict[str, float]:
        opened = open_model(path)
        return {
            "error": 1 - accuracy(opened, task, test, 4, _TEACH_TOKENS, bench.seed),
            "nll": float(np.mean(nll(opened, test, [e.answers[0] for e in test]))),
        }

    paths = {
        steps: _taught(
            bench, f"teach-{steps}", bench.journey() / "base", chats, _train(steps, setup.teach_lr, bench.seed)
        )
        for steps in setup.teach_steps
    }
    tuned = _rewarded(
        bench, "teach-rewarded", paths[setup.teach_from], "teach", task,
        _train(setup.teach_updates, setup.teach_rl_lr, bench.seed, schedule="constant", batch_tokens=65536),
        setup.answers, method="grpo", max_tokens=_TEACH_TOKENS, cut_penalty=0.0, kl="loss", kl_coefficient=setup.teach_kl,
    )  # fmt: skip
    last = open_model(paths[max(paths)])
    return {
        "curve": [{"steps": steps, **told(path)} for steps, path in paths.items()],
        "tuned": told(tuned),
        "triples": _table(last, task, test, setup.triples, bench.seed),
    }


def _table(opened: Parent, task: Teach, test: Sequence[Example], count: int, seed: int) -> dict[str, Any]:
    """Of so many triples the share in which the wrong answer comes before the right one, by each measure."""
    triples = sample_of(near_misses(test, seed), count, seed)
    asked = [t.example for t in triples]
    near, far = (
        [positional_distance(text, t.reference, t.example.language) for t, text in zip(triples, texts, strict=True)]
        for texts in ([t.wrong for t in triples], [t.right for t in triples])
    )
    by_nll = [nll(opened, asked, texts) for texts in ([t.wrong for t in triples], [t.right for t in triples])]
    reward = [(task.score(t.example, t.wrong), task.score(t.example, t.right)) for t in triples]
    return {
        "count": len(triples),
        "distance": float(np.mean([a < b for a, b in zip(near, far, strict=True)])),
        "nll": float(np.mean([a < b for a, b in zip(*by_nll, strict=True)])),
        "reward": float(np.mean([a >= b for a, b in reward])),
        "places": [float(np.mean(near)), float(np.mean(far))],
    }


# --- the teacher's method and one's own -----------------------------------------------------------------------------


def own_method(setup: Any, bench: Bench) -> dict[str, Any]:
    """Sums: a start that works them out with slips, then the labels spent in four ways, with the same number of updates."""
    task, seed = WorkedSums(setup.digits), bench.seed
    pages = sample_of([page["text"] for page in World(WorldConfig.quick(seed)).documents()], setup.pages, seed)
    others, apart = pages[setup.texts :], pages[: setup.texts]
    sums = list(task.texts(setup.sum_texts))
    base = pretrain.run(
        pretrain.PretrainRecipe(
            out=bench.out("sums-base"), vocab_size=600, tokens=setup.sum_tokens, weights=[2.0, 1.0],
            text=[bench.write(name, [{"text": t} for t in texts]) for name, texts in (("sums-texts", sums), ("others", others))],
            model=Shape(size="tiny", context_tokens=128), train=TrainConfig(lr=1e-2, optimizer="muon", seed=seed),
        ),
        quiet=True,
    )  # fmt: skip
    chats = list(task.chats(setup.sums_chats, setup.slips))
    start = _taught(bench, "sums", base, chats, _train(None, setup.sums_lr, seed), setup.sums_epochs)
    known = {chat[0]["content"] for chat in chats}
    fresh = [e for e in task.examples("train") if e.prompt[0]["content"] not in known]
    labelled, test = sample_of(fresh, setup.labels, seed), sample_of(task.examples("test"), setup.tested, seed)
    pool = answer_pool(
        open_model(start), labelled, setup.tries, Sampling(temperature=1.0, max_tokens=_SUM_TOKENS, seed=seed)
    )
    own = [
        answered(e, a)
        for e, tried in zip(labelled, pool, strict=True)
        for a in dict.fromkeys(tried)
        if task.score(e, a)
    ]
    steps = setup.sums_updates
    paths = {"start": start}
    ways = {
        "SFT-B": ([answered(e, e.answers[0]) for e in labelled], _train(steps, setup.other_lr, seed, optimizer="muon")),
        "SFT-A": ([answered(e, worked(e)) for e in labelled], _train(steps, setup.sums_lr, seed)),
        "RFT-A": (own, _train(steps, setup.sums_lr, seed)),
    }
    for name, (rows, train) in ways.items():
        paths[name] = (
            _taught(bench, name, start, rows, train) if rows else start
        )  # no right answer: nothing to learn from
    paths["GRPO-A"] = _rewarded(
        bench, "GRPO-A", start, f"worked:{setup.digits}", AskedOf(task, test[:60], labelled),
        _train(steps, setup.sums_rl_lr, seed, schedule="constant", batch_tokens=65536), setup.answers, method="grpo",
        max_tokens=_SUM_TOKENS,
    )  # fmt: skip
    before, found = open_model(start), {}
    for name, path in paths.items():
        opened = open_model(path)
        found[name] = {
            "test": accuracy(opened, task, test, 1, _SUM_TOKENS, seed),
            "train": accuracy(opened, task, labelled, 1, _SUM_TOKENS, seed),
            "forgotten": 0.0 if name == "start" else drift(opened, before, apart),
        }
    return {"arms": found, "labels": len(labelled), "own": len(own)}


def drift(after: Parent, before: Parent, texts: Sequence[str]) -> float:
    """Mean KL(after || before) of the next token over other text, in nats."""
    tokenizer, length = after.tokenizer, after.model.config.context_tokens
    rows = [ids[: length - 1] for ids in tokenizer.encode_batch(list(texts))]
    found = shifts(after, before, [[tokenizer.bos]] * len(rows), rows, top=1)
    return float(np.mean([token.kl for row in found for token in row.tokens]))


# --- credit at the end, or as it is earned --------------------------------------------------------------------------


def careless_poems(task: Poem, count: int, share: float, seed: int) -> list[Any]:
    """Poems with the right number of lines, of which each has a character too many or too few with probability `share`."""
    dice, train, chats = Dice(seed, 112), task.examples("train"), []
    for _ in range(count):
        example = dice.pick(train)
        widths = [task.width + dice.chance(share) * dice.pick((-1, 1)) for _ in range(task.lines)]
        chats.append(answered(example, task.verse(dice, widths, example.meta["topic"])))
    return chats


def delayed(setup: Any, bench: Bench) -> dict[str, Any]:
    """Poems of a form: the share of right ones over samples, rewarded at the end alone and for every line."""
    task, seed = Poem(setup.lines, setup.width), bench.seed
    texts = bench.write("poems", [{"text": text} for text in task.texts(setup.poems)])
    base = pretrain.run(
        pretrain.PretrainRecipe(
            out=bench.out("poem-base"), text=[texts], vocab_size=setup.poem_vocab, tokens=setup.poem_tokens,
            model=Shape(size="tiny", context_tokens=128), train=TrainConfig(lr=1e-2, optimizer="muon", seed=seed),
        ),
        quiet=True,
    )  # fmt: skip
    chats = careless_poems(task, setup.poem_chats, setup.careless, seed)
    start = _taught(bench, "poem", base, chats, _train(None, 2e-3, seed, batch_tokens=4096), 2.0)
    curves = {}
    for shaping in setup.shapings:
        train = _train(setup.poem_updates, setup.poem_lr, seed, schedule="constant", batch_tokens=65536)
        _rewarded(
            bench, f"poem-{shaping}", start, f"poem:{setup.lines}x{setup.width}", task, train, setup.answers, method="rloo",
            shaping=shaping, cut_penalty=0.0, max_tokens=setup.poem_room,
        )  # fmt: skip
        rows = read_jsonl(Path(bench.out(f"poem-{shaping}")) / "metrics.jsonl")
        curves[shaping] = [[row["step"] * setup.answers, row["reward"]] for row in rows]
    return {"curves": curves}
