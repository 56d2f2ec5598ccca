"""Stage 1: documents, weight 1 on every token."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from fledge.core.checkpoint import one_at_a_time, write_atomically
from fledge.core.config import Settings, TrainConfig, count_problems, parse_count
from fledge.core.log import say
from fledge.core.model import Shape, Transformer
from fledge.core.objectives import weighted_nll
from fledge.stages.common import fix_recipe, open_model, rows_of, run_stage, with_steps
from fledge.stages.samples import beginnings, stored_texts
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
    model: Shape = Shape()
    "Shape of the model."
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
        return found + count_problems(self.tokens)


def learn_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A tokenizer from the first 20 MB of `texts`."""

    def sample() -> Iterator[str]:
        seen = 0
        for text in texts:
            yield text
            seen += len(text.encode("utf-8", "surrogatepass"))
            if seen >= _TOKENIZER_BYTES:
                return

    return Tokenizer.train(sample(), vocab_size)


def prepare(recipe: PretrainRecipe, out: Path) -> tuple[Tokenizer, TokenStore, dict]:
    """Tokenizer and token store of a recipe, made once and kept in `out`; returns them with what was rejected."""
    folder = out / "data"
    if not (folder / "store.json").exists():
        with one_at_a_time(folder):  # ranks share the store; a second trainer must not pull it away from the first
            if not (folder / "store.json").exists():
                _make_store(recipe, folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    rejected = msgspec.json.decode((folder / "rejects.json").read_bytes())
    return tokenizer, TokenStore.open(folder, tokenizer), rejected


def _make_store(recipe: PretrainRecipe, folder: Path) -> None:
    def texts(rejects: Rejects) -> Iterator[str]:
        found = read_documents(recipe.text, encoding=recipe.encoding, skip_bad=recipe.skip_bad, rejects=rejects)
        return (d.text for d in found)

    def kept(rejects: Rejects) -> Iterator[str]:
        """All but every n-th text; those, and the rejects, are on disk before the store says it is finished."""
        every, apart = recipe.heldout_every, []
        for i, text in enumerate(texts(rejects)):
            if every and i % every == every - 1:
                apart.append(text)
            else:
                yield text
        write_atomically(folder / "heldout.json", msgspec.json.encode(apart[:_HELDOUT_DOCUMENTS]))
        write_atomically(folder / "rejects.json", msgspec.json.encode(rejects.as_dict()))

    tokenizer = (
        open_model(recipe.parent).tokenizer if recipe.parent else learn_tokenizer(texts(Rejects()), recipe.vocab_size)
    )
    write_atomically(folder / "tokenizer.json", tokenizer.json)
    rejects = Rejects()
    TokenStore.build(kept(rejects), tokenizer, folder)
    if rejects.total:
        say(f"text: {rejects.summary()}")


def heldout_texts(run: Path) -> list[str]:
    """The documents a pretraining run kept out of training."""
    path = run / "data" / "heldout.json"
    return msgspec.json.decode(path.read_bytes()) if path.exists() else []


def document_source(store: TokenStore, train: TrainConfig, length: int) -> DocumentSource:
    """The store as batches of train.batch_tokens."""
    return DocumentSource(store, rows=rows_of(train, length), length=length, seed=train.seed)


def run(recipe: PretrainRecipe, quiet: bool = False) -> Path:
    """Train and return the last checkpoint; continues what recipe.out already holds."""
    out = Path(recipe.out)
    fixed = fix_recipe(out, "pretrain", recipe)
    tokenizer, store, rejected = prepare(recipe, out)
    parent = open_model(recipe.parent) if recipe.parent else None
    model = (
        parent.model
        if parent
        else Transformer(recipe.model.resolved(tokenizer.vocab_size)).initialise(recipe.train.seed)
    )
    length = model.config.context_tokens
    source = document_source(store, recipe.train, length)
    config = with_steps(recipe.train, (parse_count(recipe.tokens) or len(store.tokens)) / (source.rows * length))
    begun = beginnings(tokenizer, heldout_texts(out) or stored_texts(store, tokenizer), length)
    data = {"documents": len(store), "tokens": len(store.tokens), "bytes": store.bytes, "sha256": store.content}
    return run_stage(
        "pretrain", model, tokenizer, source, weighted_nll, config,
        out=out, recipe=fixed, parent=parent, data=data | {"rejected": rejected}, prompts=begun, quiet=quiet,
    )  # fmt: skip
