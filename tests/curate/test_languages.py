"""Language identification: scripts, variants, the model's share of the work, and what the kernel rejects."""

import json
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from opencc import OpenCC

from fledge.curate.languages import identified, identify, language_kernel, matches
from fledge.curate.pages import PAGE, parted

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SENTENCES = {
    "en": "The committee will publish its report next week, and everyone is invited to comment on it.",
    "de": "Der Ausschuss wird seinen Bericht nächste Woche veröffentlichen, und alle dürfen ihn kommentieren.",
    "fr": "Le comité publiera son rapport la semaine prochaine et chacun est invité à le commenter.",
    "es": "El comité publicará su informe la próxima semana y todos están invitados a comentarlo.",
    "ru": "Комитет опубликует свой отчёт на следующей неделе, и каждый может его прокомментировать.",
    "uk": "Комітет оприлюднить свій звіт наступного тижня, і кожен може його прокоментувати.",
    "ar": "ستنشر اللجنة تقريرها الأسبوع المقبل والجميع مدعو للتعليق عليه.",
    "he": "הוועדה תפרסם את הדוח שלה בשבוע הבא וכולם מוזמנים להגיב עליו.",
    "hi": "समिति अगले सप्ताह अपनी रिपोर्ट प्रकाशित करेगी और सभी को टिप्पणी करने के लिए आमंत्रित किया जाता है।",
    "ja": "委員会は来週報告書を公表し、誰でも意見を述べることができます。",
    "ko": "위원회는 다음 주에 보고서를 발표하며 누구나 의견을 낼 수 있습니다.",
    "th": "คณะกรรมการจะเผยแพร่รายงานในสัปดาห์หน้า",
    "el": "Η επιτροπή θα δημοσιεύσει την έκθεσή της την επόμενη εβδομάδα.",
    "zh-Hant": "委員會將於下週發表報告，歡迎大家提出意見。",
    "zh-Hans": "委员会将于下周发表报告，欢迎大家提出意见。",
    "und": "2024-05-01 12:30 +++ 3.14 / 2,000 🙂",
}


def table(texts: list[str]) -> pa.Table:
    ids = [str(i) for i in range(len(texts))]
    return pa.table([texts, ids, ids, [None] * len(texts), [""] * len(texts)], schema=PAGE)


def slices(text: str, characters: int, count: int) -> list[str]:
    step = max(1, (len(text) - characters) // count)
    return [text[i : i + characters] for i in range(0, len(text) - characters, step)][:count]


def right(texts: list[str], code: str) -> float:
    return np.mean([each == code for each in identify(texts)[0]])


@pytest.fixture
def poems() -> str:
    path = DATA / "tang_poems.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}")
    return "".join(json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()[:4000])


@pytest.fixture
def pep() -> str:
    path = DATA / "peps" / "pep-0001.rst"
    if not path.exists():
        pytest.skip(f"no {path}")
    return " ".join(path.read_text(encoding="utf-8").split())


def test_one_sentence_of_each():
    codes, scores = identify(list(SENTENCES.values()))
    assert codes == list(SENTENCES)
    assert scores.shape == (len(SENTENCES),)
    assert (scores[:-1] > 0.5).all()
    assert (scores <= 1).all()
    assert scores[-1] == 0


def test_a_text_alone_or_in_a_batch_is_the_same():
    texts = [*SENTENCES.values(), "", "\n\n", "a\nb", "好\n好", SENTENCES["en"] * 40, SENTENCES["zh-Hant"] * 200]
    codes, scores = identify(texts)
    alone = [identify([text]) for text in texts]
    assert codes == [each[0][0] for each in alone]
    assert scores.tolist() == [each[1][0] for each in alone]
    assert identify([])[0] == []


