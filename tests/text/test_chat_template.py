"""Chat templates of well-known families become formats that write what `transformers` writes."""

import datetime
from typing import NamedTuple

import msgspec
import pytest
import tokenizers
from foreign_models import MAKERS, NAMES, gpt2, llama2, llama3, qwen2
from hypothesis import given, settings
from hypothesis import strategies as st
from published_templates import PUBLISHED, QWEN3, SMOLLM2
from transformers import PreTrainedTokenizerFast

from fledge.text.chat_format import JINJA, ChatFormat
from fledge.text.chat_template import CHATML, derive
from fledge.text.formats import Chat, Message, Pair
from fledge.text.template import (
    answer_beginning,
    answer_start,
    encode_answers,
    fit_prompt,
    render,
    render_answers,
    render_chats,
    render_pairs,
    render_prompt,
)
from fledge.text.tokenizer import Tokenizer


class Model(NamedTuple):
    ours: Tokenizer
    theirs: PreTrainedTokenizerFast


_MODELS: dict[str, Model] = {}


def model_of(name: str) -> Model:
    if name not in _MODELS:
        maker, template = PUBLISHED[name]
        derived = derive(MAKERS[maker](), NAMES[maker], template)
        held = msgspec.json.decode(msgspec.json.encode(derived.chat_format), type=ChatFormat)  # as a card keeps it
        theirs = PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(MAKERS[maker]().decode()), **NAMES[maker]
        )
        theirs.chat_template = template
        _MODELS[name] = Model(Tokenizer(derived.tokenizer, held), theirs)
    return _MODELS[name]


