"""Stage 2: conversations, weight 1 on the assistant's tokens and their end token unless loss_on says otherwise."""

from pathlib import Path

from fledge.core.adapters import AdapterConfig
from fledge.core.config import Settings, TrainConfig
from fledge.core.log import say
from fledge.core.objectives import weighted_nll
from fledge.stages.common import adapted, fix_recipe, open_model, rows_of, run_stage, with_steps
from fledge.stages.samples import questions
from fledge.text.formats import Chat
from fledge.text.readers import Rejects, require_some
from fledge.text.segments import read_trainable, render_trainable
from fledge.text.sources import ChatSource, Sequences
from fledge.text.template import LossOn


class SftRecipe(Settings, frozen=True, kw_only=True):
    """Teach a model to answer and to stop."""

    out: str
    "Folder of this run."
    parent: str
    "Checkpoint or run to start from."
    chats: list[str]
    "Conversations in any accepted shape (messages, sharegpt, alpaca, ...), template-free rows, rows of tokens."
    epochs: float = 4.0
    "Times to read the conversations where train.steps is not set."
    loss_on: LossOn = "answers"
    "Tokens of a conversation that are trained: of all answers, of the last one only (last), or the questions too (all)."
    fresh: bool = False
    "Start from random weights of the parent's shape instead of its own: the control that shows what pretraining gave."
    encoding: str | None = None
    "Encoding of the files where it is not UTF-8."
    skip_bad: int = 0
    "Broken lines to skip in all before it is an error."
    adapter: AdapterConfig | None = None
    "Train a small adapter beside the frozen weights instead of all of them."
    train: TrainConfig = TrainConfig(lr=1e-3)
    "Settings of the loop."

    def problems(self) -> list[str]:
        found = self.train.problems()
        if not self.epochs > 0:
            found.append(f"epochs = {self.epochs}: must be above 0")
        if self.adapter:
            found += self.adapter.problems()
            if self.fresh:
                found.append("fresh with an adapter: random weights would stay frozen; leave one of them out")
        if not self.chats:
            found.append("chats: empty; name at least one file")
        return found


def run(recipe: SftRecipe, quiet: bool = False) -> Path:
    """Train and return the last checkpoint; continues what recipe.out already holds."""
    out = Path(recipe.out)
    parent = open_model(recipe.parent)
    parent, _ = adapted(parent, recipe.adapter, recipe.train.seed)
    fixed = fix_recipe(out, "sft", recipe)
    rejects = Rejects()
    chats = list(read_trainable(recipe.chats, encoding=recipe.encoding, skip_bad=recipe.skip_bad, rejects=rejects))
    require_some(len(chats), recipe.chats, rejects, "conversations")
    length = parent.model.config.context_tokens
    sequences = Sequences(render_trainable(parent.tokenizer, chats, recipe.loss_on), limit=length + 1)
    if rejects.total:
        say(f"chats: {rejects.summary()}")
    if sequences.cut:
        say(
            f"chats: {sequences.cut} of {len(chats)} longer than {length} tokens were cut, {sequences.dropped} left out"
        )
    if recipe.fresh:
        parent.model.initialise(recipe.train.seed)
    source = ChatSource(
        sequences, rows=rows_of(recipe.train, length), length=length, seed=recipe.train.seed, pad=parent.tokenizer.pad
    )
    config = with_steps(recipe.train, recipe.epochs * source.steps_per_epoch())
    data = {
        "chats": len(sequences), "cut": sequences.cut, "dropped": sequences.dropped,
        "rejected": rejects.as_dict(), "sha256": sequences.content,
    }  # fmt: skip
    asked = questions(parent.tokenizer, [c.messages[:-1] for c in chats if isinstance(c, Chat)], length)
    return run_stage(
        "sft", parent.model, parent.tokenizer, source, weighted_nll, config,
        out=out, recipe=fixed, parent=None if recipe.fresh else parent, data=data,
        prompts=asked, quiet=quiet,
    )  # fmt: skip
