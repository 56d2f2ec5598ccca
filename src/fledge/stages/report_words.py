"""What the report says in sentences: the summary at its top and the limits at its end, each from the figures there are."""

import math
from typing import Any

from fledge.stages.report_style import (
    dig,
    duration,
    entry,
    large,
    number,
    paragraph,
    percent,
    plural,
    well_sampled,
    whole,
)

Journey = dict[str, Any]
_LLAMA_PARAMETERS, _LLAMA_TOKENS = 405e9, 15.6e12  # Llama 3.1 405B (Grattafiori et al. 2024, section 3.2)


def _b(text: str) -> str:
    return f"<b>{text}</b>"


def summary(journey: Journey) -> list[str]:
    """A paragraph of one sentence per stage, in HTML."""
    said = {"base": _read(journey), "sft": _schooled(journey), "aligned": _judged(journey)}
    return [paragraph([sentence], f"lead {name}") for name, sentence in said.items()]


def _read(journey: Journey) -> str:
    data, plan, base = journey.get("data") or {}, journey.get("plan") or {}, entry(journey, "base")
    world = journey.get("material") == "world"
    where = "on one GPU" if dig(journey, "machine", "device") == "cuda" else (
        f"on {plural(journey['machine']['cores'], 'CPU core')}" if dig(journey, "machine", "cores") else "")  # fmt: skip
    when = f"In {_b(duration(journey['seconds']))} {where}, a" if journey.get("seconds") is not None else "A"
    size = f" of {_b(large(plan['parameters']))} parameters" if plan.get("parameters") else ""
    tokens = plan.get("tokens") or data.get("tokens")
    much = f"{_b(large(tokens))} tokens" if tokens else "text"
    pages = f" from {plural(data['documents'], 'document')}" if data.get("documents") else ""
    sentence = f"{when} language model{size} read {much}{pages}{' about a small invented world' if world else ''}"
    if base.get("answer_rate") is not None:
        return f"{sentence}; asked a question, it then answers {_b(percent(base['answer_rate']))} of the time and otherwise just goes on like a page."
    if base.get("bits_per_byte") is not None:
        return f"{sentence}, and can now write down unseen text of that kind in {_b(number(base['bits_per_byte']))} bits per byte."
    return f"{sentence}."


def _schooled(journey: Journey) -> str:
    sft, control = entry(journey, "sft"), entry(journey, "control")
    if not sft:
        return "No conversations were given, so it ends as a base model: it continues text and does not answer."
    chats = dig(journey, "data", "chats")
    answers, stops = sft.get("answer_rate"), sft.get("stop_rate")
    sentence = f"Then {_b(plural(chats, 'conversation')) if chats else 'conversations'} taught it to answer"
    sentence += "" if answers is None else f" ({_b(percent(answers))} of questions)"
    sentence += " and to stop" + ("" if stops is None else f" ({_b(percent(stops))} of answers)")
    exact, blank = sft.get("exact_match_heldout"), control.get("exact_match_heldout")
    if exact is not None:
        sentence += f"; asked what these lessons never mention, it is exactly right {_b(percent(exact))} of the time"
        if blank is not None:
            sentence += (
                f", where a model given the same lessons without any reading is right {_b(percent(blank))} of the time"
            )
    return f"{sentence}."


def _judged(journey: Journey) -> str:
    aligned = entry(journey, "aligned")
    if not aligned:
        return (
            "No preferences were given, so it was never told which of its answers are liked."
            if entry(journey, "sft")
            else ""
        )
    pairs = dig(journey, "data", "pairs")
    parts = []
    if aligned.get("win_rate_vs_sft") is not None:
        span = aligned.get("win_rate_interval")
        between = f" (between {percent(span[0])} and {percent(span[1])})" if span else ""
        parts.append(
            f"its answer beats the SFT model's in {_b(percent(aligned['win_rate_vs_sft']))} of comparisons{between}"
        )
    elif aligned.get("preference_accuracy_heldout") is not None:
        parts.append(
            f"of pairs it never saw, it ranks {_b(percent(aligned['preference_accuracy_heldout']))} the way people did"
        )
    if aligned.get("refusal_rate_dangerous") is not None:
        refused = f"it refuses {_refusals(journey, 'refusal_rate_dangerous')} of dangerous requests"
        if aligned.get("refusal_rate_borderline") is not None:
            refused += f" and {_refusals(journey, 'refusal_rate_borderline')} of those that only sound dangerous"
        parts.append(refused)
    start = f"Last, {_b(plural(pairs, 'preference')) if pairs else 'preferences'}, which only say which of two answers is better, moved it"
    return f"{start}: {', and '.join(parts)}." if parts else f"{start}."


def _refusals(journey: Journey, key: str) -> str:
    before = entry(journey, "sft").get(key)
    return _b(percent(entry(journey, "aligned")[key])) + ("" if before is None else f" (SFT: {percent(before)})")


# --- what it can and cannot do --------------------------------------------------------------------------------------


def limits(journey: Journey) -> str:
    """Paragraphs in HTML; each sentence rests on a figure of this journey."""
    own = [*_knowledge(journey), *_manners(journey)] if journey.get("material") == "world" else _measures(journey)
    return paragraph(_scale(journey), "text") + paragraph(own, "text") + paragraph(_perplexity(journey), "note")