@pytest.fixture(autouse=True)
def the_day(monkeypatch):
    """transformers tells templates the date; ours is always this one."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 26)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


def said(*turns: str) -> tuple[Message, ...]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return tuple(Message(roles[t[0]], t[2:]) for t in turns)


CHATS = (
    said("u:hi"),
    said("u:What is the answer?", "a:I don't know, 42 maybe."),
    said("u:泰斯克河？ 🦊", "a:Привет, é!", "u:And then\n\n- a\n- b"),
    said("u:one", "a:two", "u:three", "a:```python\nprint(1)\n```"),
    said("s:Be kind.", "u:hi"),
    said("s:You are a pirate.\nArr!", "u:hi there", "a:Ahoy.", "u:again?", "a:No."),
)


def rows(messages) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def apply(model: Model, messages) -> list[int]:
    """What transformers makes of a chat: its prompt, or all of it up to the last answer's end."""
    asks = messages[-1].role == "user"
    ids = model.theirs.apply_chat_template(rows(messages), add_generation_prompt=asks, tokenize=True, return_dict=False)
    return ids if asks else ids[: len(ids) - ids[::-1].index(model.ours.end)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_tokens_are_those_of_transformers(name):
    model = model_of(name)
    tried = 0
    for messages in CHATS:
        if messages[0].role == "system" and model.ours.turns.system is None:
            continue
        ask = messages[-1].role == "user"
        ours = render_prompt(model.ours, messages) if ask else render(model.ours, messages).tokens
        assert ours == apply(model, messages)
        tried += 1
    assert tried >= 4


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_first_messages_are_the_first_tokens_and_a_prompt_is_what_was_trained(name):
    tokenizer = model_of(name).ours
    messages = CHATS[-1] if tokenizer.turns.system else CHATS[3]
    whole = render(tokenizer, messages)
    for count in range(len(messages) + 1):
        part = render(tokenizer, messages[:count])
        assert whole.tokens[: len(part.tokens)] == part.tokens and whole.weights[: len(part.tokens)] == part.weights
        if count < len(messages) and messages[count].role == "assistant":
            prompt = render_prompt(tokenizer, messages[:count])
            assert whole.tokens[: len(prompt)] == prompt
            assert whole.weights[len(prompt) - 1 : len(prompt) + 1] == [0, 1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_trained_are_the_answers_and_their_end_alone(name):
    tokenizer = model_of(name).ours
    tokens, weights = render(tokenizer, CHATS[3])
    answers = encode_answers(tokenizer, ["two", CHATS[3][3].content])
    assert [t for t, w in zip(tokens, weights, strict=True) if w] == [t for answer in answers for t in answer]
    assert weights[-1] == 1 and tokens[-1] == tokenizer.end
    assert all(answer[-1] == tokenizer.end and answer.count(tokenizer.end) == 1 for answer in answers)
    assert tokenizer.decode(answers[0]).strip() == "two"
    assert answer_start(weights) == len(tokens) - len(answers[1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_answers_pairs_and_bulk_agree(name):
    tokenizer = model_of(name).ours
    prompt = CHATS[2][:1]
    ((first, second),) = render_pairs(tokenizer, [Pair(prompt, "good one", "bad one", "test")])
    opening = render_prompt(tokenizer, prompt)
    for rendered, answer in ((first, "good one"), (second, "bad one")):
        (tail,) = encode_answers(tokenizer, [answer])
        assert rendered.tokens == opening + tail
        assert rendered.weights == [0] * len(opening) + [1] * len(tail)
    chats = [Chat(c, "test") for c in CHATS if c[0].role == "user"]
    assert render_chats(tokenizer, chats) == [render(tokenizer, c.messages) for c in chats]
    assert render_answers(tokenizer, [(CHATS[3][:3], "x")])[0].weights.count(1) == len(
        encode_answers(tokenizer, ["x"])[0]
    )
    begun = answer_beginning(tokenizer, "good")
    assert tokenizer.decode(begun).strip() == "good" and answer_beginning(tokenizer, "") == []


texts = st.text(max_size=12).filter(str.strip)


@pytest.mark.parametrize("name", ["qwen2.5", "llama3", "gemma2", "mistral0.3"])
@settings(max_examples=20)
@given(data=st.data())
def test_no_text_can_forge_a_turn(name, data):
    tokenizer = model_of(name).ours
    names = list(tokenizer.special_ids.values())
    words = st.lists(st.sampled_from([*names, "user", "\n", " "]) | texts, min_size=1, max_size=5).map("".join)
    contents = data.draw(st.lists(words, min_size=3, max_size=3))
    messages = [Message(("user", "assistant")[n % 2], c) for n, c in enumerate(contents)]
    plain = said("u:a", "a:b", "u:c")
    controls, wanted = (
        [t for t in render(tokenizer, m).tokens if t in tokenizer.special_ids] for m in (messages, plain)
    )
    assert controls == wanted


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_long_chat_loses_its_oldest_turns(name):
    tokenizer = model_of(name).ours
    turns = said("u:first question", "a:first answer", "u:second question", "a:second answer", "u:last one")
    for head in ((), said("s:be kind")) if tokenizer.turns.system else ((),):
        whole = render_prompt(tokenizer, [*head, *turns])
        assert fit_prompt(tokenizer, [*head, *turns], len(whole)) == (whole, 0)
        less = render_prompt(tokenizer, [*head, *turns[2:]])
        assert fit_prompt(tokenizer, [*head, *turns], len(whole) - 1) == (less, 2)
        least = render_prompt(tokenizer, [*head, *turns[4:]])
        assert fit_prompt(tokenizer, [*head, *turns], len(least)) == (least, 4)
        with pytest.raises(ValueError, match=f"takes {len(least)} tokens"):
            fit_prompt(tokenizer, [*head, *turns], len(least) - 1)


# ------------------------------------------------------------------------------------------- what a person is told


def notes_of(name: str) -> str:
    return " | ".join(model_of(name).ours.format.notes)


def test_notes_tell_what_a_template_does_on_its_own():
    assert "the template writes one: 'You are Qwen, created by Alibaba Cloud." in notes_of("qwen2.5")
    assert "here it is always 26 July 2024" in notes_of("llama3.2")
    assert "only the words ' [/INST]' divide user's and assistant's turns" in notes_of("mistral0.2")
    assert "System role not supported" in notes_of("gemma2")
    assert notes_of("llama3") == notes_of("gemma3") == ""


def test_an_order_without_a_form_is_refused():
    for name, turns, why in (
        ("gemma2", ("s:be kind", "u:hi"), r"no place for a system message \(.*System role not supported\)"),
        ("mistral0.3", ("s:be kind", "u:hi"), "no place for a system message"),
        ("llama3", ("u:a", "u:b"), "a message by user after one by user"),
        ("llama3", ("a:a",), "a message by assistant first"),
        ("llama3", ("u:a", "a:b", "s:c"), "a message by system after one by assistant"),
    ):
        with pytest.raises(ValueError, match=why):
            render(model_of(name).ours, said(*turns))


def test_white_space_is_stripped_as_the_template_does():
    for name, content in (("llama3", "a"), ("qwen2.5", " \n a \t"), ("gemma3", "a")):
        tokenizer = model_of(name).ours
        assert render(tokenizer, said("u: \n a \t")).tokens == render(tokenizer, said(f"u:{content}")).tokens


# ------------------------------------------------------------------------------------------------------- ChatML


@pytest.mark.parametrize("name", MAKERS)
def test_chatml_for_any_tokenizer(name):
    derived = derive(MAKERS[name](), NAMES[name], "{{ broken", "chatml")
    before = Tokenizer(*derive(MAKERS[name](), NAMES[name], None, "none"))
    tokenizer = Tokenizer(derived.tokenizer, derived.chat_format)
    there = "<|im_end|>" in before.special_ids.values()
    assert derived.chat_format.added == (() if there else (before.vocab_size, before.vocab_size + 1))
    assert tokenizer.vocab_size == before.vocab_size + len(derived.chat_format.added)
    assert tokenizer.token_text(tokenizer.end) == "<|im_end|>" and derived.chat_format.name == "chatml"
    assert tokenizer.encode("plain words") == before.encode("plain words")
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(derived.tokenizer.decode()), **NAMES[name]
    )
    theirs.chat_template = derived.chat_format.template
    model = Model(tokenizer, theirs)
    for messages in CHATS:
        ours = render_prompt(tokenizer, messages) if messages[-1].role == "user" else render(tokenizer, messages).tokens
        assert ours == apply(model, messages)


def test_a_begin_token_of_the_model_stays():
    tokenizer = Tokenizer(*derive(llama3(), NAMES["llama3"], None, "chatml"))
    assert render_prompt(tokenizer, CHATS[0])[0] == tokenizer.bos
    smollm = derive(MAKERS["smollm"](), NAMES["smollm"], None, "chatml").chat_format
    assert smollm.template == CHATML  # its bos is what begins a turn


# --------------------------------------------------------------------------------------------------- refusals


def refusal(template: str, maker=qwen2, names="qwen2") -> str:
    with pytest.raises(ValueError, match="cannot be used: ") as caught:
        derive(maker(), NAMES[names], template)
    return str(caught.value)


TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def test_what_is_no_fixed_text_around_messages_is_refused_with_its_difference():
    assert r"'im_start|>assistant\n<think>\n\n</think>\n\n', not 'im_start|>assistant\n'" in refusal(QWEN3)
    assert "it has no generation prompt: '<|im_start|>assistant\\n'" in refusal(LOOP)
    assert "asked for an answer" in refusal(LOOP + ASK.replace("\n'", "\n<think>\n'"))
    assert "ends in no control token" in refusal(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert "depends on what follows" in refusal(
        LOOP.replace("m.content", "(m.content if messages|length != 3 else m.content + '!')") + ASK
    )
    assert "changes the white space" in refusal(LOOP.replace("m.content", "m.content.replace('\\t', '    ')") + ASK)
    assert "leaves out or moves message 1" in refusal(LOOP.replace("in messages", "in messages[-1:]") + ASK)
    assert "writes message 1 2 times" in refusal(LOOP.replace("m.content", "m.content + m.content") + ASK)
    assert "for thoughts" in refusal(LOOP.replace("m.content", "m.content.split('</think>')[-1]") + ASK)
    assert "for markup of programs" in refusal(LOOP.replace("m.content", "m.content.replace('{{', '')") + ASK)
    assert "fails for a chat of user" in refusal("{{ messages[9].role }}" + LOOP + ASK)
    assert "<|im_start|>" in refusal(LOOP + ASK, gpt2, "gpt2")


def test_a_refusal_offers_chatml_and_says_what_it_costs():
    assert "`--template chatml` to train on ChatML instead (the model has its control tokens)" in refusal(QWEN3)
    assert "(2 control tokens are added and trained)" in refusal(SMOLLM2, llama2, "llama2")
    assert "or with `--template none`" in refusal(QWEN3)


def test_without_a_template_there_are_no_chats():
    derived = derive(gpt2(), NAMES["gpt2"], None)
    tokenizer = Tokenizer(derived.tokenizer, derived.chat_format)
    assert derived.chat_format.name == "none" and tokenizer.end == tokenizer.eos
    for ask in (lambda: render(tokenizer, CHATS[0]), lambda: render_prompt(tokenizer, CHATS[0]),
                lambda: fit_prompt(tokenizer, CHATS[0], 99), lambda: encode_answers(tokenizer, ["a"])):  # fmt: skip
        with pytest.raises(ValueError, match=r"has no chat template.*--template chatml"):
            ask()


def test_our_own_is_known_by_its_tokens_pattern_and_template(tokenizer):
    assert derive(tokenizer.json, {}, JINJA) == (tokenizer.json, None)
    assert derive(tokenizer.json, {}, None).chat_format is None
    other = derive(tokenizer.json, {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}, None, "chatml")
    assert len(other.chat_format.added) == 2 and Tokenizer(*other).encode("The river") == tokenizer.encode("The river")
    same = derive(tokenizer.json, {"eos_token": "<|eos|>", "bos_token": "<|bos|>"}, JINJA + " ".strip(), "none")
    assert same.chat_format.name == "none"


def test_our_own_template_read_as_a_foreign_one_writes_the_same(tokenizer):
    """The derivation, checked on the template whose ids are known."""
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    derived = derive(tokenizer.json, names, JINJA + "{# read as another's #}")
    other = Tokenizer(derived.tokenizer, derived.chat_format)
    for messages in CHATS:
        assert render(other, messages) == render(tokenizer, messages)
        assert render_prompt(other, messages) == render_prompt(tokenizer, messages)
