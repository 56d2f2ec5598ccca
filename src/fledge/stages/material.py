"""What a journey is made of: the embedded world with its gold scores, or the user's own text, chats and pairs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.config import TrainConfig
from fledge.core.log import say
from fledge.core.model import Shape, Transformer
from fledge.core.objectives import weighted_nll
from fledge.stages import evaluate
from fledge.stages.common import Parent, rows_of, time_steps
from fledge.stages.curation import text_of, written_world
from fledge.stages.prefer import DpoRecipe, RewardRecipe, pair_source, reference_logp, score_pairs
from fledge.stages.pretrain import PretrainRecipe, document_source, heldout_texts
from fledge.stages.pretrain import prepare as prepare_text
from fledge.stages.sft import SftRecipe
from fledge.tasks.base import Example
from fledge.tasks.world_tasks import WorldFacts, WorldGold, WorldRequests, is_refusal
from fledge.text.formats import Message, Pair, read_chats, read_pairs, to_row
from fledge.text.readers import Rejects, require_some
from fledge.world import World

WELL_READ = 50  # statements per language from which a fact counts as read well
_ASKED = 400  # questions the base model is asked
_HELD_OUT_CHATS, _HELD_OUT_PAIRS = 200, 300


class Material(msgspec.Struct):
    """The recipes of a journey's stages and how its models are scored."""

    kind: str  # "world" or "yours"
    pretrain: PretrainRecipe
    sft: SftRecipe | None
    control: SftRecipe | None
    reward: RewardRecipe | None
    dpo: DpoRecipe | None
    summary: dict[str, Any]
    score: Callable[[dict[str, Parent], dict[str, Any]], None]


def prepare(recipe, out: Path, tokens: int | None) -> Material:
    """Write or read the material of a JourneyRecipe into OUT; a second call finds it there."""
    return _yours(recipe, out, tokens) if recipe.own_text() else _world(recipe, out, tokens)


def _settings(
    recipe, out: Path, *, text, chats, pairs, model: Shape, tokens, vocab_size, heldout_every, control, epochs, dpo
) -> dict:  # fmt: skip
    """The stages' recipes; learning rates, epochs and DPO's beta tuned here on the world of seed 0."""
    seed = recipe.seed
    reading = {"encoding": recipe.encoding, "skip_bad": recipe.skip_bad}
    made = {
        "pretrain": PretrainRecipe(
            out=str(out / "base"), text=text, vocab_size=vocab_size, tokens=tokens, model=model, **reading,
            heldout_every=heldout_every, train=TrainConfig(lr=4e-3, optimizer="muon", batch_tokens=4096, seed=seed),
        ),
        "sft": None, "control": None, "reward": None, "dpo": None,
    }  # fmt: skip
    if chats:
        train = TrainConfig(lr=4e-4, weight_decay=0.0, batch_tokens=4096, seed=seed)
        common = {"parent": str(out / "base"), "chats": chats, "epochs": epochs["sft"], **reading}
        made["sft"] = SftRecipe(out=str(out / "sft"), train=train, **common)
        if control:
            # random weights need the larger steps of a first training: the control has its own best learning rate
            train = msgspec.structs.replace(train, lr=1e-3)
            made["control"] = SftRecipe(out=str(out / "control"), fresh=True, train=train, **common)
    if pairs:
        common = {"parent": str(out / "sft"), "pairs": pairs, **reading}
        train = TrainConfig(lr=5e-4, weight_decay=0.0, batch_tokens=4096, seed=seed)
        made["reward"] = RewardRecipe(out=str(out / "reward"), train=train, epochs=epochs["reward"], **common)
        made["dpo"] = DpoRecipe(
            out=str(out / "aligned"), train=msgspec.structs.replace(train, lr=dpo["lr"]), epochs=epochs["dpo"],
            beta=dpo["beta"], nll_weight=dpo["nll_weight"], **common,
        )  # fmt: skip
    return made


def _summary(model: Shape, vocab_size: int, tokens: int | None, proposed: dict | None) -> dict[str, Any]:
    return {
        "size": model.size, "parameters": model.parameter_count(vocab_size), "tokens": tokens, "vocab_size": vocab_size,
        "context_tokens": model.context_tokens, "proposed": proposed,
    }  # fmt: skip


# --- the embedded world ---------------------------------------------------------------------------------------------


