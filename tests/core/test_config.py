"""How a recipe is read: the command line over TOML over defaults, and every mistake told at once, before any work."""

import importlib
from pathlib import Path

import msgspec
import pytest

from fledge import cli
from fledge.core.config import (
    Settings,
    TrainConfig,
    build,
    describe,
    field_docs,
    load_recipe,
    merge,
    parse_count,
    parse_overrides,
)
from fledge.core.model import ModelConfig, Shape
from fledge.curate.plan import CurateOptions
from fledge.feedback.votes_command import VotesOptions
from fledge.generate.sampling import Sampling
from fledge.probe.laws_command import LawsOptions
from fledge.stages.prefer import DpoRecipe
from fledge.stages.pretrain import PretrainRecipe
from fledge.stages.sft import SftRecipe

WHOLE = {"out": "runs/x", "text": ["docs"]}


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def complaint(kind: type, data: dict) -> str:
    with pytest.raises(ValueError) as caught:
        build(kind, data)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------- reading


def test_toml_then_the_command_line_which_wins(tmp_path):
    path = recipe(tmp_path, 'out = "a"\ntext = ["docs"]\n[train]\nlr = 1e-2\nsteps = 5\n[model]\nlayers = 2\n')
    over = parse_overrides(["--train.steps", "200", "--model.width=256", "--out", "b"])
    made = load_recipe(PretrainRecipe, path, over)
    assert (made.out, made.text) == ("b", ["docs"])
    assert (made.train.steps, made.train.lr) == (200, 1e-2)
    assert (made.model.layers, made.model.width) == (2, 256)


def test_a_section_set_in_part_keeps_the_stage_s_own_defaults():
    """Pretraining's Muon at 4e-3 must survive `--train.steps 200`; --help promises it."""
    for kind, data in ((PretrainRecipe, WHOLE), (DpoRecipe, {"out": "o", "parent": "p", "pairs": ["f"]})):
        default = build(kind, data).train
        made = build(kind, {**data, "train": {"steps": 200}}).train
        assert made == msgspec.structs.replace(default, steps=200)
    promised = {flag: shown for flag, shown, _ in describe(PretrainRecipe)}
    assert (promised["--train.lr"], promised["--train.optimizer"]) == ("0.004", "muon")
    assert build(PretrainRecipe, {**WHOLE, "train": {"steps": 9}}).train.optimizer == "muon"


def test_values_are_read_by_tomls_rules():
    found = parse_overrides(
        ["--train.steps", "1_000", "--train.lr", "1e-3", "--train.compile", "--train.spike-sigma", "none",
         "--text", "a b.txt", "--name=x=y", "--train.min_lr", "-1", "--out", "2026-01-31"]
    )  # fmt: skip
    assert found == {
        "train": {"steps": 1000, "lr": 1e-3, "compile": True, "spike_sigma": None, "min_lr": -1},
        "text": "a b.txt", "name": "x=y", "out": "2026-01-31",
    }  # fmt: skip
    made = build(PretrainRecipe, {**WHOLE, "train": {"steps": 1000, "spike_sigma": None}})
    assert made.train.steps == 1000 and made.train.spike_sigma is None


def test_underscored_numbers_in_toml(tmp_path):
    path = recipe(tmp_path, 'out = "a"\ntext = "docs"\ntokens = 5_000_000\n[train]\nsteps = 1_000\n')
    made = load_recipe(PretrainRecipe, path, {})
    assert (made.tokens, made.train.steps) == (5_000_000, 1000)
    assert made.text == ["docs"]  # one value for a list is a list of one


def test_a_flag_given_twice_makes_a_list():
    assert parse_overrides(["--text", "a", "--text", "b", "--text", "c"]) == {"text": ["a", "b", "c"]}


@pytest.mark.parametrize("arguments", [["train.steps", "3"], ["--"], ["-x"], ["--train.steps", "3", "left over"]])
def test_what_is_no_flag_is_named(arguments):
    with pytest.raises(ValueError, match="expected --section"):
        parse_overrides(arguments)


@pytest.mark.parametrize("arguments", [["--train", "5", "--train.lr", "1"], ["--train.lr", "1", "--train", "5"]])
def test_a_section_and_a_value_of_one_name_are_refused(arguments):
    with pytest.raises(ValueError, match="not both"):
        parse_overrides(arguments)


