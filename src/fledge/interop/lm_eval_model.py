"""A model of ours as an `LM` of lm-evaluation-harness: the three requests its tasks make.

    lm = FledgeLM(open_model("runs/mine"))
    lm_eval.simple_evaluate(lm, tasks=["arc_easy"])

Importing this registers the name "fledge": `--model fledge --model_args run=runs/mine` where a program imports it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from fledge.core.log import say
from fledge.core.model import Transformer
from fledge.generate.chat import chat_engine
from fledge.generate.live import Live
from fledge.generate.sampling import Sampling
from fledge.generate.scoring import Asked, Scored, score
from fledge.text.formats import Message
from fledge.text.template import answer_beginning, render_prompt
from fledge.text.tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from fledge.stages.common import Parent

_LOOK_STEPS = 16  # tokens written between two looks for the strings that end an answer
_MOST_NEW_TOKENS = 256  # of an answer whose task names no limit, as the harness has it


def begins_with_bos(tokenizer: Tokenizer) -> bool:
    """Whether texts begin with bos: ours do, an imported model's where its tokenizer.json puts it there."""
    if tokenizer.chat_format is None:
        return True
    return tokenizer.slow.encode("a", add_special_tokens=True).ids[:1] == [tokenizer.bos]


def first_token(opened: Parent) -> int:
    """What an empty context is: our bos; for an imported model its tokenizer's bos, or eos where it has none, which is
    the harness's rule."""
    names = opened.card.get("imported", {}).get("tokens", {})
    for name in ("bos_token", "eos_token"):
        if name in names and (i := opened.tokenizer.slow.token_to_id(names[name])) is not None:
            return i
    return opened.tokenizer.bos


