"""Stage 1: documents, weight 1 on every token."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from fledge.core.config import TrainConfig
from fledge.core.log import say
from fledge.core.model import ModelConfig, Transformer
from fledge.core.objectives import weighted_nll
from fledge.stages.common import fix_recipe, open_model, rows_of, run_stage, with_steps
from fledge.text.readers import Rejects, read_documents
from fledge.text.sources import DocumentSource, TokenStore
from fledge.text.tokenizer import Tokenizer

_TOKENIZER_BYTES = 20 << 20  # text the tokenizer is learned from


class PretrainRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Raise a base model from text."""

    out: str
    "Folder of this run."
    text: list[str]
    "Files and folders: .txt .md .rst .jsonl .parquet, also .gz."
    parent: str | None = None
    "Checkpoint to continue from; None starts from random weights and learns a tokenizer."
    vocab_size: int = 2048
    "Tokens the tokenizer learns."
    tokens: int | None = None
    "Tokens to train on; None reads the text once."
    encoding: str | None = None
    "Encoding of the files where it is not UTF-8."
    skip_bad: int = 0
    "Broken lines to skip per file before it is an error."
    model: ModelConfig = ModelConfig()
    "Shape of the model."
    train: TrainConfig = TrainConfig(lr=4e-3, optimizer="muon")
    "Settings of the loop."

    def problems(self) -> list[str]:
        found = self.model.problems() + self.train.problems()
        if not self.text:
            found.append("text: empty; name at least one file or folder")
        if self.tokens is not None and self.tokens < 1:
            found.append(f"tokens = {self.tokens}: must be at least 1")
        return found


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
    if (folder / "store.json").exists():
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        rejected = msgspec.json.decode((folder / "rejects.json").read_bytes())
        return tokenizer, TokenStore.open(folder), rejected

    def texts(rejects: Rejects) -> Iterator[str]:
        found = read_documents(recipe.text, encoding=recipe.encoding, skip_bad=recipe.skip_bad, rejects=rejects)
        return (d.text for d in found)

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = open_model(recipe.parent).tokenizer if recipe.parent else learn_tokenizer(texts(Rejects()), recipe.vocab_size)
    (folder / "tokenizer.json").write_bytes(tokenizer.json)
    rejects = Rejects()
    # the store is marked finished (store.json) only after everything else is in place
    store = TokenStore.build(_then(texts(rejects), lambda: _write_rejects(folder, rejects)), tokenizer, folder)
    if rejects.total:
        say(f"text: {rejects.summary()}")
    return tokenizer, store, rejects.as_dict()


def _then(texts: Iterator[str], after) -> Iterator[str]:
    yield from texts
    after()


def _write_rejects(folder: Path, rejects: Rejects) -> None:
    (folder / "rejects.json").write_bytes(msgspec.json.encode(rejects.as_dict()))


def run(recipe: PretrainRecipe, quiet: bool = False) -> Path:
    """Train and return the last checkpoint; continues what recipe.out already holds."""
    out = Path(recipe.out)
    fixed = fix_recipe(out, "pretrain", recipe)
    tokenizer, store, rejected = prepare(recipe, out)
    parent = open_model(recipe.parent) if recipe.parent else None
    model = parent.model if parent else Transformer(recipe.model.resolved(tokenizer.vocab_size)).initialise(recipe.train.seed)
    length = model.config.context_tokens
    rows = rows_of(recipe.train, length)
    source = DocumentSource(store, rows=rows, length=length, seed=recipe.train.seed)
    config = with_steps(recipe.train, (recipe.tokens or len(store.tokens)) / (rows * length))
    data = {"documents": len(store), "tokens": len(store.tokens), "bytes": store.bytes, "sha256": store.content}
    return run_stage(
        "pretrain", model, tokenizer, source, weighted_nll, config,
        out=out, recipe=fixed, parent=parent, data=data | {"rejected": rejected}, quiet=quiet,
    )  # fmt: skip