def test_merge_goes_into_sections_and_leaves_its_arguments_alone():
    base, over = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "c": {"z": 4}}
    assert merge(base, over) == {"a": {"x": 1, "y": 3}, "b": 1, "c": {"z": 4}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1} and over == {"a": {"y": 3}, "c": {"z": 4}}


@pytest.mark.parametrize("text", ["out = ", "[train\n", "lr = 1e-3\nlr = 2\n"])
def test_broken_toml_names_the_file(tmp_path, text):
    with pytest.raises(ValueError, match=r"recipe .*recipe\.toml is not valid TOML: .*(line [12]|end of document)"):
        load_recipe(PretrainRecipe, recipe(tmp_path, text), {})


def test_a_missing_or_binary_recipe_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.toml does not exist"):
        load_recipe(PretrainRecipe, tmp_path / "absent.toml", {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.toml is not valid TOML"):
        load_recipe(PretrainRecipe, tmp_path / "binary.toml", {})


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": {"stesp": 5}}, "train.stesp: unknown key; did you mean train.steps?"),
        ({"modle": {}}, "modle: unknown key; did you mean model?"),
        ({"train": {"learning_rate_of_it": 1}}, "train.learning_rate_of_it: unknown key; known keys: steps, batch"),
        ({"train": {"lr": "1e-3"}}, "train.lr = '1e-3': Expected `float`, got `str`"),
        ({"train": {"steps": 2.5}}, "train.steps = 2.5: Expected `int | null`, got `float`"),
        ({"train": {"steps": True}}, "train.steps = True: Expected `int | null`, got `bool`"),
        ({"train": {"steps": [1, 2]}}, "train.steps = [1, 2]: Expected `int | null`, got `array`"),
        ({"train": {"schedule": "cosin"}}, "train.schedule = 'cosin': Invalid enum value 'cosin'"),
        ({"train": 5}, "train = 5: Expected `object`, got `int`"),
        ({"text": [1]}, "text = [1]: Expected `str`, got `int`"),
    ],
)
def test_a_mistake_names_its_key_and_what_is_expected(data, message):
    assert message in complaint(PretrainRecipe, {**WHOLE, **data})


def test_a_number_written_as_text_in_toml_is_an_error(tmp_path):
    path = recipe(tmp_path, 'out = "a"\ntext = "d"\n[train]\nlr = "1e-3"\n')
    with pytest.raises(ValueError, match=r"train\.lr = '1e-3': Expected `float`, got `str`"):
        load_recipe(PretrainRecipe, path, {})


def test_a_required_field_is_asked_for_by_its_flag():
    assert complaint(SftRecipe, {"out": "o"}).count("required; set it in the recipe or with --") == 2
    assert "parent: required; set it in the recipe or with --parent" in complaint(SftRecipe, {"out": "o"})


BROKEN = {
    "train": {"lr": -1, "batch_tokens": 0, "steps": 10**18, "seed": -1, "device": "gpu"},
    "model": {"heads": 3, "context_tokens": 0},
    "tokens": 0,
}
RULES = (
    "train.lr = -1", "train.batch_tokens = 0", "train.steps = 1000000000000000000", "train.seed = -1",
    "train.device = 'gpu'", "heads = 3 does not divide model.width = 128", "model.context_tokens = 0",
)  # fmt: skip


def test_all_broken_rules_are_told_at_once():
    text = complaint(PretrainRecipe, {**WHOLE, **BROKEN})
    assert text.startswith("8 settings cannot be used:")
    assert all(part in text for part in (*RULES, "tokens = 0"))


def test_unknown_keys_wrong_types_missing_fields_and_broken_rules_are_one_list():
    train = {**BROKEN["train"], "stesp": 1, "clip": "none"}
    text = complaint(PretrainRecipe, {**WHOLE, **BROKEN, "train": train})
    assert text.startswith("10 settings") and all(part in text for part in (*RULES, "stesp", "train.clip = 'none'"))
    text = complaint(PretrainRecipe, {"text": "docs", **BROKEN, "train": train})
    assert "out: required" in text and all(part in text for part in (*RULES, "stesp", "train.clip = 'none'"))


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("steps", 0, 1), ("steps", -3, None), ("micro_tokens", 0, 1), ("lr", 0.0, 1e-9), ("lr", float("nan"), 9.9),
        ("lr", float("inf"), 0.1), ("min_lr", 1.1, 1.0), ("min_lr", -0.1, 0.0), ("warmup", 1.0, 0.0),
        ("beta1", 1.0, 0.0), ("beta2", 1.0, 0.999), ("weight_decay", -0.1, 0.0), ("weight_decay", float("nan"), 1.0),
        ("clip", 0.0, float("inf")), ("spike_sigma", 0.0, None), ("save_seconds", 0.0, 0.1), ("threads", 0, None),
        ("device", "cuda:x", "cuda:1"), ("device", "", "cpu"), ("seed", -1, 0),
    ],
)  # fmt: skip
def test_each_rule_of_the_loop_has_its_border(field, bad, good):
    (told,) = TrainConfig(**{field: bad}).problems()
    assert told.startswith(f"train.{field} = {bad!r}: must be ")
    assert TrainConfig(**{field: good}).problems() == []


