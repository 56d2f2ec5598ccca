"""Recipes of curation: which rules judge a page, in which order, with which bounds, read from TOML.

A rule is `signal = [least, most]` under `[STEP.LANGUAGE]`; both ends are allowed, and `inf` and `-inf` stand for no end.
A language is an exact code ("zh-Hant"), a family ("zh") or "*"; a page whose language has no table passes the step. The
signals are defined in `fledge.curate.signals`. Steps that edit lines (`EDITING`) have settings by language in place of
bounds.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from fledge.core.config import Settings, build
from fledge.curate.minhash import DuplicateSettings
from fledge.curate.rule_settings import C4Rules, DclmLineRules, PhraseRules
from fledge.curate.signals import SIGNALS

EDITING: dict[str, type[Settings]] = {"c4": C4Rules, "dclm_lines": DclmLineRules, "boilerplate": PhraseRules}
"Steps that take lines out of a page, and their settings for a language."
SHIPPED = ("fineweb", "dclm", "gopher", "world")

Bounds = tuple[float, float]


class LanguageRules(Settings, frozen=True, kw_only=True):
    """What is asked of the language of a page."""

    least_score: float | None = None
    "Lowest score of the identified language; None asks for none."


class QualityRules(Settings, frozen=True, kw_only=True):
    """What is asked of the score of a trained classifier, where one is given."""

    keep_top: float | None = None
    "Share of the pages to keep, best first; None leaves it to the command line."


class Recipe(Settings, frozen=True, kw_only=True):
    """Steps in order and what each asks of a page."""

    name: str
    "What it is called in the funnel."
    paper: str
    "Where its thresholds are from, and what differs."
    steps: list[str]
    "Rules in the order in which they judge."
    rules: dict[str, dict[str, dict[str, Bounds]]]
    "Step -> language -> signal -> (least, most) allowed value."
    stop_words: dict[str, list[str]]
    "Language or family -> words of which ordinary text has several."
    c4: dict[str, C4Rules] = {}
    "Language -> settings of the step c4."
    dclm_lines: dict[str, DclmLineRules] = {}
    "Language -> settings of the step dclm_lines."
    boilerplate: dict[str, PhraseRules] = {}
    "Language -> settings of the step boilerplate."
    language: LanguageRules = LanguageRules()
    "What is asked of the identified language."
    duplicates: DuplicateSettings = DuplicateSettings()
    "What counts as a duplicate."
    quality: QualityRules = QualityRules()
    "What is asked of the classifier's score."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = [] if self.steps else ["steps: empty; name at least one step"]
        for step in self.steps:
            if not (getattr(self, step) if step in EDITING else self.rules.get(step)):
                tables = sorted(f"[{known}.LANGUAGE]" for known in self.rules)
                found.append(f"steps: {step!r} has no table [{step}.LANGUAGE]; tables: {', '.join(tables) or 'none'}")
        for step in dict.fromkeys(s for s in self.steps if self.steps.count(s) > 1):
            found.append(f"steps: {step!r} is named twice; name it once")
        for step, languages in self.rules.items():
            if step not in self.steps:
                found.append(f"[{step}]: not among the steps ({_nearest(step, self.steps)})")
            for language, bounds in languages.items():
                for signal, (least, most) in bounds.items():
                    where = f"{step}.{language}.{signal}"
                    if signal not in SIGNALS:
                        found.append(f"{where}: unknown signal; {_nearest(signal, SIGNALS)}")
                    if not least <= most:  # also where one is nan
                        found.append(f"{where} = [{least:g}, {most:g}]: must be [least, most] with least <= most")
        score, top = self.language.least_score, self.quality.keep_top
        if score is not None and not 0 <= score <= 1:
            found.append(f"language.least_score = {score}: must be between 0 and 1; 0.65 is usual")
        if top is not None and not 0 < top <= 1:
            found.append(f"quality.keep_top = {top}: must be a share above 0 and up to 1; 0.1 is DCLM's")
        return found + self.duplicates.problems()


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def load_recipe_of(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or a TOML file by path.

    Raises ValueError that lists every unknown key, step or signal and every bound that cannot be used.
    """
    if name_or_path in SHIPPED:
        text = resources.files("fledge.curate").joinpath("recipes", f"{name_or_path}.toml").read_text("utf-8")
    else:
        try:
            text = Path(name_or_path).read_text("utf-8")
        except (FileNotFoundError, IsADirectoryError):
            raise ValueError(
                f"recipe {name_or_path!r}: neither a shipped recipe ({', '.join(SHIPPED)}) nor a file; "
                f"{_nearest(name_or_path, SHIPPED)}"
            ) from None
        except UnicodeDecodeError as error:
            raise ValueError(f"recipe {name_or_path} is not UTF-8 text: {error}") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"recipe {name_or_path} is not valid TOML: {error}") from None
    rules, rest = _parted(data)
    if wrong := _wrong_tables(rules, rest):
        raise ValueError(f"recipe {name_or_path}: tables that cannot be used:\n  " + "\n  ".join(wrong))
    try:
        return build(Recipe, {"stop_words": {}} | rest | {"rules": rules})
    except ValueError as error:
        raise ValueError(f"recipe {name_or_path}: {error}") from None