def test_no_connection_is_made(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert identify([SENTENCES["fr"]])[0] == ["fr"]


def test_capitals_are_read_as_small_letters():
    assert identify([SENTENCES["en"].upper()])[0] == ["en"]


def test_a_few_foreign_words_do_not_decide():
    texts = [
        SENTENCES["en"] + " (北京, Ελλάδα)",
        SENTENCES["zh-Hans"] * 2 + " Python 3.12 release",
        "他说日语里的「の」字在街上很常见。",
    ]
    codes, scores = identify(texts)
    assert codes == ["en", "zh-Hans", "zh-Hans"]
    assert (scores[:2] < 1).all()


def test_a_menu_before_the_text_does_not_decide():
    menu = "Startseite Über uns Kontakt Impressum Anmelden "
    assert identify([menu + SENTENCES["en"] * 30])[0] == ["en"]


def test_undecided_variant_is_simplified_at_half_the_score():
    found = identified(["山中水上人", "山中水上人，後來", "山中水上人，后来这里"])
    assert found.codes == ["zh-Hans", "zh-Hant", "zh-Hans"]
    assert found.scores.tolist() == [0.5, 1.0, 1.0]
    assert found.variant.tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("language", "wanted", "yes"),
    [("zh-Hant", "zh", True), ("zh-Hant", "zh-Hant", True), ("zh-Hant", "zh-Hans", False), ("zha", "zh", False),
     ("zh", "zh-Hant", False), ("en", "en", True)],
)  # fmt: skip
def test_matches(language: str, wanted: str, yes: bool):
    assert matches(language, wanted) is yes


def test_kernel_keeps_rows_and_says_why():
    texts = [SENTENCES["en"], SENTENCES["de"], "山中水上人", SENTENCES["zh-Hant"], "12 34"]
    pages = table(texts)
    out = language_kernel(["en", "zh"], 0.65)(pages)
    assert out["text"] == pages["text"]
    assert out["id"] == pages["id"]
    assert out["language"].to_pylist() == ["en", "de", "zh-Hans", "zh-Hant", "und"]
    assert out["language_score"].type == pa.float32()
    assert out["reason"].to_pylist() == [None, "language not wanted", None, None, "language not wanted"]
    kept, rejected = parted(out)
    assert kept["language_score"].to_pylist()[1] == 0.5
    assert rejected["value"].to_pylist()[0] == pytest.approx(rejected["language_score"].to_pylist()[0])
    assert out["value"].null_count == 3


def test_kernel_asked_for_a_variant_wants_certainty_of_it():
    out = language_kernel(["zh-Hans"], 0.65)(table(["山中水上人", SENTENCES["zh-Hans"], SENTENCES["zh-Hant"]]))
    assert out["reason"].to_pylist() == ["language not certain", None, "language not wanted"]
    assert out["value"].to_pylist()[0] == 0.5


def test_kernel_without_wanted_rejects_nothing():
    out = language_kernel([], 0.99)(table(list(SENTENCES.values())))
    assert out["reason"].null_count == len(SENTENCES)
    assert out["language"].to_pylist() == list(SENTENCES)


def test_kernel_of_no_pages():
    out = language_kernel(["en"], 0.65)(table([]))
    assert len(out) == 0
    assert out.column_names[-3:] == ["language_score", "reason", "value"]


@pytest.mark.parametrize("code", ["zh-TW", "EN", "english", "", "zh-hans"])
def test_codes_are_checked(code: str):
    with pytest.raises(ValueError, match=f"language '{code}': must be a code"):
        language_kernel([code])


def test_score_is_checked():
    with pytest.raises(ValueError, match="least language score 65"):
        language_kernel(["en"], 65)


@pytest.mark.parametrize(("characters", "least"), [(20, 0.85), (60, 0.97), (300, 1.0)])
def test_accuracy_on_english(pep: str, characters: int, least: float):
    assert right(slices(pep, characters, 200), "en") >= least


@pytest.mark.parametrize(("characters", "least"), [(8, 0.85), (25, 0.99), (100, 1.0)])
def test_accuracy_on_both_variants(poems: str, characters: int, least: float):
    texts = slices(poems, characters, 500)
    assert right(texts, "zh-Hant") >= least
    simplified = OpenCC("t2s")
    assert right([simplified.convert(text) for text in texts], "zh-Hans") >= least