@register_model("fledge")
class FledgeLM(LM):
    """Scores by `generate.scoring`, answers by `generate.live`; see there for what is batched and shared."""

    def __init__(
        self,
        opened: Parent | None = None,
        *,
        run: str | None = None,
        device: str | None = None,
        precision: str = "float32",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ):
        """opened: a model that is open, or else run: the folder of one, with its device and precision.

        batch_size: answers written at once; None or "auto": 64. Scores are batched by tokens, not by rows.
        max_batch_size is taken for the harness's sake and means nothing here. Raises ValueError for a model that cannot
        be scored.
        """
        super().__init__()
        if opened is None:
            if run is None:
                raise ValueError("run is missing: --model_args run=runs/mine")
            from fledge.stages.common import open_model

            opened = open_model(run, device=device or "auto", precision=precision)
        if not isinstance(opened.model, Transformer):
            raise ValueError(
                f"{opened.path} is a {type(opened.model).__name__}: continuations are scored by our own causal models; "
                "evaluate others with lm_eval's own backend `--model hf`"
            )
        if (head := opened.card["model"].get("head", "tokens")) not in ("tokens", "tokens+value"):
            raise ValueError(f"{opened.path} is a model with head {head!r}: it writes nothing; evaluate one that does")
        self.opened, self.model, self.tokenizer = opened, opened.model, opened.tokenizer
        self.max_length = self.model.config.context_tokens
        self.prefix, self.bos = first_token(opened), begins_with_bos(self.tokenizer)
        self.slots = 64 if batch_size in (None, "auto") else int(batch_size)
        self._device = self.model.embedding.device
        self._rendered: dict[str, list[int]] = {}  # ids of each prompt of apply_chat_template, which text cannot hold
        self._told = False

    # ---------------------------------------------------------------------------------------- text to tokens

    def _encode(self, texts: Sequence[str], bos: bool | None = None) -> list[list[int]]:
        """Plain texts as tokens, each distinct one encoded once; bos before them, None: where the model has it so."""
        distinct = list(dict.fromkeys(texts))
        lead = [self.tokenizer.bos] if (self.bos if bos is None else bos) else []
        found = dict(zip(distinct, ([*lead, *ids] for ids in self.tokenizer.encode_batch(distinct)), strict=True))
        return [found[text] for text in texts]

    def _pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Asked]:
        """(context, continuation) as tokens.

        As the harness has it: text and its continuation are encoded together and cut after the context's own tokens,
        spaces at a context's end go to the continuation, and an empty context is `first_token`. After a chat prompt the
        continuation is the beginning of an answer.
        """
        moved = []
        for context, continuation in pairs:
            stripped = context if context in self._rendered else context.rstrip()
            moved.append((stripped, context[len(stripped) :] + continuation))
        plain = [pair for pair in moved if pair[0] and pair[0] not in self._rendered]
        whole = dict(zip(plain, self._encode([c + t for c, t in plain]), strict=True))
        ahead = dict(zip(plain, self._encode([c for c, _ in plain]), strict=True))
        found = []
        for pair in moved:
            if pair in whole:
                found.append(Asked(ahead[pair], whole[pair][len(ahead[pair]) :]))
            elif pair[0]:
                found.append(Asked(self._rendered[pair[0]], answer_beginning(self.tokenizer, pair[1])))
            else:
                found.append(Asked([self.prefix], self.tokenizer.encode(pair[1])))
        return found

    # ------------------------------------------------------------------------------------------- the requests

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p of the continuation in nats, whether greedy decoding would write it) of each (context, continuation)."""
        pairs = [request.args for request in requests]
        found: list[Scored] = score(self.model, self._pairs(pairs))
        for pair, scored in zip(pairs, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, tuple(scored))
        return [tuple(scored) for scored in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p in nats of each whole text after bos, in windows of the context that predict every token once.

        The harness's own backend also counts a bos that the tokenizer puts before texts, as predicted from another one;
        here bos is no part of the text.
        """
        texts = [request.args[0] for request in requests]
        windows, owner = [], []
        for n, ids in enumerate(self._encode(texts, bos=False)):
            for window in utils.get_rolling_token_windows(ids, self.prefix, self.max_length, 1):
                windows.append(Asked(*utils.make_disjoint_window(window)))
                owner.append(n)
        total = [0.0] * len(texts)
        for n, scored in zip(owner, score(self.model, windows), strict=True):
            total[n] += scored.logp
        for text, logp in zip(texts, total, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), logp)
        return total

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to one of the strings of `until`, which is left out."""
        contexts = [request.args[0] for request in requests]
        encoded = iter(self._encode([c for c in contexts if c not in self._rendered]))
        wanted = []
        for request, context in zip(requests, contexts, strict=True):
            ids = self._rendered[context] if context in self._rendered else next(encoded)
            wanted.append(self._wanted(ids or [self.prefix], request.args[1]))
        texts = self._write(wanted)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _wanted(self, ids: list[int], given: dict[str, Any]) -> tuple[list[int], Sampling, list[str]]:
        """(prompt, sampling, strings that end the answer) of a generation request.

        The oldest tokens leave the prompt where it and the answer do not fit; the answer gets half the context at most.
        """
        kwargs = normalize_gen_kwargs(given, _MOST_NEW_TOKENS)
        most = min(kwargs["max_gen_toks"], max(1, self.max_length // 2))
        if most < kwargs["max_gen_toks"] and not self._told:
            self._told = True
            say(f"answers are cut at {most} of the {kwargs['max_gen_toks']} tokens asked for: half the context")
        sampled = bool(kwargs.get("do_sample"))
        sampling = Sampling(
            temperature=float(kwargs.get("temperature") or 1.0) if sampled else 0.0,
            top_p=float(kwargs.get("top_p") or 1.0) if sampled else 1.0,
            top_k=(int(kwargs["top_k"]) if kwargs.get("top_k") else None) if sampled else None,
            max_tokens=most,
        )
        return ids[-(self.max_length - most) :], sampling, [s for s in kwargs["until"] if s]

    def _write(self, wanted: list[tuple[list[int], Sampling, list[str]]]) -> list[str]:
        """Answer all; one that ends makes room for the next, and one that has written its end string stops there."""
        if not wanted:
            return []
        positions = max(len(ids) + sampling.max_tokens for ids, sampling, _ in wanted)
        live = Live(chat_engine(self.model, self.tokenizer), min(self.slots, len(wanted)), positions)
        waiting = sorted(range(len(wanted)), key=lambda n: len(wanted[n][0]))  # the longest are taken first
        texts = [""] * len(wanted)
        decoders: dict[int, StreamDecoder] = {}
        while waiting or live.busy:
            while waiting and live.free:
                n = waiting.pop()
                live.add(n, wanted[n][0], wanted[n][1], stream=n)
                decoders[n] = StreamDecoder(self.tokenizer)
            for n, tokens, _, finish in live.go(_LOOK_STEPS):
                looked = max(0, len(texts[n]) - max(map(len, wanted[n][2]), default=0))
                texts[n] += decoders[n].push_all(tokens) + (decoders[n].finish() if finish else "")
                ends = [at for s in wanted[n][2] if (at := texts[n].find(s, looked)) >= 0]
                if ends:
                    texts[n] = texts[n][: min(ends)]
                    if finish is None:
                        live.remove(n)
        return texts

    # --------------------------------------------------------------------------------------------------- chat

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as people read it; its tokens are remembered, for control tokens are never made of text.

        Without add_generation_prompt the last message is the beginning of the assistant's answer. Raises ValueError for
        a conversation the model's template has no form for.
        """
        messages = [Message(m["role"], m["content"]) for m in chat_history]
        begun = "" if add_generation_prompt or not messages else messages.pop().content
        ids = [*render_prompt(self.tokenizer, messages), *answer_beginning(self.tokenizer, begun)]
        text = "".join(map(self.tokenizer.token_text, ids))
        if self._rendered.setdefault(text, ids) != ids:
            raise ValueError(
                f"two conversations look the same and differ in tokens ({text[-200:]!r}): one of them spells a control "
                "token of this model; take it out"
            )
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The Jinja template that the conversations follow, for the record; None without one."""
        return self.tokenizer.format.template if chat_template and self.tokenizer.format.turns else None

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer and template in the harness's caches."""
        return f"fledge-{self.opened.id[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "model_num_parameters": sum(p.numel() for p in self.model.parameters()),
            "model_dtype": str(self.model.compute_dtype),
            "model_sha": self.opened.id,
            "torch": str(torch.__version__),
        }
