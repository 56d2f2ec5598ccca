"""The documents of the quick world: same bytes, exact counts, shares, labels."""

import re
from collections import Counter, defaultdict

import pytest

from fledge.world import World, WorldConfig
from fledge.world.facts import RELATIONS, fill
from fledge.world.relations import LANGUAGES
from fledge.world.web import KINDS, SHARES
from fledge.world.world import measure


@pytest.fixture(scope="module")
def world():
    return World(WorldConfig.quick())


@pytest.fixture(scope="module")
def documents(world):
    return list(world.documents())


SHA256 = {
    "documents.jsonl": "2f849a0770d2fb80b4c8f8ff15a2af0b2e757bc8f35141458e95694c92766351",
    "chats.jsonl": "9bc74cb0db77c6a70a51289ec7a200c40c8a9c51890ca46599caf613376be9ff",
    "pairs.jsonl": "05593db01f493ea385b1685ff3f88e703413fbee8dbc9427950d101ac6a49cb8",
    "pairs_heldout.jsonl": "f3f4c0d23b9fb19a6aed464e18ef18875bcbca89da01fada1d1884162d5d8480",
    "questions.jsonl": "8b1a819310b151922df05afdd5bdfcebb2062a43aeb00846adc4d3503a0e8e1a",
}


def test_same_seed_same_bytes(world, tmp_path):
    report = world.write(tmp_path)
    assert report["sha256"] == SHA256


def test_another_seed_is_another_world():
    other = World(WorldConfig.quick(seed=1))
    assert other.facts[0].names != World(WorldConfig.quick()).facts[0].names


def found_statements(world, documents) -> dict[str, Counter]:
    """Counts every true statement by reading the text, without looking at the labels: sentences, and answers after a question."""
    full = {language: {} for language in LANGUAGES}
    short = {language: {} for language in LANGUAGES}
    for fact in world.facts:
        for language in LANGUAGES:
            wording = RELATIONS[fact.relation].wording(language)
            for template in wording.statements:
                full[language][fill(template, fact, language)] = fact.id
            for template in wording.questions:
                short[language][fill(template, fact, language)] = fact
    found = {language: Counter() for language in LANGUAGES}
    for document in documents:
        language, asked = document["language"], None
        for sentence in re.findall(r"[^.?。？\n]+[.?。？]?", document["text"]):
            sentence = sentence.strip()
            if sentence in full[language]:
                found[language][full[language][sentence]] += 1
            elif asked:
                value = asked.values[language]
                answers = {
                    f"{value}.",
                    f"{value[:1].upper()}{value[1:]}.",
                    f"It is {value}.",
                    f"{value}。",
                    f"是{value}。",
                }
                found[language][asked.id] += sentence in answers
            asked = short[language].get(sentence)
    return found


def test_every_count_is_the_number_of_statements_in_the_text(world, documents):
    found = found_statements(world, documents)
    for fact in world.facts:
        for language in LANGUAGES:
            assert found[language][fact.id] == fact.count[language], (fact.id, language)


def test_labels_agree_with_counts(world, documents):
    stated = {language: Counter() for language in LANGUAGES}
    for document in documents:
        stated[document["language"]].update(document["facts"])
    for fact in world.facts:
        assert {language: stated[language][fact.id] for language in LANGUAGES} == fact.count


def test_counts_fall_from_well_read_to_hardly_read():
    world = World()
    counts = [world.config.count(entity.rank) for entity in world.entities]
    assert counts == sorted(counts, reverse=True) and counts[0] == world.config.top_count and counts[-1] <= 3
    often = [count for count in counts if count >= 50]
    assert 0.40 < len(often) / len(counts) < 0.50
    assert 180 < sum(often) / len(often) < 220
    for split in ("train", "test"):
        half = [world.config.count(entity.rank) for entity in world.entities if entity.split == split]
        assert abs(len(half) - len(counts) / 2) <= 1 and min(half) <= 4 and max(half) > 490


def test_shares_of_characters(documents):
    chars = measure(documents)["chars"]
    for language in LANGUAGES:
        total = sum(count for key, count in chars.items() if key.endswith(language))
        shares = {source: chars[f"{source}.{language}"] / total for source in ("facts", "web", "grammar", "junk")}
        assert shares == pytest.approx({"facts": 0.52, "web": 0.29, "grammar": 0.14, "junk": 0.05}, abs=0.01)


def test_shares_of_web_pages(documents):
    for language in LANGUAGES:
        forms = Counter(d["form"] for d in documents if d["source"] == "web" and d["language"] == language)
        total = sum(forms.values())
        assert {kind: forms[kind] / total for kind in KINDS} == pytest.approx(
            dict(zip(KINDS, SHARES, strict=True)), abs=0.02
        )


