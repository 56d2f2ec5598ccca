"""Rephrasing pages: passages at sentence ends, the prompts of WRAP, and who writes: a checkpoint or an endpoint.

WRAP is Maini et al. 2024, "Rephrasing the Web" (arXiv 2401.16380): section 3.1 and appendix G for styles and prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import msgspec

from fledge.core.checkpoint import sha256
from fledge.core.model import Transformer
from fledge.generate.chat import chat_engine
from fledge.generate.endpoint import Endpoint, EndpointConfig, Reply, Unanswered, at_once
from fledge.generate.sampling import Sampling
from fledge.text.formats import Message
from fledge.text.template import render_prompt
from fledge.text.tokenizer import Tokenizer

Style = Literal["wiki", "qa", "easy", "hard"]
STYLES: tuple[str, ...] = get_args(Style)
Finish = Literal["stop", "length", "refusal", "unanswered", "no room"]

_UNANSWERED_IN_A_ROW = 16  # then it is the endpoint, not the questions


class Passage(msgspec.Struct, frozen=True):
    """A piece of a page, at most a few hundred tokens: what one request rephrases."""

    id: str  # 16 hex digits: names the request
    of: str  # id of its page
    source: str  # of its page
    language: str  # of its page: "en", "zh-Hant" or "zh-Hans"
    text: str


class Rephrased(NamedTuple):
    """What a rephraser wrote for one passage."""

    text: str
    finish: Finish = "stop"  # "length": cut off; "no room": the passage does not fit the model's context


Rephraser = Callable[[Sequence[Passage]], Sequence[Rephrased]]
"""Writes one text for each passage, in their order; it is made for one style."""


# --- prompts --------------------------------------------------------------------------------------------------------

SYSTEM = {
    "en": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the questions.",
    "zh-Hant": "以下是一位好奇的使用者和人工智慧助理的對話。助理對問題給出有用、詳細、有禮貌的回答。",
    "zh-Hans": "以下是一位好奇的用户和人工智能助理的对话。助理对问题给出有用、详细、有礼貌的回答。",
}
PROMPTS = {
    "en": {
        "wiki": "For the following paragraph give me a diverse paraphrase of the same in high quality English language "
        "as in sentences on Wikipedia.",
        "qa": 'Convert the following paragraph into a conversational format with multiple tags of "Question:" followed '
        'by "Answer:".',
        "easy": "For the following paragraph give me a paraphrase of the same using a very small vocabulary and "
        "extremely simple sentences that a toddler will understand.",
        "hard": "For the following paragraph give me a paraphrase of the same using very terse and abstruse language "
        "that only an erudite scholar will understand. Replace simple words and phrases with rare and complex ones.",
    },
    "zh-Hant": {
        "wiki": "請把下面這段文字換一種說法重寫，用高品質的書面中文，像維基百科的句子那樣。",
        "qa": "請把下面這段文字改寫成對話形式，有多組「問題：」，每組後面接著「回答：」。",
        "easy": "請把下面這段文字換一種說法重寫，只用很少的詞和極簡單、小孩子也懂的句子。",
        "hard": "請把下面這段文字換一種說法重寫，用只有博學的學者才懂的、精煉而深奧的語言，以罕見的詞語代替簡單的詞語。",
    },
    "zh-Hans": {
        "wiki": "请把下面这段文字换一种说法重写，用高质量的书面中文，像维基百科的句子那样。",
        "qa": "请把下面这段文字改写成对话形式，有多组“问题：”，每组后面接着“回答：”。",
        "easy": "请把下面这段文字换一种说法重写，只用很少的词和极简单、小孩子也懂的句子。",
        "hard": "请把下面这段文字换一种说法重写，用只有博学的学者才懂的、精炼而深奥的语言，以罕见的词语代替简单的词语。",
    },
}
"""Instruction by language and style. English as in appendix G (its "medium" is our wiki); Chinese translated here."""
ONLY_THIS = {
    "en": "Use only what the paragraph says: add no names, numbers or facts. Reply with the new text only.",
    "zh-Hant": "只寫這段文字裡有的內容，不要添加名字、數字或事實。只回覆改寫後的文字。",
    "zh-Hans": "只写这段文字里有的内容，不要添加名字、数字或事实。只回复改写后的文字。",
}
"""Added to the paper's prompts here: one that invents is rejected, so it is cheaper to ask for what is wanted."""


def has_prompt(language: str) -> bool:
    """Whether pages of this language can be rephrased."""
    return language in PROMPTS


def messages(passage: Passage, style: Style) -> list[dict[str, str]]:
    """The conversation that asks for `style`, in the language of the passage. KeyError where `has_prompt` is false."""
    language = passage.language
    asked = f"{PROMPTS[language][style]} {ONLY_THIS[language]}\n\n{passage.text}"
    return [{"role": "system", "content": SYSTEM[language]}, {"role": "user", "content": asked}]


# --- passages -------------------------------------------------------------------------------------------------------

_PIECE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]|[^\W\u3400-\u9fff]+|[^\w\s]")
# Where a sentence ends: behind its mark and closing quotes, or at a line's end. The space goes with the next one, as in
# the tokenizer's words, so the tokens of a text are those of its sentences.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*(?=\s)|(?<=[。！？；])[」』”’）]*|(?=\n)")
_CLAUSE_END = re.compile(r"(?<=[,;:，、：])|(?=\s)")


def estimate(texts: Sequence[str]) -> list[int]:
    """Tokens of each text, for a model whose tokenizer is not here: Han characters, words and marks."""
    return [len(_PIECE.findall(text)) for text in texts]