def _world(recipe, out: Path, tokens: int | None) -> Material:
    """The embedded world: everything about it is known, so every score is against the truth."""
    world, folder = written_world(recipe, out)
    vocab_size, tokens = 1536, tokens or (1_800_000 if recipe.quick else 12_000_000)
    model = Shape(size=recipe.size or "pocket", context_tokens=recipe.context_tokens or 128)
    stages = _settings(
        recipe, out, heldout_every=100, text=text_of(recipe, out), chats=[str(folder / "chats.jsonl")],
        pairs=[str(folder / "pairs.jsonl")], model=model, tokens=tokens, vocab_size=vocab_size, control=True,
        epochs={"sft": 6.0, "reward": 3.0, "dpo": 3.0}, dpo={"lr": 7e-5, "beta": 0.1, "nll_weight": 0.5},
    )  # fmt: skip

    def score(opened: dict[str, Parent], result: dict[str, Any]) -> None:
        _score_world(world, opened, result, out / "base", recipe.seed)

    return Material(kind="world", **stages, summary=_summary(model, vocab_size, tokens, None), score=score)


def _score_world(world: World, opened: dict[str, Parent], result: dict[str, Any], base: Path, seed: int) -> None:
    """Every figure of the world's journey, against the truth; facts and requests are ones no chat or pair mentions."""
    facts, gold = WorldFacts(world), WorldGold(world)
    questions = list(facts.examples("test"))
    well_read = [i for i, e in enumerate(questions) if e.meta["count"] >= WELL_READ]
    tasks = {"fact": facts} | {k: WorldRequests(world, k) for k in ("dangerous", "borderline", "greeting")}
    requests = {k: tasks[k].examples("test") for k in ("dangerous", "borderline")}
    asked = evaluate.sample_of([questions[i] for i in well_read], _ASKED, seed)
    continued = evaluate.continue_questions(opened["base"], asked, seed)
    exact: dict[str, list[float]] = {}
    entries = {**result["stages"], "control": result["controls"].get("sft_from_scratch", {})}
    entries["base"]["answer_rate"] = _rate_straight(facts, asked, continued)
    for name in ("sft", "aligned", "control"):
        if name not in opened:
            continue
        answers = evaluate.ask(opened[name], questions)
        exact[name] = [facts.score(e, a.text) for e, a in zip(questions, answers, strict=True)]
        known = {lang: [exact[name][i] for i in well_read if questions[i].language == lang] for lang in ("en", "zh")}
        entries[name] |= {
            "answer_rate": _rate_straight(facts, questions, answers),
            "stop_rate": evaluate.rate(a.finish == "stop" for a in answers),
            "exact_match_heldout": evaluate.rate(exact[name][i] for i in well_read),
            "exact_match_by_language": {lang: evaluate.rate(values) for lang, values in known.items()},
        } | {
            f"refusal_rate_{kind}": evaluate.rate(is_refusal(a.text) for a in evaluate.ask(opened[name], examples))
            for kind, examples in requests.items()
        }
    _score_text(opened, result, heldout_texts(base))
    result["exact_match_by_count"] = evaluate.by_count(questions, exact)
    if "aligned" in opened:
        mixed = [questions[i] for i in well_read] + requests["dangerous"] + requests["borderline"]
        new, old = (evaluate.ask(opened[n], mixed, evaluate.SAMPLED) for n in ("aligned", "sft"))
        wins, interval = evaluate.win_rate(gold.score, mixed, new, old, seed)
        entries["aligned"] |= {"win_rate_vs_sft": wins, "win_rate_interval": interval}
    if "reward" in opened:
        pairs = list(read_pairs([str(base.parent / "world" / "pairs_heldout.jsonl")]))
        result["reward_model"]["accuracy_heldout"] = _pair_accuracy(opened["reward"], pairs)
    result["well_read_count"] = WELL_READ
    result["samples"] = _samples(list(facts.showcase()), opened, seed, lambda e, text: tasks[e.kind].score(e, text))


def _score_text(opened: dict[str, Parent], result: dict[str, Any], texts: Sequence[str]) -> None:
    """Bits per byte of held-out text: what pretraining gave, and how much of it each later stage keeps."""
    for name, entry in result["stages"].items():
        entry["bits_per_byte"] = evaluate.bits_per_byte(opened[name], texts)


def _rate_straight(facts: WorldFacts, examples: Sequence[Example], answers: Sequence[evaluate.Answer]) -> float | None:
    return evaluate.rate(facts.answers_straight(e, a.text) for e, a in zip(examples, answers, strict=True))