def _parted(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the tables of bounds, everything else) of a recipe's file, at whose top they stand side by side.

    A table is one of bounds when it is a step's, or when it holds tables and no field of a recipe has its name.
    """
    fields, steps = set(Recipe.__struct_fields__) - {"rules"}, data.get("steps")
    rules = {
        key: value
        for key, value in data.items()
        if key not in fields and isinstance(value, dict)
        and ((isinstance(steps, list) and key in steps) or all(isinstance(v, dict) for v in value.values()))
    }  # fmt: skip
    return rules, {key: value for key, value in data.items() if key not in rules}


def _wrong_tables(rules: dict[str, Any], rest: dict[str, Any]) -> list[str]:
    """What is wrong with the shape of the tables by language, in words."""
    found = []
    for step, languages in [*rules.items(), *((step, rest[step]) for step in EDITING if step in rest)]:
        for language, table in languages.items() if isinstance(languages, dict) else [("", None)]:
            if not isinstance(table, dict):
                found.append(f"[{step}]: must hold a table for each language, such as [{step}.en]")
            elif step in EDITING:
                try:
                    build(EDITING[step], table)
                except ValueError as error:
                    found.append(f"[{step}.{language}]: {error}")
            else:
                found += [
                    f"{step}.{language}.{signal} = {bounds!r}: must be [least, most], two numbers; inf is one"
                    for signal, bounds in table.items()
                    if not (isinstance(bounds, list) and [type(b) in (int, float) for b in bounds] == [True, True])
                ]
    return found


def needed(recipe: Recipe, step: str) -> list[str]:
    """The signals a step's bounds are about, in any language, in the order of `SIGNALS`."""
    asked = {signal for bounds in recipe.rules.get(step, {}).values() for signal in bounds}
    return [signal for signal in SIGNALS if signal in asked]


def measured_together(recipe: Recipe, step: str) -> tuple[list[str], bool]:
    """(the signals to measure when `step` begins to judge, whether it is the first to judge this state of the text).

    An editing step changes the text, so the signals are measured anew after it; between two of them they are measured
    once, for all steps that follow, because most of the work is shared.
    """
    place = recipe.steps.index(step)
    first = place
    while first > 0 and recipe.steps[first - 1] not in EDITING:
        first -= 1
    last = place
    while last + 1 < len(recipe.steps) and recipe.steps[last + 1] not in EDITING:
        last += 1
    asked = {signal for s in recipe.steps[first : last + 1] for signal in needed(recipe, s)}
    return [signal for signal in SIGNALS if signal in asked], place == first


def shown(bound: float) -> str:
    """A bound in a reason: 100000, 0.12."""
    return f"{bound:.0f}" if math.isfinite(bound) and bound == round(bound) else f"{bound:g}"