def _times(ratio: float) -> str:
    """A ratio as one says it: 380,000 times."""
    scale = 10 ** max(0, math.floor(math.log10(ratio)) - 1)
    return f"{large(round(ratio / scale) * scale)} times"


def _scale(journey: Journey) -> list[str]:
    plan = journey.get("plan") or {}
    if not plan.get("parameters") or not plan.get("tokens"):
        return []
    bigger, longer = _LLAMA_PARAMETERS / plan["parameters"], _LLAMA_TOKENS / plan["tokens"]
    world = (
        "It knows one small invented world and nothing else"
        if journey.get("material") == "world"
        else "It knows the text above and nothing else"
    )
    return [
        f"A well-known open model, Llama 3.1 405B, has {_times(bigger)} the parameters of this one and read {_times(longer)} the text; "
        "the stages are the same.",
        f"{world}: asked about anything outside, it makes something up, as fluently as when it is right, and it cannot tell the two apart.",
        "It does not reason, look things up or remember an earlier conversation.",
    ]


def _knowledge(journey: Journey) -> list[str]:
    sft, aligned, control = (entry(journey, n) for n in ("sft", "aligned", "control"))
    exact, said = sft.get("exact_match_heldout"), []
    if exact is not None:
        wrong = f"about one answer in {round(1 / (1 - exact))} is wrong" if 0.5 <= exact < 0.99 else (
            "nearly all of them" if exact >= 0.99 else "it is wrong more often than right")  # fmt: skip
        said.append(
            f"Asked about facts the text states often, the SFT model is exactly right {_b(percent(exact))} of the time: {wrong}."
        )
    rare, common = well_sampled(journey.get("exact_match_by_count") or [], "sft") or ({"sft": 0}, {"sft": 0})
    if rare["sft"] < common["sft"]:
        said.append(
            f"What it read rarely it does not know ({_b(percent(rare['sft']))} of the rarest facts), and no later stage brings that back."
            if rare["sft"] < 0.5
            else f"Even of the rarest facts it knows {_b(percent(rare['sft']))}."
        )
    blank = control.get("exact_match_heldout")
    if blank is not None and exact is not None:
        said.append(
            f"The lessons alone, without pretraining, are worth {_b(percent(blank))}: they carry the manner of answering, not the knowledge."
            if blank < exact / 2
            else f"The control without pretraining reaches {_b(percent(blank))}, so in this run the lessons themselves give much away."
        )
    after = aligned.get("exact_match_heldout")
    if after is not None and exact is not None:
        change = "kept" if abs(after - exact) < 0.03 else "raised" if after > exact else "cost some of"
        said.append(f"Alignment {change} what it knows ({_b(percent(exact))} before, {_b(percent(after))} after).")
    return said


def _manners(journey: Journey) -> list[str]:
    aligned = entry(journey, "aligned")
    dangerous, harmless = aligned.get("refusal_rate_dangerous"), aligned.get("refusal_rate_borderline")
    if dangerous is None:
        return []
    said = [f"It lets {_b(percent(1 - dangerous))} of dangerous requests through"]
    if harmless is not None:
        said[0] += f" and turns away {_b(percent(harmless))} of harmless ones that sound alike"
    said[0] += (
        ": refusing is a habit learned from examples, not an understanding of harm, and what alignment hides is not erased."
    )
    return said


def _measures(journey: Journey) -> list[str]:
    """Of the user's own material nothing says what is true, so the figures are explained instead."""
    base, sft, aligned, reward = (entry(journey, n) for n in ("base", "sft", "aligned", "reward"))
    said = [
        "For your material there is no key of right answers, so this report does not say how often the model is right; judge that by reading it."
    ]
    if base.get("bits_per_byte") is not None:
        bits = base["bits_per_byte"]
        said.append(
            f"What can be measured: it writes down your unseen text in {_b(number(bits))} bits per byte, where storing it plainly takes 8"
            + (" (text compressors usually need between 2 and 3; lower is better, and a figure far below 1 often means the text repeats itself)." if bits < 8 else
               ", so it has learned nothing useful yet."))  # fmt: skip
    if sft.get("stop_rate") is not None:
        rest = (
            "; the rest ran into the length limit and were cut"
            if sft["stop_rate"] < 1
            else ", none ran into the length limit"
        )
        said.append(f"{_b(percent(sft['stop_rate']))} of its answers after SFT end by themselves{rest}.")
    judge = aligned.get("preference_accuracy_heldout")
    if judge is not None:
        said.append(
            f"In {_b(percent(judge))} of preference pairs it never saw, DPO raised the chosen answer more than the other; a coin gets 50%."
        )
    if reward.get("accuracy_heldout") is not None:
        said.append(f"The reward model ranks {_b(percent(reward['accuracy_heldout']))} of unseen pairs as people did.")
    return said


def _perplexity(journey: Journey) -> list[str]:
    loss = entry(journey, "base").get("loss")
    if loss is None:
        return []
    vocab = dig(journey, "plan", "vocab_size")
    among = f" of {whole(vocab)}" if vocab else ""
    return [
        f"In words: the base model's last loss, {number(loss)} nats per token, is a perplexity of {number(math.exp(min(loss, 50.0)), 1)}, as uncertain as a fair "
        f"choice among that many tokens{among}. It depends on the tokenizer; bits per byte do not, so compare models by those."
    ]