def _split(pattern: re.Pattern[str], text: str) -> list[str]:
    ends = sorted({m.end() for m in pattern.finditer(text)} | {len(text)})
    return [piece for a, b in zip([0, *ends], ends, strict=False) if (piece := text[a:b])]


def cut(text: str, most_tokens: int, count: Callable[[Sequence[str]], Sequence[int]] = estimate) -> list[str]:
    """`text` in pieces of at most `most_tokens` that end where sentences do; joined they are `text` again.

    A sentence longer than that is cut at commas and spaces, and where there are none in the middle of a run.
    """
    pieces, sizes = _fitting(_split(_SENTENCE_END, text), most_tokens, count, (_CLAUSE_END, None))
    joined: list[str] = []
    room = 0
    for piece, size in zip(pieces, sizes, strict=True):
        if joined and size <= room:
            joined[-1] += piece
            room -= size
        else:
            joined.append(piece)
            room = most_tokens - size
    return joined


def _fitting(
    pieces: Sequence[str], most: int, count: Callable[[Sequence[str]], Sequence[int]], finer: tuple
) -> tuple[list[str], list[int]]:
    """The pieces with their tokens, those above `most` cut by the finer patterns (None: in half)."""
    kept: list[str] = []
    sizes: list[int] = []
    for piece, size in zip(pieces, count(pieces), strict=True):
        if size <= most or len(piece) == 1:
            kept.append(piece)
            sizes.append(size)
            continue
        pattern = finer[0]
        parts = [piece[: len(piece) // 2], piece[len(piece) // 2 :]] if pattern is None else _split(pattern, piece)
        more = _fitting(parts, most, count, finer if pattern is None else finer[1:])
        kept += more[0]
        sizes += more[1]
    return kept, sizes


def passages(
    id: str,
    source: str,
    language: str,
    text: str,
    style: Style,
    most_tokens: int,
    count: Callable[[Sequence[str]], Sequence[int]] = estimate,
) -> Iterator[Passage]:
    """The passages of a page; their ids follow from the page's id, their place, the style and their text."""
    for number, piece in enumerate(cut(text, most_tokens, count)):
        if stripped := piece.strip():
            name = sha256("\0".join((id, str(number), style, stripped)).encode("utf-8", "surrogatepass"))[:16]
            yield Passage(name, id, source, language, stripped)


# --- who writes -----------------------------------------------------------------------------------------------------


class ModelRephraser:
    """A checkpoint of ours writes; each passage draws from a random stream of its own id, whatever else is asked."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, style: Style, sampling: Sampling):
        """Raises ValueError where the context leaves no room for a passage beside the prompt and the answer."""
        if problems := sampling.problems():
            raise ValueError("; ".join(problems))
        self.engine, self.tokenizer = chat_engine(model, tokenizer), tokenizer
        self.style, self.sampling = style, sampling

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(tokens) for tokens in self.tokenizer.encode_batch(texts)]

    def room_tokens(self) -> int:
        """Tokens of the longest passage that leaves sampling.max_tokens for the answer, whatever its language."""
        empty = [Passage("0", "0", "", language, "") for language in PROMPTS]
        context = self.engine.model.config.context_tokens
        return context - self.sampling.max_tokens - max(len(self._prompt(passage)) for passage in empty)

    def _prompt(self, passage: Passage) -> list[int]:
        asked = [Message(m["role"], m["content"]) for m in messages(passage, self.style)]
        return render_prompt(self.tokenizer, asked)

    def __call__(self, asked: Sequence[Passage]) -> list[Rephrased]:
        context = self.engine.model.config.context_tokens
        prompts = [self._prompt(passage) for passage in asked]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) + self.sampling.max_tokens <= context]
        written = [Rephrased("", "no room")] * len(asked)
        found = self.engine.sample(
            [prompts[i] for i in fitting], self.sampling, streams=[int(asked[i].id, 16) >> 1 for i in fitting]
        )
        rows = zip(fitting, found.tokens.tolist(), found.lengths.tolist(), found.stopped.tolist(), strict=True)
        for i, tokens, length, stopped in rows:
            written[i] = Rephrased(self.tokenizer.decode(tokens[:length]), "stop" if stopped else "length")
        return written


class EndpointRephraser:
    """A model elsewhere writes, several passages at once."""

    def __init__(self, config: EndpointConfig, style: Style):
        """Raises ValueError with every setting that cannot be used; nothing is asked yet."""
        if problems := config.problems():
            raise ValueError("; ".join(f"endpoint {problem}" for problem in problems))
        self.endpoint, self.style = Endpoint(config, f"endpoint {config.url}#{config.model}"), style
        self._unanswered = 0  # in a row

    def __call__(self, asked: Sequence[Passage]) -> list[Rephrased]:
        """Raises ConnectionError where the endpoint is gone, ValueError where it refuses everything."""
        found = at_once(self.endpoint.config.concurrency, [lambda p=p: self._ask(p) for p in asked])
        for one in found:
            self._unanswered = self._unanswered + 1 if isinstance(one, Unanswered) else 0
            if self._unanswered >= _UNANSWERED_IN_A_ROW:
                raise ValueError(f"{self._unanswered} passages in a row were not answered, last: {one}")
        return [Rephrased("", "unanswered") if isinstance(one, Unanswered) else one for one in found]

    def _ask(self, passage: Passage) -> Rephrased | Unanswered:
        try:
            return self.endpoint.ask(messages(passage, self.style), _read, f"passage {passage.id} of {passage.source}")
        except Unanswered as error:
            return error


def _read(reply: Reply) -> Rephrased:
    if reply.refusal is not None or reply.finish == "content_filter":
        return Rephrased(reply.refusal or reply.text, "refusal")
    return Rephrased(reply.text, "length" if reply.finish == "length" else "stop")
