"""The whole way in one command: text -> base -> SFT -> aligned, with the controls that show why each stage is needed."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fledge import __version__
from fledge.core.checkpoint import canonical_json, write_atomically
from fledge.core.config import Settings, TrainConfig, count_problems, parse_count
from fledge.core.log import read_jsonl, say, visible
from fledge.core.model import SIZES
from fledge.core.runtime import peak_memory, usable_cores
from fledge.stages import curation, material, pretrain, sft
from fledge.stages.common import fix_recipe, machine, open_model
from fledge.stages.history import family
from fledge.stages.material import Material
from fledge.stages.prefer import run_dpo, run_reward
from fledge.stages.report import write_report


class JourneyRecipe(Settings, frozen=True, kw_only=True):
    """Raise a model through every stage, on the embedded world or on your own text, chats and pairs."""

    out: str = "runs/journey"
    "Folder of the journey."
    crawl: list[str] = []
    "Your crawl, curated first: WARC, WET, HTML, JSONL, Parquet, text; what stays is read as text."
    rules: str | None = None
    "Recipe of curation: fineweb, dclm, gopher, a TOML file, or off; none is fineweb for a crawl, world for the world."
    languages: str = "en,zh"
    "Languages of a crawl that stay, with commas, or any."
    text: list[str] = []
    "Your text, read as it is: files and folders; without any and without a crawl, the embedded world is used."
    chats: list[str] = []
    "Your conversations; without any, the journey ends with a base model."
    pairs: list[str] = []
    "Your preferences; without any, the journey ends with an SFT model."
    size: str | None = None
    "Model size; None takes pocket for the world and proposes one for your text."
    tokens: int | str | None = None
    "Tokens to pretrain on, such as 5M; None is fixed for the world and proposed for your text."
    context_tokens: int | None = None
    "Longest sequence; None takes 128 for the world and 256 for your text."
    minutes: float = 10.0
    "Time the proposal for your own text aims at, in minutes."
    quick: bool = False
    "A smaller world and shorter stages: under two minutes."
    seed: int = 0
    "Seed of the world, the weights and the order of the data."
    encoding: str | None = None
    "Encoding of your files where it is not UTF-8."
    skip_bad: int = 0
    "Broken lines to skip in all before it is an error."

    def problems(self) -> list[str]:
        found = []
        if self.size is not None and self.size not in SIZES:
            found.append(f"size = {self.size!r}: must be one of {', '.join(SIZES)}")
        if not self.own_text() and (self.chats or self.pairs):
            found.append(
                "chats and pairs need --text or --crawl: a model is raised on text first; leave all out for the world"
            )
        if self.crawl and self.rules == "off":
            found.append("rules = 'off': a crawl is curated first; give what needs no curation as --text")
        if self.text and not self.crawl and self.rules not in (None, "off"):
            found.append(f"rules = {self.rules!r}: --text is read as it is; give what is to be curated as --crawl")
        if self.pairs and not self.chats:
            found.append("pairs need --chats: preferences are learned by a model that already answers")
        if self.seed < 0:
            found.append(f"seed = {self.seed}: must be at least 0")
        if not self.minutes > 0:
            found.append(f"minutes = {self.minutes}: must be above 0")
        if self.context_tokens is not None and self.context_tokens < 16:
            found.append(f"context_tokens = {self.context_tokens}: must be at least 16")
        return found + count_problems(self.tokens)

    def own_text(self) -> bool:
        """Whether the model is raised on the user's material, not on the embedded world."""
        return bool(self.text or self.crawl)