def test_option_lists_hold_the_right_answer(world, documents):
    asked = {}
    for fact in world.facts:
        for language in LANGUAGES:
            for form in range(4):
                asked[fact.question(language, form)] = fact
    lists = [d for d in documents if d["form"] == "options"]
    assert lists
    for document in lists:
        question = re.match(r"[^?？]+[?？]", document["text"]).group()
        assert asked[question].values[document["language"]].casefold() in document["text"].casefold()


def test_fact_pages_are_about_one_entity(world, documents):
    lengths = Counter()
    for document in documents:
        if document["source"] == "facts":
            assert len({id.split(".")[0] for id in document["facts"]}) == 1
            assert len(set(document["facts"])) == len(document["facts"])
            lengths[len(document["facts"])] += 1
    assert set(lengths) <= {1, 2, 3, 4} and lengths[1] < 0.01 * sum(lengths.values())


def test_junk_is_labelled(world, documents):
    junk = [d for d in documents if d["source"] == "junk"]
    kinds = Counter(d["quality"] for d in junk)
    assert set(kinds) == {"boilerplate", "exact_copy", "near_copy", "spam", "noise", "wrong"}
    assert all(d["quality"] == "good" for d in documents if d["source"] != "junk")
    clusters = defaultdict(list)
    for document in documents:
        if document["dup_cluster"]:
            clusters[document["dup_cluster"]].append(document)
    for members in clusters.values():
        original = [d for d in members if d["source"] == "grammar"]
        assert len(original) == 1 and len(members) > 1
        assert all(d["text"].endswith(original[0]["text"]) for d in members)


def test_wrong_facts_stay_rare(world, documents):
    true = {fact.sentence(language, i) for fact in world.facts for language in LANGUAGES for i in range(12)}
    wrong = [d for d in documents if d["quality"] == "wrong"]
    assert wrong and not any(d["text"] in true for d in wrong)
    assert len(wrong) < 0.01 * sum(len(d["facts"]) for d in documents)


def test_chinese_characters_fit_into_a_small_vocabulary(documents):
    han = {c for d in documents for c in d["text"] if "\u4e00" <= c <= "\u9fff"}
    assert len(han) < 700


def test_both_languages_name_the_same_world(world):
    for fact in world.facts:
        assert re.fullmatch(r"[A-Za-z -]+", fact.names["en"] + fact.values["en"])
        assert re.fullmatch(r"[\u4e00-\u9fff·]+", fact.names["zh"] + fact.values["zh"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_names_are_distinct_and_not_inside_each_other(seed):
    world = World(WorldConfig(seed=seed))
    for language in LANGUAGES:
        names = [entity.names[language] for entity in world.entities]
        assert len(set(names)) == len(names)
        for relation in world.pools:
            surfaces = [value.surface[language] for value in world.pools[relation]]
            assert len(set(surfaces)) == len(surfaces)
    zh = [entity.names["zh"] for entity in world.entities]
    assert not any(a != b and b.startswith(a) for a in zh for b in zh)


def test_values_repeat_and_chance_is_low():
    world = World()
    for relation, pool in world.pools.items():
        used = Counter(fact.value for fact in world.facts if fact.relation == relation)
        assert 40 <= len(pool) <= 48
        assert max(used.values()) / sum(used.values()) < 0.04 and min(used.values()) >= 2


def test_every_relation_has_enough_wordings():
    for relation in RELATIONS.values():
        for language in LANGUAGES:
            wording = relation.wording(language)
            assert len(set(wording.statements)) >= 10 and len(set(wording.questions)) == 4
            assert all("{e}" in s and ("{v}" in s or "{V}" in s) for s in wording.statements)
            value_first = sum(s.lower().index("{v}") < s.index("{e}") for s in wording.statements)
            assert 3 <= value_first <= len(wording.statements) - 3


def test_articles_are_right(documents):
    for document in documents:
        if document["language"] == "en" and document["source"] != "junk":
            assert not re.search(r"\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiouAEIOU]|[.?][A-Z]|  ", document["text"]), document[
                "text"
            ]


def test_config_lists_everything_that_is_wrong():
    with pytest.raises(ValueError, match=r"countries = 2.*n_chats = 0.*share"):
        WorldConfig(countries=2, n_chats=0, web_share=0.9)
    with pytest.raises(ValueError, match="split = 'dev'"):
        World(WorldConfig.quick()).questions("dev")
