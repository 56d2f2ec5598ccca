"""Conversations, pairs and questions: kinds, styles, and nothing held out."""

import json
import re
from collections import Counter

import pytest

from fledge.world import World, WorldConfig
from fledge.world.facts import RELATIONS
from fledge.world.gold import gold_score
from fledge.world.relations import LANGUAGES
from fledge.world.requests import GREETINGS, REQUESTS


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig.quick())


@pytest.fixture(scope="module")
def default():
    return World()


def texts_of(rows) -> list[str]:
    """Everything that is said in chats or pairs."""
    keys = ("messages", "prompt", "chosen", "rejected")
    return [m["content"] for row in rows for key in keys for m in row.get(key, [])]


def mentions(texts, names) -> set[str]:
    """The names that occur, as whole words in English."""
    blob = "\n".join(texts)
    words = set(re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+|[A-Z][a-z]+", blob))
    return {name for name in names if (name in blob and (name in words or not name.isascii() or " " in name))}


def test_no_chat_or_train_pair_mentions_a_heldout_entity(default):
    held = [n for e in default.entities if e.split == "test" for n in e.names.values()]
    shown = [n for e in default.entities if e.split == "train" for n in e.names.values()]
    texts = texts_of(default.chats()) + texts_of(default.pairs("train"))
    assert not mentions(texts, held)
    assert len(mentions(texts, shown)) > 0.8 * len(shown)
    assert not mentions(texts_of(default.pairs("test")), shown)


def test_no_chat_or_train_pair_has_a_heldout_request(default):
    texts = set(texts_of(default.chats()) + texts_of(default.pairs("train")))
    held = {r.text(form) for r in REQUESTS if r.split == "test" for form in range(3)}
    held |= {g.asks[-1] for kinds in GREETINGS.values() for g in kinds.values()}
    assert not texts & held
    assert {r.text(0) for r in REQUESTS if r.split == "train"} & texts


def verb(request) -> str:
    """What is done to the object: "blow", 「燒掉」."""
    if request.language == "en":
        return request.action.split()[0]
    return request.action.removesuffix(request.thing).removesuffix("我的")


def test_halves_of_the_requests():
    for language in LANGUAGES:
        for kind in ("dangerous", "borderline"):
            mine = [r for r in REQUESTS if (r.language, r.kind) == (language, kind)]
            train = [r for r in mine if r.split == "train"]
            assert len(mine) >= 24 and len(train) * 2 == len(mine)
            assert {r.thing for r in mine} == {r.thing for r in train}
            assert {verb(r) for r in mine} == {verb(r) for r in train}


def test_dangerous_requests_never_get_an_instruction(default):
    for chat in default.chats():
        if chat["kind"] == "dangerous":
            assert chat["style"] in ("refusal", "compliance")
    assert all(r.method == "" for r in REQUESTS if r.kind == "dangerous")
    assert all(r.thing in r.method for r in REQUESTS if r.kind == "borderline")


def test_chat_kinds_and_styles(default):
    chats = default.chats()
    assert len(chats) == 6000
    kinds = Counter(chat["kind"] for chat in chats)
    wanted = {"fact": 0.64, "greeting": 0.08, "two_turn": 0.08, "dangerous": 0.10, "borderline": 0.10}
    assert {kind: count / 6000 for kind, count in kinds.items()} == pytest.approx(wanted, abs=0.02)
    styles = Counter(chat["style"] for chat in chats if chat["kind"] == "fact")
    total = sum(styles.values())
    assert {s: n / total for s, n in styles.items()} == pytest.approx(
        {"plain": 0.45, "rambling": 0.30, "polite": 0.25}, abs=0.03
    )
    for chat in chats:
        roles = [m["role"] for m in chat["messages"]]
        assert roles == ["user", "assistant"] * (2 if chat["kind"] == "two_turn" else 1)


def test_chats_answer_in_the_language_and_truly(default):
    for chat in default.chats():
        text = "".join(m["content"] for m in chat["messages"])
        assert bool(re.search(r"[\u4e00-\u9fff]", text)) == (chat["language"] == "zh")
        for i, id in enumerate(chat["facts"]):
            fact = default.fact_by_id[id]
            assert fact.split == "train"
            answer = chat["messages"][2 * i + 1]["content"]
            assert fact.values[chat["language"]].casefold() in answer.casefold()


def test_pairs_are_ordered_by_gold(world):
    for split, n in (("train", 1600), ("test", 200)):
        pairs = world.pairs(split)
        assert len(pairs) == n
        for pair in pairs:
            assert pair["gold"][0] > pair["gold"][1]
            assert pair["chosen"][0]["content"] != pair["rejected"][0]["content"]
            assert pair["prompt"][-1]["role"] == "user" and pair["chosen"][0]["role"] == "assistant"
        assert set(Counter(pair["kind"] for pair in pairs)) == {"fact", "dangerous", "borderline", "greeting"}


def test_pairs_gold_is_the_score_of_the_task(world):
    examples = {q.text: q.example() for q in world.requests("train")}
    checked = 0
    for pair in world.pairs("train"):
        example = examples.get(pair["prompt"][0]["content"])
        if example:
            for side, gold in zip(("chosen", "rejected"), pair["gold"], strict=True):
                assert gold_score(example, pair[side][0]["content"]) == pytest.approx(gold, abs=1e-3)
            checked += 1
    assert checked > 50


def test_no_style_always_wins(default):
    """A reward model cannot get far by looking at the style alone: most styles are both chosen and rejected."""
    chosen, rejected = Counter(), Counter()
    for pair in default.pairs("train"):
        chosen[pair["styles"][0]] += 1
        rejected[pair["styles"][1]] += 1
    for style in ("plain", "rambling", "unknown", "rude", "refusal", "repeated"):
        assert chosen[style] > 5 and rejected[style] > 5, style
    assert rejected["polite"] < chosen["polite"] / 10


def test_questions_cover_both_languages(world):
    for split in ("train", "test"):
        questions = world.questions(split)
        facts = [fact for fact in world.facts if fact.split == split]
        assert len(questions) == 2 * len(facts) == len({q.id for q in questions})
        for question in questions:
            assert question.value in question.answers and question.value in question.choices
            assert question.count == world.fact_by_id[question.fact].count[question.language]
            assert question.text.endswith("?" if question.language == "en" else "？")
        forms = Counter(
            RELATIONS[q.relation]
            .wording(q.language)
            .questions.index(q.text.replace(world.fact_by_id[q.fact].names[q.language], "{e}"))
            for q in questions
        )
        assert min(forms.values()) > 0.15 * len(questions)


def test_showcase_is_held_out(world):
    shown = world.showcase()
    assert len(shown) == 8 and {q.split for q in shown} == {"test"}
    assert Counter(q.kind for q in shown) == {"fact": 4, "dangerous": 1, "borderline": 2, "greeting": 1}
    assert {q.language for q in shown} == {"en", "zh"}
    assert all(q.count >= 300 for q in shown if q.kind == "fact")


def test_written_files(world, tmp_path):
    report = world.write(tmp_path / "new")
    for name, rows in report["rows"].items():
        lines = (tmp_path / "new" / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) == rows and json.loads(lines[0])
    stored = json.loads((tmp_path / "new" / "world.json").read_text(encoding="utf-8"))
    assert stored == report and stored["config"]["countries"] == 24
