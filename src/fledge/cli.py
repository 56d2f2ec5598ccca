"""The command: one table, verb -> what it runs, imported only when asked for (`fledge --help` imports no torch)."""

import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple


class Verb(NamedTuple):
    """Where a verb lives. Its options are the fields of a Struct, read alike from TOML and from --flags."""

    module: str
    options: str  # Struct
    function: str
    positional: tuple[str, ...]  # fields that may be given without a flag; "recipe" is a TOML file
    help: str


# fmt: off
TABLE = {
    "journey": Verb("stages.journey", "JourneyRecipe", "run", (), "raise a model through every stage"),
    "chat": Verb("serve.command", "ChatOptions", "run", ("run",), "a page to talk with a model and to vote"),
    "votes": Verb("feedback.votes_command", "VotesOptions", "run", ("action", "run"), "votes in figures; check, backup, migrate"),
    "invite": Verb("feedback.votes_command", "InviteOptions", "invite", ("run", "name"), "let somebody else talk and vote"),
    "rate": Verb("feedback.rate_command", "RateOptions", "run", ("run",), "let a program vote: a reward, a judge, a simulated rater"),
    "export": Verb("interop.verbs", "ExportOptions", "give", ("run",), "a model for transformers or llama.cpp; votes as files for DPO, KTO, SFT"),
    "import": Verb("interop.verbs", "ImportOptions", "take", ("path", "files"), "a Hugging Face model or adapter as a run; votes given elsewhere"),
    "improve": Verb("stages.improve", "ImproveRecipe", "run", ("run",), "train the next model from the votes"),
    "world": Verb("world.command", "WorldOptions", "run", ("out",), "write the embedded corpus to look at"),
    "task": Verb("tasks.command", "TaskOptions", "run", ("name",), "write what a model needs to learn a task"),
    "curate": Verb("curate.command", "CurateOptions", "run", ("inputs",), "stage 0: a crawl becomes training text, every drop accounted for"),
    "quality": Verb("curate.quality_command", "QualityOptions", "run", (), "train a classifier of good against ordinary text"),
    "rephrase": Verb("curate.rephrase_command", "RephraseOptions", "run", ("inputs",), "write text anew in a style: wiki, qa, easy, hard"),
    "pretrain": Verb("stages.pretrain", "PretrainRecipe", "run", ("recipe",), "stage 1: a base model from text"),
    "sft": Verb("stages.sft", "SftRecipe", "run", ("recipe",), "stage 2: teach it to answer, from conversations"),
    "reward": Verb("stages.prefer", "RewardRecipe", "run_reward", ("recipe",), "stage 3: a reward model from pairs"),
    "dpo": Verb("stages.prefer", "DpoRecipe", "run_dpo", ("recipe",), "stage 3: prefer chosen answers, without a reward model"),
    "kto": Verb("stages.prefer", "KtoRecipe", "run_kto", ("recipe",), "stage 3: learn from single votes, liked or not"),
    "reinforce": Verb("stages.reinforce", "ReinforceRecipe", "run", ("recipe",), "stage 3: improve a model by its own scored answers"),
    "best-of-n": Verb("stages.best_of_n", "BestOfNOptions", "run", (), "sample n answers to each prompt, keep the best by a reward"),
    "lab": Verb("labs.lab_command", "LabOptions", "run", ("action", "ids"), "published claims, rerun: list, run, report"),
    "overoptimise": Verb("labs.overoptimise", "OveroptimiseOptions", "run", (), "experiment: proxy and gold reward against KL"),
    "methods": Verb("labs.methods", "MethodsOptions", "run", (), "experiment: five policy-gradient methods compared"),
    "mixtures": Verb("labs.mixtures", "MixturesOptions", "run", (), "experiment: helpful against safe, two reward models"),
    "filters": Verb("labs.filters", "FiltersOptions", "run", (), "experiment: clean against raw text at equal tokens"),
    "rephrasing": Verb("labs.rephrasing", "RephrasingOptions", "run", (), "experiment: rephrased against raw text at equal tokens"),
    "adapters": Verb("labs.adapters", "AdaptersOptions", "run", (), "experiment: every kind of adapter against full training"),
    "loop": Verb("labs.loop", "LoopOptions", "run", (), "experiment: votes, next model, votes, and so on"),
    "shift": Verb("probe.shift_command", "ShiftOptions", "run", ("aligned",), "which tokens a stage changed, and by how much"),
    "laws": Verb("probe.laws_command", "LawsOptions", "run", ("files",), "scaling laws of runs: best size for a budget, law of loss, how long text lasts"),
    "knowledge": Verb("probe.knowledge_command", "KnowledgeOptions", "run", ("run",), "which facts a model knows always, sometimes, hardly or not at all"),
    "probe": Verb("probe.linear_command", "ProbeOptions", "run", ("run",), "what a linear probe reads off a model's states, layer by layer"),
    "memorise": Verb("probe.memorise_command", "MemoriseOptions", "run", ("run",), "what a model holds by heart: verbatim recall, adversarial compression ratio"),
    "passk": Verb("probe.passk_command", "PasskOptions", "run", ("run",), "pass@k: how often one of k sampled answers is right"),
    "power": Verb("probe.power_command", "PowerOptions", "run", ("run",), "whole answers from p^alpha: power sampling of a model without training"),
    "resume": Verb("resume", "ResumeOptions", "resume", ("run",), "continue whatever was interrupted"),
    "follow": Verb("stages.trackers", "FollowOptions", "follow", ("run",), "send a run's metrics to TensorBoard, trackio or wandb"),
    "runs": Verb("stages.history", "RunsOptions", "runs", ("folder",), "all runs in a folder, with where they stand"),
    "eval": Verb("interop.eval_command", "EvalOptions", "run", ("run",), "score a model on tasks of lm-evaluation-harness, files or its world"),
    "compare": Verb("probe.compare", "CompareOptions", "run", ("a", "b"), "two models on the same tasks: paired differences with intervals"),
    "judge": Verb("feedback.bench", "JudgeOptions", "run", ("a", "b"), "MT-bench: a judge gives points, or compares two models"),
    "merge": Verb("interop.merge_command", "MergeOptions", "merge", ("run",), "an adapter and its base as one plain model"),
    "lineage": Verb("stages.history", "LineageOptions", "lineage", ("run",), "the family tree of a run's models"),
    "convert": Verb("text.convert_command", "ConvertOptions", "run", ("inputs",), "write data in another shape: messages, sharegpt, alpaca, dpo, kto, prompts, text"),
    "show": Verb("stages.show", "ShowOptions", "run", ("chats",), "coloured view: which tokens of a chat are trained"),
}
# fmt: on

