"""Stage 1: documents, weight 1 on every token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fledge.core.checkpoint import one_at_a_time, write_atomically
from fledge.core.config import Settings, TrainConfig, count_problems, parse_count
from fledge.core.log import say
from fledge.core.model import Shape, Transformer
from fledge.core.objectives import weighted_nll
from fledge.stages.common import fix_recipe, open_model, rows_of, run_stage, with_steps
from fledge.stages.mixing import mix, mixture_problems, shares
from fledge.stages.samples import beginnings, stored_texts
from fledge.text.chat_format import ChatFormat
from fledge.text.periodic import FEWEST_REPEATS
from fledge.text.readers import Rejects, read_documents
from fledge.text.sources import DocumentSource, TokenStore
from fledge.text.tokenizer import Tokenizer

_TOKENIZER_BYTES = 20 << 20  # text the tokenizer is learned from
_HELDOUT_DOCUMENTS = 300


class PretrainRecipe(Settings, frozen=True, kw_only=True):
    """Raise a base model from text."""

    out: str
    "Folder of this run."
    text: list[str]
    "Files and folders: .txt .md .rst .jsonl .parquet, also .gz."
    parent: str | None = None
    "Checkpoint to continue from; None starts from random weights and learns a tokenizer."
    vocab_size: int = 2048
    "Tokens the tokenizer learns."
    tokens: int | str | None = None
    "Tokens to train on, such as 2M; None reads the text once."
    heldout_every: int | None = None
    "Keep every n-th document out of training to measure bits per byte; None trains on all."
    encoding: str | None = None
    "Encoding of the files where it is not UTF-8."
    skip_bad: int = 0
    "Broken lines to skip in all before it is an error."
    mask_repeats: int | None = 32
    "Train on no token in a span of 1 to 13 tokens that repeats this often or more; none trains on all."
    model: Shape = Shape()
    "Shape of the model."
    weights: list[float | str] = []
    "Share of each --text, one per --text: 1, or with its most after a colon, 3:4x (times) or 3:2M (tokens)."
    train: TrainConfig = TrainConfig(lr=4e-3, optimizer="muon")
    "Settings of the loop."

    def problems(self) -> list[str]:
        found = self.model.problems() + self.train.problems()
        if not self.text:
            found.append("text: empty; name at least one file or folder")
        if self.model.vocab_size is not None:
            found.append(
                f"model.vocab_size = {self.model.vocab_size}: comes from the tokenizer; set vocab_size instead"
            )
        if self.heldout_every is not None and self.heldout_every < 2:
            found.append(f"heldout_every = {self.heldout_every}: must be at least 2; none keeps nothing out")
        if self.mask_repeats is not None and self.mask_repeats < FEWEST_REPEATS:
            found.append(f"mask_repeats = {self.mask_repeats}: must be at least {FEWEST_REPEATS}; none masks nothing")
        return found + count_problems(self.tokens) + mixture_problems(self)


def learn_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A tokenizer from the first 20 MB of `texts`."""
    return Tokenizer.train(beginning(texts, _TOKENIZER_BYTES), vocab_size)


def beginning(texts: Iterator[str], most_bytes: int) -> Iterator[str]:
    """The first of `texts`, up to the one that reaches `most_bytes`."""
    seen = 0
    for text in texts:
        yield text
        seen += len(text.encode("utf-8", "surrogatepass"))
        if seen >= most_bytes:
            return


class Prepared(NamedTuple):
    """The text of a recipe as tokens."""

    tokenizer: Tokenizer
    stores: list[TokenStore]  # one; in a mixture one per text
    rejected: dict[str, Any]


def prepare(recipe: PretrainRecipe, out: Path) -> Prepared:
    """Tokenizer and token stores of a recipe, made once and kept in `out`."""
    folder = out / "data"
    folders = [folder / str(number) for number in range(len(recipe.text))] if recipe.weights else [folder]
    if not (folders[-1] / "store.json").exists():
        with one_at_a_time(folder):  # ranks share the store; a second trainer must not pull it away from the first
            if not (folders[-1] / "store.json").exists():
                _make_stores(recipe, folder, folders)
    form = folder / "chat_format.json"  # beside the tokenizer of an imported model
    held = msgspec.json.decode(form.read_bytes(), type=ChatFormat) if form.exists() else None
    tokenizer = Tokenizer.load(folder / "tokenizer.json", held)
    rejected = msgspec.json.decode((folder / "rejects.json").read_bytes())
    return Prepared(tokenizer, [TokenStore.open(f, tokenizer) for f in folders], rejected)