def _pair_accuracy(reward: Parent, pairs: Sequence[Pair]) -> float:
    scores = score_pairs(reward, pairs)
    return float((scores[:, 0] > scores[:, 1]).mean())


def _samples(prompts: Sequence[Example], opened: dict[str, Parent], seed: int, score=None) -> list[dict[str, Any]]:
    """The same prompts through each model: the base goes on writing, the others answer (greedily)."""
    texts = {"base": evaluate.continue_questions(opened["base"], prompts, seed)}
    texts |= {n: evaluate.ask(opened[n], prompts) for n in ("sft", "aligned") if n in opened}
    rows = []
    for i, example in enumerate(prompts):
        row = {"prompt": example.prompt[-1]["content"], "language": example.language, "kind": example.kind}
        row |= {name: answers[i].text for name, answers in texts.items()}
        row["expected"] = example.answers[0] if example.answers else None
        row["finish"] = {name: answers[i].finish for name, answers in texts.items()}
        row["correct"] = score and {n: score(example, a[i].text) == 1.0 for n, a in texts.items()}
        rows.append(row)
    return rows


# --- the user's own material ------------------------------------------------------------------------------------------


def _yours(recipe, out: Path, tokens: int | None) -> Material:
    """Own text, and chats and pairs where given: some are held out for scoring, a size and a budget are proposed."""
    chats, chats_out = _split(read_chats, recipe.chats, recipe, out / "data" / "chats", _HELD_OUT_CHATS)
    pairs, pairs_out = _split(read_pairs, recipe.pairs, recipe, out / "data" / "pairs", _HELD_OUT_PAIRS)
    vocab_size, context = 4096, recipe.context_tokens or 256
    model = Shape(size=recipe.size or "pocket", context_tokens=context)
    stages = _settings(
        recipe, out, heldout_every=20, text=text_of(recipe, out), chats=chats, pairs=pairs, model=model, tokens=tokens, vocab_size=vocab_size,
        control=False, epochs={"sft": 2.0, "reward": 2.0, "dpo": 1.0},
        dpo={"lr": 7e-5, "beta": 0.1, "nll_weight": 0.5},
    )  # fmt: skip
    path, proposed = out / "proposal.json", None
    if recipe.size is None or tokens is None:
        if not path.exists():
            write_atomically(path, canonical_json(propose(recipe, stages["pretrain"], bool(chats), bool(pairs))))
        proposed = msgspec.json.decode(path.read_bytes())
        model = msgspec.structs.replace(model, size=recipe.size or proposed["size"])
        tokens = tokens or proposed["tokens"]
        stages["pretrain"] = msgspec.structs.replace(stages["pretrain"], model=model, tokens=tokens)
        say(f"plan: {model.size}, {tokens:,} tokens. {proposed['reason']}")

    def score(opened: dict[str, Parent], result: dict[str, Any]) -> None:
        _score_yours(opened, result, out / "base", chats_out, pairs_out, recipe.seed)

    return Material(kind="yours", **stages, summary=_summary(model, vocab_size, tokens, proposed), score=score)


def _split(read, paths: Sequence[str], recipe, folder: Path, most: int) -> tuple[list[str], Path]:
    """Write accepted rows to train.jsonl and one in 20 (at most `most`) to heldout.jsonl; rejects stay counted."""
    train, heldout, counts = folder / "train.jsonl", folder / "heldout.jsonl", folder / "rejects.json"
    if not paths:
        return [], heldout
    if not counts.exists():
        rejects, rows = Rejects(), []
        rows += read(paths, encoding=recipe.encoding, skip_bad=recipe.skip_bad, rejects=rejects)
        require_some(len(rows), paths, rejects, folder.name)
        apart = set(range(19, len(rows), 20)[:most])
        for path, keep in ((train, lambda i: i not in apart), (heldout, lambda i: i in apart)):
            lines = [msgspec.json.encode(to_row(r)) + b"\n" for i, r in enumerate(rows) if keep(i)]
            write_atomically(path, b"".join(lines))
        write_atomically(counts, canonical_json(rejects.as_dict()))
        if rejects.total:
            say(f"{folder.name}: {rejects.summary()}")
    return [str(train)], heldout