# What a folder may hold besides the verbs' own runs, for `fledge resume`.
PARTS = {"lab-run": Verb("labs.running", "LabRun", "run", (), "one lab of several")}

# Verbs that train: they take --track, which is no field of a recipe, for who watches a run changes nothing in it.
TRAINING = {
    "journey", "improve", "pretrain", "sft", "reward", "dpo", "kto", "reinforce", "resume", "overoptimise", "methods",
    "mixtures", "filters", "rephrasing", "adapters", "loop", "lab",
}  # fmt: skip

# Another name of a field on the command line, for verbs that have the field and no field of the alias's own name.
ALIASES = {"from": "parent", "votes": "pairs"}


def usage() -> str:
    lines = [
        "fledge: raise a language model from text to a model people talk to",
        "",
        "usage: fledge VERB [options]",
        "",
    ]
    width = max(map(len, TABLE))
    lines += [f"  {name:<{width}}  {verb.help}" for name, verb in TABLE.items()]
    lines += ["", "`fledge VERB --help` lists a verb's options. First steps: `fledge journey --quick --out runs/first`"]
    return "\n".join(lines)


def verb_usage(name: str, verb: Verb, kind: type) -> str:
    from fledge.core.config import describe

    named = " ".join("[RECIPE.toml]" if p == "recipe" else p.upper() for p in verb.positional)
    rows = describe(kind)
    names = {field: alias for alias, field in _aliases({flag[2:] for flag, _, _ in rows}).items()}
    rows = [(f, value, f"{doc} Or --{names[f[2:]]}." if f[2:] in names else doc) for f, value, doc in rows]
    if name in TRAINING:
        rows.append(("--track", "none", "Trackers beside the run, with commas: tensorboard, trackio, wandb; or off."))
    width = max(len(flag) for flag, _, _ in rows)
    lines = [f"usage: fledge {name} {named} [options]".replace("  ", " "), "", (kind.__doc__ or "").split("\n")[0], ""]
    lines += [f"  {flag:<{width}}  {doc} [{default}]" for flag, default, doc in rows]
    return "\n".join(lines)