class Clock:
    """Seconds each part took, kept on disk so that a resumed journey knows the whole."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = msgspec.json.decode(path.read_bytes()) if path.exists() else {}

    def time(self, part: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        try:
            return work()
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - start
            write_atomically(self.path, canonical_json(self.seconds))


def run(recipe: JourneyRecipe) -> Path:
    """Go the whole way, keep every score in OUT/journey.json and draw OUT/report.html; returns OUT."""
    out = Path(recipe.out)
    fix_recipe(out, "journey", recipe)
    clock = Clock(out / "clock.json")
    here = machine(TrainConfig())
    say(f"{here['device']}, {here['threads']} threads, {here['dtype']} activations, seed {recipe.seed}")
    curated = clock.time("crawl", lambda: curation.prepare(recipe, out))
    plan = clock.time("material", lambda: material.prepare(recipe, out, parse_count(recipe.tokens)))
    result = {
        "fledge": __version__, "seed": recipe.seed, "quick": recipe.quick, "material": plan.kind,
        "command": _command(recipe), "seconds": None, "peak_rss_bytes": None,
        "machine": {"cores": usable_cores(), **here},
        "plan": plan.summary, "curation": curated, "data": {}, "stages": {}, "controls": {}, "tokens_per_second": {},
    }  # fmt: skip
    _train_stages(plan, out, clock)
    clock.time("scores", lambda: _score(plan, out, result))
    for stage, folder in (("pretrain", "base"), ("sft", "sft")):
        if (out / folder / "speed.jsonl").exists():
            result["tokens_per_second"][stage] = tokens_per_second(out / folder)
    for name, entry in _entries(result).items():
        entry["seconds"] = clock.seconds.get(name)
    result["lineage"] = [msgspec.to_builtins(m) for m in family(out)]
    result["seconds"] = sum(clock.seconds.values())
    result["peak_rss_bytes"] = peak_memory()  # of this process, or of the one that curated
    write_atomically(out / "journey.json", msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    report = write_report(out)
    _print_end(result, out, report)
    return out


def _train_stages(plan: Material, out: Path, clock: Clock) -> None:
    """Each stage from the one before; finished ones are found and kept, an interrupted one continues."""
    clock.time("base", lambda: pretrain.run(plan.pretrain))
    if plan.sft is None:
        return
    clock.time("sft", lambda: sft.run(plan.sft))
    if plan.control is not None:
        say("control: the same conversations from random weights")
        clock.time("control", lambda: sft.run(plan.control))
    if plan.dpo is None:
        return
    clock.time("reward", lambda: run_reward(plan.reward))
    clock.time("aligned", lambda: run_dpo(plan.dpo))


def _score(plan: Material, out: Path, result: dict[str, Any]) -> None:
    """Fill in what each model can do; figures of the data come from the checkpoints' cards."""
    say("scoring")
    opened = {n: open_model(out / n) for n in ("base", "sft", "control", "aligned") if (out / n / "done.json").exists()}
    for name, model in opened.items():
        entry = {"folder": name, "id": model.id, "loss": read_jsonl(out / name / "metrics.jsonl")[-1]["loss"]}
        if name == "control":
            result["controls"]["sft_from_scratch"] = entry
        else:
            result["stages"][name] = entry
    if (out / "reward" / "done.json").exists():
        opened["reward"] = open_model(out / "reward", head="reward")
        result["reward_model"] = {"folder": "reward", "id": opened["reward"].id}
    result["data"] = _data_of(opened)
    plan.score(opened, result)


def _entries(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The score entry of every model of a journey, by its folder."""
    found = [*result["stages"].values(), *result["controls"].values(), result.get("reward_model")]
    return {entry["folder"]: entry for entry in found if entry}


def _command(recipe: JourneyRecipe) -> str:
    """The command that gives this journey again."""
    words = ["fledge journey"]
    for field in msgspec.structs.fields(recipe):
        value = getattr(recipe, field.name)
        if value != field.default and value not in ([], None):
            listed = value if isinstance(value, list) else [value]
            words += [f"--{field.name}" + ("" if v is True else f" {shlex.quote(str(v))}") for v in listed]
    return " ".join(words)


def _data_of(opened: dict[str, Any]) -> dict[str, Any]:
    base = opened["base"].card["data"]
    data = {k: base[k] for k in ("documents", "tokens", "bytes")} | {
        "rejected": {"text": base["rejected"]},
        "notes": [],
    }
    if "sft" in opened:
        card = opened["sft"].card["data"]
        data["chats"] = card["chats"]
        data["rejected"]["chats"] = card["rejected"]
        if card["cut"]:
            data["notes"].append(
                f"{card['cut']} conversations were longer than the context and cut, {card['dropped']} left out"
            )
    if "aligned" in opened:
        card = opened["aligned"].card["data"]
        data["pairs"] = card["pairs"]
        data["rejected"]["pairs"] = card["rejected"]
        if card["dropped"]:
            data["notes"].append(f"{card['dropped']} pairs were longer than the context and left out")
    return data


def tokens_per_second(stage: Path) -> float | None:
    """Median speed of a stage by its logs, in positions per second."""
    tokens = {row["step"]: row["tokens"] for row in read_jsonl(stage / "metrics.jsonl")}
    speed = read_jsonl(stage / "speed.jsonl")
    rates = sorted(
        tokens[b["step"]] / (b["seconds"] - a["seconds"])
        for a, b in zip(speed, speed[1:], strict=False)
        if b["seconds"] > a["seconds"] and b["step"] in tokens
    )
    return rates[len(rates) // 2] if rates else None


def _print_end(result: dict[str, Any], out: Path, report: Path) -> None:
    """The same prompts answered by each model, the scores, and where to look next."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    stages = [n for n in ("base", "sft", "aligned") if n in result["stages"]]
    answers = Table("prompt", *stages, title="The same prompts, answered by each model", show_lines=True)
    for sample in result.get("samples", []):
        answers.add_row(*(visible(sample[k] or "") for k in ("prompt", *stages)))
    if result.get("samples"):
        console.print(answers)
    scores = Table("model", "score", "value", title="Scores", box=None)
    named = {"base": "base", "sft": "SFT", "control": "SFT from random weights", "reward": "reward model", "aligned": "aligned"}
    for name, entry in _entries(result).items():
        for key, value in entry.items():
            if isinstance(value, float) and key != "seconds":
                scores.add_row(named[name], key.replace("_", " "), f"{value:.3f}")
    console.print(scores)
    minutes, peak = result["seconds"] / 60, result["peak_rss_bytes"] / 1e9
    console.print(f"{minutes:.1f} minutes, {peak:.2f} GB at most. Report: {report}")
    console.print(f"Talk to it: fledge chat {out}    Family tree: fledge lineage {out}")
