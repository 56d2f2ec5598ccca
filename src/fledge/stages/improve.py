"""Votes since the last time -> the next model -> is it better than the one people talk to? -> served, or told why not.

    RUN/rounds/001/  plan.json  data/ + data.json  sft/ dpo/ kto/  judge-1..4/  answers.jsonl  result.json
    RUN/serving.json  the checkpoint that RUN means from now on; written when a round's model is promoted

A round can be killed at any moment: plan.json fixed which votes it learns from, and everything after follows from it.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fledge.core.adapters import AdapterConfig
from fledge.core.checkpoint import canonical_json, resolve, run_lock, write_atomically, write_serving
from fledge.core.config import Settings, TrainConfig
from fledge.core.log import say
from fledge.feedback.exports import export_rows
from fledge.feedback.store import Store, store_url
from fledge.stages import improve_data as data
from fledge.stages import sft
from fledge.stages.common import Parent, check_adapter, fix_recipe, open_model
from fledge.stages.improve_data import LEARNING, Material
from fledge.stages.improve_judge import problem_with
from fledge.stages.improve_verdict import judge_round, show
from fledge.stages.prefer import DpoRecipe, KtoRecipe, run_dpo, run_kto

_NICE = 10  # of 19: people who chat meanwhile come first


class Learning(Settings, frozen=True, kw_only=True):
    """How long and how fast one stage of a round learns."""

    lr: float
    "Peak learning rate."
    epochs: float
    "Times to read the rows."

    def problems(self) -> list[str]:
        rules = ((0 < self.lr < 10, "lr", "above 0 and below 10"), (self.epochs > 0, "epochs", "above 0"))
        return [f"{name} = {getattr(self, name)}: must be {must}" for ok, name, must in rules if not ok]


class SftLearning(Learning, frozen=True, kw_only=True):
    """Edits and answers with five points."""

    lr: float = 2e-5
    "Peak learning rate."
    epochs: float = 3.0
    "Times to read the rows."


class DpoLearning(Learning, frozen=True, kw_only=True):
    """Choices, and scores two or more apart."""

    lr: float = 5e-5
    "Peak learning rate."
    epochs: float = 3.0
    "Times to read the rows."
    beta: float = 0.2
    "How dearly moving away from the model before is paid."
    nll_weight: float = 0.5
    "Weight of the chosen answers' own NLL."
    label_smoothing: float = 0.1
    "Share of the votes taken to be flipped."


class KtoLearning(Learning, frozen=True, kw_only=True):
    """Thumbs, both bad, high and low scores."""

    lr: float = 4e-5
    "Peak learning rate."
    epochs: float = 1.0
    "Times to read the rows."
    beta: float = 0.1
    "How dearly moving away from the model before is paid."


class RewardLearning(Learning, frozen=True, kw_only=True):
    """The judge: choices of all rounds, ties among them, and new edits."""

    lr: float = 5e-4
    "Peak learning rate."
    epochs: float = 5.0
    "Times to read the rows."
    batch_tokens: int = 4096
    "Positions per optimiser step; larger steps make its models agree better."


class ImproveRecipe(Settings, frozen=True, kw_only=True):
    """Train the next model from new votes, and serve it if it is better; learning rates to beta tuned by `fledge loop`."""

    run: str
    "Run whose model people talk to: a journey or a stage's folder."
    out: str | None = None
    "Folder of the round; none: the next number under RUN/rounds, or the round there that is not finished."
    store: str | None = None
    "Where the votes are: a path or postgresql://... (its password belongs in ~/.pgpass); none: RUN/votes.sqlite3."
    judge: str = "auto"
    "Who compares new and old: auto (reward models trained on the votes), gold, a reward model's folder, judge:URL#MODEL."
    min_votes: int = 50
    "New votes below which no round begins."
    min_rows: int = 20
    "Rows from new votes below which a stage (sft, dpo, kto) is left out."
    replay: float = 1.0
    "Rows of earlier rounds' votes learnt again, per new row."
    base_replay: float = 0.25
    "Rows learnt again of what the model was raised on, per new row."
    prompts: list[str] = []
    "Own questions for the comparison: JSONL with prompt; nothing is learnt from them."
    questions: int = 512
    "Held-out questions of the comparison, at most."
    answers: int = 4
    "Answers each model gives to each of them."
    regression: str | None = None
    "Questions that must still be answered: JSONL with question and answer; none: the world's facts, or held-out text."
    sft: SftLearning = SftLearning()
    "Learning from edits."
    dpo: DpoLearning = DpoLearning()
    "Learning from choices."
    kto: KtoLearning = KtoLearning()
    "Learning from thumbs."
    reward: RewardLearning = RewardLearning()
    "The judge's learning."
    adapter: AdapterConfig | None = None
    "Train a small adapter beside the frozen weights in every stage and the judge; it takes about ten times their lr."
    batch_tokens: int = 2048
    "Positions per optimiser step."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."
    seed: int = 0
    "Seed of the order, of what is learnt again and of the comparison."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = [f"{n}.{p}" for n in ("sft", "dpo", "kto", "reward") for p in getattr(self, n).problems()]
        for name, least in (
            ("min_votes", 1),
            ("min_rows", 1),
            ("questions", 20),
            ("answers", 1),
            ("batch_tokens", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                found.append(f"{name} = {getattr(self, name)}: must be at least {least}")
        found += self.adapter.problems() if self.adapter else []
        if self.reward.batch_tokens < 1:
            found.append(f"reward.batch_tokens = {self.reward.batch_tokens}: must be at least 1")
        for name in ("replay", "base_replay"):
            if not 0 <= getattr(self, name) <= 100:
                found.append(f"{name} = {getattr(self, name)}: must be between 0 and 100 rows per new row")
        return found


class Plan(msgspec.Struct, frozen=True):
    """ROUND/plan.json: what the round starts from and which votes it learns from, fixed before anything else."""

    round: int
    served: str
    """Checkpoint that was served when the round began."""
    served_id: str
    after_seq: int
    """Votes up to here were learnt from by the served model."""
    first_seq: int
    last_seq: int
    votes: dict[str, int]
    """New votes that stand, by kind."""


def run(options: ImproveRecipe, quiet: bool = False, gentle: bool = True) -> dict[str, Any]:
    """One round, begun or continued; returns what result.json holds.

    gentle: lower this process's priority, so that a server beside it stays quick. Raises ValueError where there is
    nothing to learn from, saying what is missing.
    """
    if gentle:
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    top = Path(options.run)
    if not top.is_dir():
        raise ValueError(f"{top} is no folder: name the run that people talk to, such as runs/first")
    Store.open(store_url(top, options.store), read_only=True).close()  # without votes no folder is made
    with run_lock(top / "rounds"):
        folder, before = _folder(options)
        options = msgspec.structs.replace(options, out=str(folder))
        if (folder / "result.json").exists():
            fix_recipe(folder, "improve", options)
            say(f"{folder}: done; nothing to do")
            return msgspec.json.decode((folder / "result.json").read_bytes())
        with Store.open(store_url(top, options.store)) as store:
            plan, material, family = _prepare(options, folder, before, store)
        if gentle:
            say(f"priority lowered by {_NICE}, so that people who chat meanwhile do not feel it")
        with run_lock(folder):  # so that the page sees it running
            return _work(options, folder, plan, material, family, quiet)


class Before(NamedTuple):
    """What the rounds before say."""

    number: int  # of the newest
    learnt: int  # last vote that the served model learnt from
    refused: dict[str, Any] | None  # plan and options of the newest round, where it was refused


def _folder(options: ImproveRecipe) -> tuple[Path, Before]:
    """The round to work on: the one named, the unfinished one, or the next."""
    rounds = Path(options.run) / "rounds"
    there = sorted((p for p in rounds.iterdir() if p.name.isdecimal() and p.is_dir()), key=lambda p: int(p.name))
    if options.out is not None:
        chosen = Path(options.out)
        if chosen.parent.resolve() != rounds.resolve() or not chosen.name.isdecimal():
            raise ValueError(f"out = {options.out}: a round is {rounds}/NUMBER; leave --out away to take the next")
    elif there and (there[-1] / "recipe.json").exists() and not (there[-1] / "result.json").exists():
        chosen = there[-1]
    else:
        done = [p for p in there if (p / "result.json").exists()]
        chosen = rounds / f"{int(done[-1].name) + 1 if done else 1:03d}"
    number, learnt, refused = 0, 0, None
    for folder in there:
        if int(folder.name) < int(chosen.name) and (folder / "result.json").exists():
            plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
            promoted = msgspec.json.decode((folder / "result.json").read_bytes())["promoted"]
            number, learnt = int(folder.name), plan.last_seq if promoted else learnt
            recipe = msgspec.json.decode((folder / "recipe.json").read_bytes())["recipe"]
            refused = None if promoted else {"folder": str(folder), "last_seq": plan.last_seq, "recipe": recipe}
    return chosen, Before(number, learnt, refused)


def _prepare(options: ImproveRecipe, folder: Path, before: Before, store: Store) -> tuple[Plan, Material, list]:
    """The plan and the data, made or found. Nothing is written where a round makes no sense."""
    path = folder / "plan.json"
    if path.exists():
        fix_recipe(folder, "improve", options)
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
        served = open_model(plan.served, device=options.device)
        if served.id != plan.served_id:
            raise ValueError(f"{path}: {plan.served} was {plan.served_id[:12]} and is {served.id[:12]}: restore it")
        family = data.ancestors(served)
    else:
        served = open_model(resolve(options.run), device=options.device)
        family = data.ancestors(served)
        plan = _plan(options, folder, before, store, served, family)
        fix_recipe(folder, "improve", options)
        write_atomically(path, canonical_json(plan))
    material = data.write_material(options, folder, store, plan, family)
    return plan, material, family


def _plan(options: ImproveRecipe, folder: Path, before: Before, store: Store, served: Parent, family: list) -> Plan:
    """Which votes the round takes. Raises ValueError with what is missing."""
    if served.card["model"]["head"] != "tokens" or served.card["stage"] == "pretrain":
        raise ValueError(
            f"{options.run} serves a {served.card['stage']} model: improve needs one that answers; train it with `fledge sft`"
        )
    check_adapter(served, options.adapter)
    last, since = store.last_seq(), f"since round {before.number:03d}" if before.learnt else "yet"
    if before.refused and before.refused["last_seq"] == last and not _differs(options, before.refused["recipe"]):
        raise ValueError(
            f"nothing new since {before.refused['folder']}, whose model was refused (see its result.json): the same votes "
            "and settings give the same model. Collect more votes, or change a setting such as --judge or --dpo.lr"
        )
    kinds: dict[str, int] = {}
    for vote in store.current_votes(before.learnt, last):
        kinds[vote.kind] = kinds.get(vote.kind, 0) + 1
    count, how = sum(kinds.values()), "`fledge chat` lets people vote, `fledge rate` programs"
    if not count:
        raise ValueError(f"no votes {since}: {how}")
    if count < options.min_votes:
        raise ValueError(f"{count} votes {since}, {options.min_votes} are needed: {how}, or set --min_votes")
    rows = {s: data.rows_of_stage(options, store, family, s, before.learnt, last) for s in LEARNING}
    if all(made.skipped for made in rows.values()):
        told = "".join(f"\n  {s}: {made.skipped}{_left_out(made.new.dropped)}" for s, made in rows.items())
        raise ValueError(f"{count} votes {since} are too few to learn from:{told}\nCollect more, or set --min_rows")
    decided = sum(not row.get("tie") for row in export_rows(store, "pairs", 0, last).rows)
    if problem := problem_with(options.judge, data.world_of(family), decided):
        raise ValueError(problem)
    return Plan(
        int(folder.name),
        str(served.path),
        served.id,
        before.learnt,
        before.learnt + 1,
        last,
        dict(sorted(kinds.items())),
    )


def _left_out(dropped: dict[str, int]) -> str:
    return f", left out {', '.join(f'{n} {reason}' for reason, n in dropped.items())}" if dropped else ""


def _differs(options: ImproveRecipe, recipe: dict[str, Any]) -> bool:
    now = msgspec.to_builtins(options)
    return any(now[name] != recipe.get(name) for name in now if name != "out")


def _work(
    options: ImproveRecipe, folder: Path, plan: Plan, material: Material, family: list, quiet: bool
) -> dict[str, Any]:
    """Train, compare, serve or refuse."""
    if not quiet:
        told = ", ".join(f"{n} {kind}" for kind, n in plan.votes.items())
        say(f"round {plan.round}: votes {plan.first_seq} to {plan.last_seq} ({told}), from {plan.served}")
        for stage in LEARNING:
            if why := material.stages[stage].skipped:
                say(f"{stage}: left out: {why}")
    new = train_stages(options, folder, plan, material, quiet)
    result = judge_round(options, folder, plan, material, family, new)
    if result["promoted"]:
        write_serving(options.run, new, result["new"]["id"])
    write_atomically(folder / "result.json", msgspec.json.format(canonical_json(result)) + b"\n")
    if not quiet:
        show(options, result)
    return result


def train_stages(options: ImproveRecipe, folder: Path, plan: Plan, material: Material, quiet: bool) -> Path:
    """SFT, DPO and KTO in a row, each from the one before; what is done is kept. Returns the new checkpoint."""
    parent = Path(plan.served)
    run_of = {"sft": _sft, "dpo": _dpo, "kto": _kto}
    for stage in LEARNING:
        if not material.stages[stage].skipped:
            parent = run_of[stage](options, folder, str(parent), quiet)
    return parent


def _common(options: ImproveRecipe, folder: Path, stage: str, parent: str) -> dict[str, Any]:
    learning: Learning = getattr(options, stage)
    train = TrainConfig(
        lr=learning.lr, weight_decay=0.0, batch_tokens=options.batch_tokens, device=options.device, seed=options.seed
    )
    files = {LEARNING[stage]: data.files(folder, stage)}
    return {
        "out": str(folder / stage), "parent": parent, "epochs": learning.epochs, "train": train,
        "adapter": options.adapter, **files,
    }  # fmt: skip


def _sft(options: ImproveRecipe, folder: Path, parent: str, quiet: bool) -> Path:
    return sft.run(sft.SftRecipe(**_common(options, folder, "sft", parent)), quiet)


def _dpo(options: ImproveRecipe, folder: Path, parent: str, quiet: bool) -> Path:
    learning = options.dpo
    recipe = DpoRecipe(
        **_common(options, folder, "dpo", parent), beta=learning.beta, nll_weight=learning.nll_weight,
        label_smoothing=learning.label_smoothing,
    )  # fmt: skip
    return run_dpo(recipe, quiet)


def _kto(options: ImproveRecipe, folder: Path, parent: str, quiet: bool) -> Path:
    return run_kto(KtoRecipe(**_common(options, folder, "kto", parent), beta=options.kto.beta), quiet)