def _aliases(fields: set[str]) -> dict[str, str]:
    """The aliases that serve a verb with these fields."""
    return {alias: field for alias, field in ALIASES.items() if field in fields and alias not in fields}


def renamed(kind: type, given: dict) -> dict:
    """`given` with aliases under the names of their fields."""
    from msgspec.structs import fields

    serving = _aliases({f.name for f in fields(kind)})
    for alias in serving.keys() & given:
        if serving[alias] in given:
            raise ValueError(f"--{alias} and --{serving[alias]} are one setting: give it once")
    return {serving.get(name, name): value for name, value in given.items()}


def parse(verb: Verb, kind: type, arguments: list[str]):
    """Leading words are the verb's positionals, the rest are --flags; both and the recipe go through one check."""
    from fledge.core.config import load_recipe, merge, parse_overrides

    words = []
    while arguments and not arguments[0].startswith("--"):
        words.append(arguments.pop(0))
    several = bool(verb.positional) and verb.positional[-1] in ("inputs", "files", "ids")  # takes all the words that are left
    if len(words) > len(verb.positional) and not several:
        raise ValueError(f"{words[len(verb.positional)]!r}: unexpected; options are written --name value")
    given = dict(zip(verb.positional, words, strict=False))
    if several and len(words) > len(verb.positional):
        given[verb.positional[-1]] = words[len(verb.positional) - 1 :]
    recipe = given.pop("recipe", None)
    return load_recipe(kind, recipe, merge(given, renamed(kind, parse_overrides(arguments))))


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 2 bad input, 128 + n stopped by signal n)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from fledge import __version__

        print(__version__)
        return 0
    name = arguments.pop(0)
    if name not in TABLE:
        import difflib

        near = difflib.get_close_matches(name, TABLE, n=1)
        hint = f"did you mean `fledge {near[0]}`?" if near else "`fledge --help` lists the verbs"
        print(f"error: no verb {name!r}: {hint}", file=sys.stderr)
        return 2
    verb = TABLE[name]
    module = import_module(f"fledge.{verb.module}")
    kind = getattr(module, verb.options)
    if "--help" in arguments or "-h" in arguments:
        print(verb_usage(name, verb, kind))
        return 0
    return _guarded(lambda: _shown(getattr(module, verb.function)(parse(verb, kind, _untracked(name, arguments)))))


def _untracked(name: str, arguments: list[str]) -> list[str]:
    """The arguments without --track, which is taken note of. Raises ValueError for an unknown tracker."""
    if name not in TRAINING or not any(word.partition("=")[0] == "--track" for word in arguments):
        return arguments
    from fledge.stages.tracking import take_setting

    return take_setting(arguments)


def _shown(result) -> None:
    from fledge.core.shown import print_result

    print_result(result)


def _resumed_with(run: Path) -> Path:
    """The folder whose resume goes on with this run: its own, or the journey, round or experiment it belongs to."""
    from fledge.stages.common import read_recipe

    above = [p for p in run.parents if (p / "recipe.json").exists()]
    if not above:
        return run
    rounds = [p for p in above if p.parent.name == "rounds"]  # below a journey, but not of it
    return rounds[0] if rounds and read_recipe(above[-1])["stage"] != "loop" else above[-1]


def _guarded(work) -> int:
    """Run `work`; what a user can mend is one clear message, our own bugs keep their traceback."""
    from fledge.core.train import Interrupted

    try:
        work()
    except Interrupted as stop:
        whole = _resumed_with(stop.run)
        print(f"{stop}; continue with `fledge resume {whole}`", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("stopped; `fledge resume RUN` continues it", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
