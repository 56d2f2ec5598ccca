"""P9: the arms differ in the texts alone, answers are judged exactly, and all of it runs on a few people."""

import msgspec
import pytest

from fledge.core.config import build
from fledge.labs.bench import Bench
from fledge.labs.p09_extraction import ARMS, SCALES, Setup, draw, exact, judge, measure, taught, told_in, unread
from fledge.labs.verdict import REPRODUCED, verdict
from fledge.stages.common import open_model, read_recipe
from fledge.world.biographies import People

PEOPLE = People(8, 0, SCALES["pocket"].attributes)


def test_arms_tell_of_the_same_people():
    for arm in ARMS:
        told = told_in(PEOPLE, arm)
        assert {b.person for b in told} == set(range(8)), arm
        assert len(told) == {"single": 8, "mixed": 8, "celebrity": 24}.get(arm, 40), arm
    single = {b.person: b.text for b in told_in(PEOPLE, "single")}
    others = [b for b in told_in(PEOPLE, "celebrity") if b.person >= 4]
    assert {b.person: b.text for b in others} == {
        p: single[p] for p in range(4, 8)
    }  # those asked about, as in `single`


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("p09")
    bench = Bench(folder / "seed-0", folder / "shared", 0, "tiny")
    return bench, measure(SCALES["tiny"], bench)


def test_it_runs_and_every_arm_starts_alike(ran):
    bench, found = ran
    assert list(found) == list(ARMS) and measure(SCALES["tiny"], bench) == found
    recipes = [read_recipe(bench.folder / f"{arm}-base")["recipe"] for arm in ARMS]
    for recipe in recipes:
        kept = {k: v for k, v in recipe.items() if k not in ("out", "text", "weights")}
        assert kept == {k: v for k, v in recipes[0].items() if k in kept}
    assert len(recipes[ARMS.index("mixed")]["text"]) == 2
    judged = judge(SCALES["tiny"], [found, found])
    assert len(judged.numbers) <= 8 and len(judged.checks) == 9 and "%" in judged.said
    svg = draw(SCALES["tiny"], [found, found])
    assert svg.startswith("<svg") and "before university" in svg and "paper" in svg


def test_names_and_values_are_single_tokens(ran):
    bench, _ = ran
    tokenizer, tiny = open_model(bench.folder / "start").tokenizer, SCALES["tiny"]
    people = People(tiny.people, 0, tiny.attributes)
    for person in people.all:
        assert len(tokenizer.encode(f" {person.name}")) == 3
        assert all(len(tokenizer.encode(f" {person.values[a].en}")) == 1 for a in people.attributes)


def test_only_words_that_no_text_has_get_embeddings_of_their_own(ran):
    bench, _ = ran
    tokenizer = open_model(bench.folder / "start").tokenizer
    asked = [("Where was Kolo born?", " Toben")]
    control = {tokenizer.system, tokenizer.user, tokenizer.assistant, tokenizer.end}
    fresh = unread(tokenizer, [" Kolo was born in Toben."], asked)
    assert control < set(fresh)
    assert set(fresh) - control == set(tokenizer.encode(asked[0][0])) - set(
        tokenizer.encode(" Kolo was born in Toben.")
    )
    adapter = read_recipe(bench.folder / "mixed-forward-0")["recipe"]["adapter"]
    assert set(adapter["new_tokens"]) == control  # the questions were in the text
    assert len(read_recipe(bench.folder / "single-forward-0")["recipe"]["adapter"]["new_tokens"]) > 4


def test_a_wider_adapter_only_where_the_narrow_one_does_not_teach(ran):
    bench, _ = ran
    assert all((bench.folder / f"single-forward-{n}" / "done.json").exists() for n in (0, 1))  # one epoch teaches nothing
    base, asked = str(bench.folder / "single-base"), [("Where was Kolo born?", " Toben")]
    easy = build(Setup, {**msgspec.to_builtins(SCALES["tiny"]), "learned": 0.0})
    opened = taught(easy, bench, base, "easy", asked, None)
    assert opened.path.parent.name == "easy-0" or "easy-0" in str(opened.path)
    assert not (bench.folder / "easy-1").exists()


def test_an_answer_is_right_only_whole(ran):
    bench, _ = ran
    opened = open_model(bench.folder / "single-forward-1", precision="float32")
    assert exact(opened, [("Where was Nobody born?", " Nowhere at all in this world")]) == [False]


def result(**shares):
    """One seed with the figures a perfect run would have, but for `shares`."""
    known = dict.fromkeys(SCALES["pocket"].attributes, 1.0)

    def arm(name, answered, **more):
        shared = {"by_heart": known, "forward_taught": known}
        return (
            shared | {"forward_others": {**dict.fromkeys(known, shares.get(name, answered)), "birthcity": 0.5}} | more
        )

    return {
        "single": arm("single", 0.05, name_probe=dict.fromkeys(known, 0.1), place_probe=[]),
        "multi5": arm("multi5", 0.4), "mixed": arm("mixed", 0.8), "celebrity": arm("celebrity", 0.6), "bilingual5": arm("b", 0.7),
        "multi5+permute": arm("many", 0.9, name_probe=dict.fromkeys(known, 0.9), place_probe=[], inverse_taught=1.0,
                              inverse_others=shares.get("back", 0.0)),
        "reverse": arm("reverse", 0.9, inverse_taught=1.0, inverse_others=0.7),
    }  # fmt: skip


def test_the_verdict_leaves_the_first_attribute_out():
    setup = Setup()
    assert verdict(judge(setup, [result()]).checks) == REPRODUCED
    judged = judge(setup, [result(single=0.2)])
    assert [c.says for c in judged.checks if not c.held] == ["one text a person: hardly anything can be asked for"]
    assert not judge(setup, [result(single=0.25, many=0.9)]).checks[2].held  # 3.6 times
    assert not judge(setup, [result(back=0.06)]).checks[3].held
    assert not judge(setup, [result(mixed=0.5)]).checks[5].core


def test_wrong_settings_are_told_at_once():
    with pytest.raises(ValueError, match="people = 2: must be at least 10"):
        build(Setup, {"people": 2})
    with pytest.raises(ValueError, match="wordings = 4: must be between 5, which a person is told of in, and 12"):
        build(Setup, {"wordings": 4})
    with pytest.raises(ValueError, match="band, which the inverse question is about"):
        build(Setup, {"attributes": ["birthcity", "major", "employer"]})
    assert any("--set.base" in problem for problem in SCALES["full"].problems())
