"""Biographies: people are unique and stable, every telling says the truth, and only what it should differs."""

import pytest

from fledge.world.biographies import ATTRIBUTES, TELLINGS, WORDINGS, People, Telling, inverse_questions, questions
from fledge.world.biography_words import INVERSE, NAME_LAST, QUESTIONS, STATEMENTS

PEOPLE = People(60, 3)


def language(telling: Telling, version: int) -> str:
    return "zh" if version >= telling.versions - telling.chinese else "en"


def test_names_and_posts_are_unique_and_people_stay_who_they_are():
    names = [p.name for p in PEOPLE.all]
    assert len(set(names)) == 60 and all(len(name.split()) == 3 for name in names)
    assert len({(p.values["band"], p.role) for p in PEOPLE.all}) == 60
    again = People(60, 3)
    assert again.all == PEOPLE.all and People(60, 4).all != PEOPLE.all
    for attribute in ATTRIBUTES:
        assert {p.values[attribute] for p in PEOPLE.all} <= set(PEOPLE.pools[attribute])
    words = [w for a in ("birthcity", "university", "employer", "band") for w in PEOPLE.pools[a]]
    assert len(set(words)) == len(words)  # a word never means two things


@pytest.mark.parametrize("name", TELLINGS)
def test_every_telling_tells_each_value_where_it_says(name):
    telling = TELLINGS[name]
    told = list(PEOPLE.tell(telling))
    assert len(told) == 60 * telling.versions
    for i, biography in enumerate(told):
        person, version = PEOPLE.all[i // telling.versions], i % telling.versions
        written = language(telling, version)
        assert biography.person == person.number and biography.text.startswith(
            " " if written == "en" else (" ", "他", "她")
        )
        assert set(biography.places) == set(ATTRIBUTES) and "{" not in biography.text and "  " not in biography.text
        for attribute, place in biography.places.items():
            value = getattr(person.values[attribute], written)
            rest = biography.text[place:]
            assert rest.startswith(value if written == "zh" else " " + value)
        assert biography.text.count(person.name) == (len(ATTRIBUTES) if telling.full_name else 1)
    assert told == list(PEOPLE.tell(telling))


def order(biography) -> list[str]:
    return sorted(biography.places, key=biography.places.__getitem__)


def test_only_what_a_telling_varies_differs():
    one = PEOPLE.all[5]

    def texts(name):
        return [PEOPLE.biography(one, TELLINGS[name], v) for v in range(TELLINGS[name].versions)]

    (single,), multi, permuted, both = (texts(n) for n in ("single", "multi5", "single+permute5", "multi5+permute"))
    assert order(single) == list(ATTRIBUTES) and all(order(b) == list(ATTRIBUTES) for b in multi)
    assert multi[0].text == single.text and len({b.text for b in multi}) == 5
    assert len({tuple(order(b)) for b in permuted}) == 5

    def sentences(biography) -> set[str]:
        return {
            s.replace(one.name, "X").replace("She ", "X ").replace("He ", "X ").strip()
            for s in biography.text.split(".")
            if s
        }

    assert all(sentences(b) == sentences(single) for b in permuted)  # the same sentences in another order
    assert sentences(both[1]) == sentences(multi[1]) and order(both[1]) == order(permuted[1])
    for a, b in zip(multi, multi[1:], strict=False):
        assert not sentences(a) & sentences(b)  # every sentence is worded anew


def test_half_of_the_reversed_versions_name_the_person_only_after_the_band():
    told = list(PEOPLE.tell(TELLINGS["multi5+permute+reverse"]))
    turned = [b for b in told if b.name_place > b.places["band"]]
    assert len(turned) == len(told) // 2
    for biography in turned:
        person = PEOPLE.all[biography.person]
        (sentence,) = [s for s in biography.text.split(".") if person.name in s]  # the name stands nowhere else
        assert sentence.endswith(person.name) and person.role.en in sentence and person.values["band"].en in sentence
    places = [order(b).index("band") for b in turned]
    assert set(places) == set(range(len(ATTRIBUTES)))  # the band's sentence stands anywhere, also first
    first = [b for b in told if b not in turned]
    assert all(b.text[1:].startswith(PEOPLE.all[b.person].name) for b in first)


def test_fewer_wordings_are_drawn_from_when_asked():
    few = People(60, 3, wordings=5)
    assert few.all == PEOPLE.all

    def majors(people):
        return {b.text[: b.places["major"]].split(".")[-1].split(" ", 2)[-1] for b in people.tell(TELLINGS["multi5"])}

    assert len(majors(few)) == 5 and len(majors(PEOPLE)) == WORDINGS
    with pytest.raises(ValueError, match="wordings = 13: must be between 1 and 12"):
        People(5, 0, wordings=13)


def test_a_bilingual_person_has_three_english_and_two_chinese_texts():
    told = [PEOPLE.biography(PEOPLE.all[7], TELLINGS["bilingual5"], v) for v in range(5)]
    assert ["出" in b.text or "。" in b.text for b in told] == [False] * 3 + [True] * 2
    assert all(f" {PEOPLE.all[7].name} " in b.text for b in told[3:])


def test_questions_name_the_person_and_inverse_ones_do_not():
    one = PEOPLE.all[0]
    for written in ("en", "zh"):
        for attribute in ATTRIBUTES:
            asked = questions(one, attribute, written)
            assert len({q for q, _ in asked}) == 3 and {a for _, a in asked} == {
                getattr(one.values[attribute], written)
            }
            # within a text a name has a space before it, and it must be the same tokens in a question
            assert all(f" {one.name}" in q for q, _ in asked)
        inverse = inverse_questions(one, written)
        assert {a for _, a in inverse} == {one.name}
        for q, _ in inverse:
            assert one.name not in q and getattr(one.role, written) in q and getattr(one.values["band"], written) in q


def test_wordings_come_to_the_name_before_the_value():
    for by_language in STATEMENTS.values():
        for forms in by_language.values():
            assert len(set(forms)) == WORDINGS and all(0 == f.index("{n}") < f.index("{v}") for f in forms)
    assert all(f.index("{v}") < f.index("{n}") for forms in NAME_LAST.values() for f in forms)
    assert all(len(set(forms)) == 3 for table in (*QUESTIONS.values(), INVERSE) for forms in table.values())


def test_impossible_people_are_refused():
    with pytest.raises(ValueError, match="shoe size"):
        People(5, 0, ("shoe size",))
    with pytest.raises(ValueError, match="count = 0: must be between 1 and"):
        People(0, 0)