@pytest.mark.parametrize(
    ("field", "bad"),
    [("temperature", -0.1), ("temperature", float("nan")), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.1),
     ("max_tokens", 0), ("seed", -1)],
)  # fmt: skip
def test_each_rule_of_sampling(field, bad):
    (told,) = Sampling(**{field: bad}).problems()
    assert told.startswith(f"{field} = {bad}: must be ")
    assert Sampling().problems() == []


@pytest.mark.parametrize("tokens", [0, -5, "", "5X", "-2M", "nan", "inf", "1e999"])
def test_a_number_of_tokens_that_is_none_is_refused(tokens):
    assert f"tokens = {tokens!r}: must be" in complaint(PretrainRecipe, {**WHOLE, "tokens": tokens})


@pytest.mark.parametrize(
    ("tokens", "count"), [("5M", 5_000_000), ("200k", 200_000), ("1_000_000", 10**6), (7, 7), ("1.5b", 1_500_000_000)]
)
def test_a_number_of_tokens_may_have_its_unit(tokens, count):
    assert parse_count(build(PretrainRecipe, {**WHOLE, "tokens": tokens}).tokens) == count


def test_a_pretraining_recipe_cannot_peek_at_the_next_token():
    """What a stage is decides causal, head and classes: no recipe reaches them."""
    for field in ("causal", "head", "classes"):
        assert f"model.{field}: unknown key" in complaint(PretrainRecipe, {**WHOLE, "model": {field: "x"}})
    assert "set vocab_size" in complaint(PretrainRecipe, {**WHOLE, "model": {"vocab_size": 100}})


# ------------------------------------------------------------------------------- every option of every verb


def all_settings() -> list[type[Settings]]:
    for verb in cli.TABLE.values():
        importlib.import_module(f"fledge.{verb.module}")

    def below(kind: type) -> list[type]:
        return [kind] + [k for child in kind.__subclasses__() for k in below(child)]

    return [kind for kind in below(Settings) if kind.__module__.startswith("fledge.")]  # tests have some, too


def test_every_field_has_its_sentence():
    kinds = all_settings()
    assert {TrainConfig, ModelConfig, Shape, Sampling, PretrainRecipe} <= set(kinds)
    for kind in kinds:
        docs = field_docs(kind)
        for field in msgspec.structs.fields(kind):
            text = docs.get(field.name, "")
            assert text.endswith(".") and len(text) > 10, f"{kind.__name__}.{field.name}: {text!r}"
        assert set(docs) == {f.name for f in msgspec.structs.fields(kind)}


def test_defaults_break_no_rule():
    for kind in all_settings():
        if kind not in (VotesOptions, CurateOptions, LawsOptions) and not any(
            f.required for f in msgspec.structs.fields(kind)
        ):  # they want a word
            assert kind().problems() == [], kind.__name__


@pytest.mark.parametrize("name", list(cli.TABLE))
def test_at_most_40_options_in_any_verb_each_with_default_and_sentence(name):
    verb = cli.TABLE[name]
    kind = getattr(importlib.import_module(f"fledge.{verb.module}"), verb.options)
    rows = describe(kind)
    assert 1 <= len([flag for flag, *_ in rows if not flag.startswith("--adapter.")]) <= 40  # an adapter's own on top
    assert len({flag for flag, _, _ in rows}) == len(rows)
    assert all(flag.startswith("--") and shown and sentence for flag, shown, sentence in rows), rows
    assert set(verb.positional) - {"recipe"} <= {flag[2:] for flag, _, _ in rows}