def _make_stores(recipe: PretrainRecipe, folder: Path, folders: list[Path]) -> None:
    """One store of all texts, or one of each."""
    parts = [[path] for path in recipe.text] if recipe.weights else [recipe.text]

    def texts(paths: list[str], rejects: Rejects) -> Iterator[str]:
        found = read_documents(paths, encoding=recipe.encoding, skip_bad=recipe.skip_bad, rejects=rejects)
        return (d.text for d in found)

    def samples() -> Iterator[str]:
        """What the tokenizer is learned from: each text at its weight."""
        for paths, share in zip(parts, shares(recipe.weights or [1]), strict=True):
            yield from beginning(texts(paths, Rejects()), round(share * _TOKENIZER_BYTES))

    def kept(paths: list[str], rejects: Rejects, apart: list[str], most: int) -> Iterator[str]:
        """All but every n-th text, of which `apart` gets the first ones."""
        every, heldout = recipe.heldout_every, 0
        for i, text in enumerate(texts(paths, rejects)):
            if every and i % every == every - 1:
                apart += [text] * (heldout < most)
                heldout += 1
            else:
                yield text

    tokenizer = open_model(recipe.parent).tokenizer if recipe.parent else learn_tokenizer(samples(), recipe.vocab_size)
    if tokenizer.chat_format is not None:
        write_atomically(folder / "chat_format.json", msgspec.json.encode(tokenizer.chat_format))
    write_atomically(folder / "tokenizer.json", tokenizer.json)
    rejects, apart = Rejects(), []

    def last_of_all(stream: Iterator[str]) -> Iterator[str]:
        """Rejects and held-out texts are on disk before the last store says that it is finished."""
        yield from stream
        write_atomically(folder / "heldout.json", msgspec.json.encode(apart))
        write_atomically(folder / "rejects.json", msgspec.json.encode(rejects.as_dict()))

    for paths, place in zip(parts, folders, strict=True):
        stream = kept(paths, rejects, apart, _HELDOUT_DOCUMENTS // len(parts))
        TokenStore.build(last_of_all(stream) if place is folders[-1] else stream, tokenizer, place)
    if rejects.total:
        say(f"text: {rejects.summary()}")


def heldout_texts(run: Path) -> list[str]:
    """The documents a pretraining run kept out of training."""
    path = run / "data" / "heldout.json"
    return msgspec.json.decode(path.read_bytes()) if path.exists() else []


def document_source(
    store: TokenStore, train: TrainConfig, length: int, mask_repeats: int | None = None
) -> DocumentSource:
    """The store as batches of train.batch_tokens."""
    return DocumentSource(store, rows=rows_of(train, length), length=length, seed=train.seed, mask_repeats=mask_repeats)


def run(recipe: PretrainRecipe, quiet: bool = False) -> Path:
    """Train and return the last checkpoint; continues what recipe.out already holds."""
    out = Path(recipe.out)
    fixed = fix_recipe(out, "pretrain", recipe)
    tokenizer, stores, rejected = prepare(recipe, out)
    parent = open_model(recipe.parent) if recipe.parent else None
    model = (
        parent.model
        if parent
        else Transformer(recipe.model.resolved(tokenizer.vocab_size)).initialise(recipe.train.seed)
    )
    length = model.config.context_tokens
    data = {name: sum(figures) for name, figures in _sizes(stores).items()}
    if recipe.weights:
        mixture = mix(recipe, stores, length)
        source, config, data = mixture.source, mixture.config, data | mixture.card
        if not quiet:
            say(mixture.said)
    else:
        source = document_source(stores[0], recipe.train, length, recipe.mask_repeats)
        config = with_steps(recipe.train, (parse_count(recipe.tokens) or data["tokens"]) / (source.rows * length))
    begun = beginnings(tokenizer, heldout_texts(out) or stored_texts(stores[0], tokenizer), length)
    return run_stage(
        "pretrain", model, tokenizer, source, weighted_nll, config,
        out=out, recipe=fixed, parent=parent, data=data | {"sha256": source.content, "rejected": rejected},
        prompts=begun, quiet=quiet,
    )  # fmt: skip


def _sizes(stores: list[TokenStore]) -> dict[str, list[int]]:
    return {
        "documents": [len(store) for store in stores],
        "tokens": [len(store.tokens) for store in stores],
        "bytes": [store.bytes for store in stores],
    }