def propose(recipe, draft: PretrainRecipe, chats: bool, pairs: bool) -> dict[str, Any]:
    """Size and token budget that fit recipe.minutes here: the largest size that can read 10 tokens per parameter.

    Speeds are measured with 20 real steps of each size. Pretraining gets two thirds of the time, less where no stage
    follows; the text is read at most four times, since more repeats add little (Muennighoff et al. 2023, section 6).
    """
    tokenizer, (store,), _ = prepare_text(draft, Path(draft.out))
    seconds = 60 * recipe.minutes * (0.65 if chats or pairs else 0.9)
    length = draft.model.context_tokens
    best: dict[str, Any] = {}
    for size in [recipe.size] if recipe.size else ["pocket", "mini", "small", "base"]:
        model = Transformer(msgspec.structs.replace(draft.model, size=size).resolved(tokenizer.vocab_size)).initialise(
            0
        )
        rows = rows_of(draft.train, length)
        source = document_source(store, draft.train, length)
        speed = rows * length / time_steps(model, source, weighted_nll, draft.train)
        affordable = int(min(seconds * speed, 4 * len(store.tokens)))
        parameters = model.config.parameter_count()
        say(
            f"{size}: {parameters / 1e6:.1f}M parameters, {speed:,.0f} tokens/s: {affordable / 1e6:.1f}M tokens affordable"
        )
        if best and affordable < 10 * parameters:
            break
        best = {"size": size, "tokens": affordable, "tokens_per_second": speed, "parameters": parameters}
        if affordable < 10 * parameters:
            break
    passes = best["tokens"] / len(store.tokens)
    best["reason"] = (
        f"{best['parameters'] / 1e6:.1f}M parameters at {best['tokens_per_second']:,.0f} tokens/s read "
        f"{best['tokens'] / 1e6:.1f}M tokens ({passes:.1f} times the text) within the {recipe.minutes:g} minutes aimed at; "
        "--size and --tokens set them"
    )
    return best


def _score_yours(opened, result, base: Path, chats: Path, pairs: Path, seed: int) -> None:
    """Own material has no gold answers: held-out text, chats and pairs tell how well each is predicted."""
    texts = heldout_texts(base)
    _score_text(opened, result, texts)
    for kind in ("chats", "pairs"):  # the stages read what was accepted; what was not is counted beside it
        if (counts := base.parent / "data" / kind / "rejects.json").exists():
            result["data"]["rejected"][kind] = msgspec.json.decode(counts.read_bytes())
    if not texts:
        result["data"]["notes"].append("fewer than 20 documents: none was held out to measure bits per byte")
    if "sft" not in opened:
        prompts = [_example(i, "en", (Message("user", t[:60]),)) for i, t in enumerate(texts[:8])]
        result["samples"] = _samples(prompts, opened, seed)
        return
    held = [_example(i, "", c.messages[:-1], c.messages[-1].content) for i, c in enumerate(read_chats([str(chats)]))]
    held = [e for e in held if _fits(e, opened["sft"])]
    for name in ("sft", "aligned"):
        if name in opened and held:
            sampling = msgspec.structs.replace(evaluate.GREEDY, max_tokens=96)
            answers = evaluate.ask(opened[name], held[:100], sampling)
            result["stages"][name]["stop_rate"] = evaluate.rate(a.finish == "stop" for a in answers)
            result["stages"][name]["answer_rate"] = evaluate.rate(bool(a.text.strip()) for a in answers)
    if "aligned" in opened:
        rows = list(read_pairs([str(pairs)]))
        result["reward_model"]["accuracy_heldout"] = _pair_accuracy(opened["reward"], rows)
        result["stages"]["aligned"]["preference_accuracy_heldout"] = _implicit_accuracy(opened, rows)
    result["samples"] = _samples(held[:8], opened, seed)


def _example(number: int, language: str, prompt: Sequence[Message], expected: str | None = None) -> Example:
    rows = [{"role": m.role, "content": m.content} for m in prompt]
    return Example(
        id=str(number), prompt=rows, answers=(expected,) if expected else (), kind="yours", language=language, meta={}
    )


def _fits(example: Example, opened: Parent) -> bool:
    length = sum(map(len, opened.tokenizer.encode_batch([m["content"] for m in example.prompt])))
    return length < opened.model.config.context_tokens // 2


def _implicit_accuracy(opened: dict[str, Parent], pairs: Sequence[Pair]) -> float:
    """Share of held-out pairs whose chosen answer DPO made likelier relative to the reference (Rafailov 2023, sec. 4)."""
    source = pair_source(opened["sft"], pairs)
    shift = reference_logp(opened["aligned"].model, source) - reference_logp(opened["sft"].model, source)
    sums = np.add.reduceat(shift.astype(np.float64), source.sequences.offsets[:-1])
    return float((sums[0::2] > sums[1::2]).mean())
