"""The page's files without a browser: both languages whole, nothing that could run foreign text, colours one can read."""

import re
from pathlib import Path

import pytest

from fledge.serve import page_api

STATIC = Path(page_api.__file__).parent / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))
# names, units and code that are the same in Chinese
LATIN = {
    "fledge", "chat", "journey", "resume", "compare", "prompts", "out", "runs", "mine", "token", "DPO", "KTO", "GRPO", "KL", "Top", "p",
    "Bradley", "Terry", "Davidson", "Shift", "Enter", "Switch", "to", "English", "EN", "Who", "are", "you",
}  # fmt: skip


def words(language: str) -> dict[str, str]:
    """Keys and texts of a language file."""
    found = re.findall(r'^  "([\w.]+)": "((?:[^"\\]|\\.)*)",$', (STATIC / f"{language}.js").read_text(), re.M)
    assert len(found) == len(dict(found))  # no key twice
    return dict(found)


def test_both_languages_have_the_same_words_with_the_same_gaps():
    english, chinese = words("en"), words("zh")
    plural = {key for key in english if key.endswith(".one")}
    assert set(chinese) == set(english) - plural  # Chinese needs no plural
    for key, text in chinese.items():
        assert text and set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", english[key])), key
    for key in plural:
        assert key.removesuffix(".one") in english


def test_each_language_keeps_to_itself():
    for key, text in words("zh").items():
        bare = re.sub(r"\{\w+\}", "", text)
        assert set(re.findall(r"[A-Za-z]+", bare)) <= LATIN, key
        assert re.search(r"[\u4e00-\u9fff]", text) or not re.search(r"[A-Za-z]{4,}", bare) or key in (
            "app.language.label", "chat.try.3"
        ), key  # fmt: skip
    foreign = {key for key, text in words("en").items() if re.search(r"[\u3000-\u9fff]", text)}
    assert foreign == {"app.language", "app.language.label", "chat.try.3"}


def test_every_word_is_used_and_every_used_word_is_there():
    english = {key.removesuffix(".one") for key in words("en")}
    source = "\n".join(p.read_text() for p in SCRIPTS if p.stem not in ("en", "zh"))
    used = set(re.findall(r'"([a-z]+(?:\.[\w]+)+)"', source)) & english
    made = {  # keys put together while the page runs
        stem for stem in re.findall(r"`([a-z]+(?:\.[a-z]+)*\.)\$\{", source)
    }  # fmt: skip
    unused = {key for key in english - used if not any(key.startswith(stem) for stem in made)}
    assert unused == set()
    for key in re.findall(r'\b(?:t|words|has)\("([\w.]+)"', source):
        assert key in english, key


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_no_script_turns_text_into_markup_or_code(path: Path):
    source = re.sub(r"//.*|/\*[\s\S]*?\*/", "", path.read_text())
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|setTimeout\([\"']|createContextualFragment"
    assert not re.search(banned, source)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source)


def test_the_page_asks_for_nothing_but_its_own_files():
    page = (STATIC / "index.html").read_text()
    assert re.findall(r'(?:src|href)="([^"]+)"', page) and all(
        (STATIC / name.removeprefix("/static/")).is_file() for name in re.findall(r'(?:src|href)="([^"]+)"', page)
    )
    assert "style=" not in page and "<style" not in page and not re.search(r"<script(?![^>]*src=)", page)
    for script in SCRIPTS:
        for name in re.findall(r'from "\./([\w.]+)"', script.read_text()):
            assert (STATIC / name).is_file()


def test_files_are_short_enough_to_read():
    for path in STATIC.iterdir():
        assert len(path.read_text().splitlines()) <= 400, path.name


# ---- colours


def themes() -> dict[str, dict[str, tuple[int, int, int]]]:
    """Colours of the style sheet by theme; the dark ones are written twice and must be the same."""
    style = (STATIC / "style.css").read_text()
    blocks = re.findall(r":root(?:\[data-theme=\"(\w+)\"\])? \{([^}]*)\}", style)
    found = [
        {name: tuple(bytes.fromhex(value)) for name, value in re.findall(r"--([\w-]+): #([0-9a-f]{6});", block)}
        for _, block in blocks
    ]
    light, auto, dark = found
    assert auto == dark
    return {"light": light, "dark": light | dark}


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance, WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_it_stands_on(theme: str):
    """4.5 to 1 for text (WCAG 2.2, 1.4.3)."""
    colours = themes()[theme]
    pairs = [
        *((ink, ground) for ink in ("ink", "dim") for ground in ("page", "side", "card", "soft")),
        *((stage, "card") for stage in ("base", "sft", "aligned", "reward")),
        ("accent-ink", "accent"), ("accent", "tint"), ("accent", "card"), ("accent", "side"), ("warn", "warn-tint"),
        ("ink", "warn-tint"), ("page", "ink"),
    ]  # fmt: skip
    for front, back in pairs:
        low, high = sorted((luminance(colours[front]), luminance(colours[back])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back, (high + 0.05) / (low + 0.05))
