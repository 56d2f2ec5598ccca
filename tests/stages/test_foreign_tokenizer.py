"""An imported model with its own tokenizer and chat template goes through stages, chat and probes as ours does."""

from pathlib import Path

import msgspec
import pytest
from foreign_models import MAKERS, NAMES
from published_templates import PUBLISHED
from sums import LOOP, asked, write_rows

from fledge.core.checkpoint import load_checkpoint, save_checkpoint
from fledge.core.config import build
from fledge.core.model import ModelConfig, Transformer
from fledge.feedback.model_reward import ModelReward
from fledge.generate.chat import Answer, answer, chat_engine, continue_text, stream
from fledge.generate.sampling import Sampling
from fledge.probe.next_token import context_tokens
from fledge.probe.shift import require_same_tokens
from fledge.stages import prefer, reinforce, sft
from fledge.stages.common import open_model
from fledge.tasks.base import Example
from fledge.text.chat_template import derive
from fledge.text.formats import Message
from fledge.text.template import encode_answers, render_prompt
from fledge.text.tokenizer import Tokenizer

FAMILIES = ("qwen2.5", "mistral0.2", "gemma3")
SAYINGS = [("Snow?", "white"), ("Grass?", "green"), ("The sky?", "blue, mostly"), ("煤？", "黑")] * 4
GREEDY = Sampling(temperature=0.0, max_tokens=16)


def imported(folder: Path, name: str, template: str | None = "", choice: str = "model", rows: int = 7) -> str:
    """A checkpoint as an import writes it, its embedding `rows` larger than the vocabulary."""
    maker, published = PUBLISHED[name]
    derived = derive(MAKERS[maker](), NAMES[maker], published if template == "" else template, choice)
    tokenizer = Tokenizer(*derived)
    config = ModelConfig(size="tiny", vocab_size=tokenizer.vocab_size + rows, context_tokens=128)
    model = Transformer(config).initialise(0)
    card = {"stage": "import", "parent": None, "model": msgspec.to_builtins(config), "recipe": {}, "data": {}}
    card["chat_format"] = msgspec.to_builtins(derived.chat_format)
    return str(
        save_checkpoint(
            folder / name, 0, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=derived.tokenizer
        )
    )


def taught(folder: Path, parent: str) -> str:
    chats = write_rows(folder / "chats.jsonl", [{"prompt": q, "completion": a} for q, a in SAYINGS])
    train = {**LOOP, "steps": 60, "lr": 5e-3, "batch_tokens": 1024}
    recipe = {"out": str(folder / "sft"), "parent": parent, "chats": [chats], "train": train}
    return str(sft.run(build(sft.SftRecipe, recipe), quiet=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_taught_in_its_own_template_it_answers_and_stops(tmp_path, name):
    parent = imported(tmp_path, name)
    child = taught(tmp_path, parent)
    opened, before = open_model(child), open_model(parent)
    assert load_checkpoint(child).card["chat_format"] == load_checkpoint(parent).card["chat_format"]
    assert opened.tokenizer.format == before.tokenizer.format
    require_same_tokens(opened, before)
    engine = chat_engine(opened.model, opened.tokenizer)
    talks = [[Message("user", q)] for q, _ in SAYINGS]
    found = answer(engine, opened.tokenizer, talks, GREEDY)
    assert sum(f.text == a and f.finish == "stop" for f, (_, a) in zip(found, SAYINGS, strict=True)) == len(SAYINGS)
    *pieces, whole = stream(engine, opened.tokenizer, talks[0], GREEDY)
    assert isinstance(whole, Answer) and "".join(pieces) == whole.text == found[0].text
    assert continue_text(engine, opened.tokenizer, ["The river"], GREEDY)[0].finish in ("stop", "length")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reward_model_judges_what_it_was_trained_on(tmp_path, name):
    parent = imported(tmp_path, name)
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": q, "chosen": a, "rejected": "no"} for q, a in SAYINGS])
    train = {**LOOP, "steps": 40, "lr": 5e-3, "batch_tokens": 1024}
    given = {"out": str(tmp_path / "reward"), "parent": parent, "pairs": [pairs], "train": train}
    judge = open_model(prefer.run_reward(build(prefer.RewardRecipe, given), quiet=True), head="reward")
    reward = ModelReward(judge.model, judge.tokenizer, "judge")
    examples = [
        Example(id=q, prompt=[{"role": "user", "content": q}], answers=(a,), kind="", language="en") for q, a in SAYINGS
    ]
    good, bad = reward(examples, [a for _, a in SAYINGS]), reward(examples, ["no"] * len(SAYINGS))
    assert sum(g > b for g, b in zip(good, bad, strict=True)) == len(SAYINGS)


def test_rewarded_answers_of_an_imported_model(tmp_path):
    child = taught(tmp_path, imported(tmp_path, "qwen2.5"))
    given = {
        "out": str(tmp_path / "rl"), "parent": child, "prompts": [asked(tmp_path / "prompts.jsonl")], "reward": ["exact"],
        "prompts_per_update": 4, "group_size": 4, "max_tokens": 6, "kl": "measure",
        "train": {**LOOP, "steps": 2, "lr": 1e-3, "batch_tokens": 65536, "schedule": "constant"},
    }  # fmt: skip
    card = load_checkpoint(reinforce.run(build(reinforce.ReinforceRecipe, given), quiet=True)).card
    assert card["chat_format"] == load_checkpoint(child).card["chat_format"]


def test_chatml_in_place_of_no_template_has_rows_of_its_own(tmp_path):
    child = taught(tmp_path, imported(tmp_path, "mistral0.2", None, "chatml", rows=0))
    opened = open_model(child)
    assert [opened.tokenizer.token_text(i) for i in opened.tokenizer.format.added] == ["<|im_start|>", "<|im_end|>"]
    found = answer(chat_engine(opened.model, opened.tokenizer), opened.tokenizer, [[Message("user", "Snow?")]], GREEDY)
    assert found[0].finish == "stop"


def test_contexts_begin_as_the_template_says(tmp_path):
    tokenizer = open_model(imported(tmp_path, "mistral0.2")).tokenizer
    chat = (Message("user", "hi"),)
    prompt = render_prompt(tokenizer, chat)
    assert context_tokens(tokenizer, messages=chat) == prompt
    begun = context_tokens(tokenizer, text="good", messages=chat)
    assert begun == prompt + encode_answers(tokenizer, ["good"])[0][:-1]
    assert context_tokens(tokenizer, text="good") == [tokenizer.bos, *tokenizer.encode("good")]


def test_a_model_without_a_template_is_taught_text_only(tmp_path):
    parent = imported(tmp_path, "qwen2.5", None)
    with pytest.raises(ValueError, match=r"has no chat template.*--template chatml"):
        taught(tmp_path, parent)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the tokenizer has 524 tokens, the embedding 520 rows"):
        open_model(imported(tmp_path, "qwen2.5", rows=-4))
