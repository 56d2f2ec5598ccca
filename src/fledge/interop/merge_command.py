"""`fledge merge ADAPTER --out RUN`: an adapter and its base as one plain model."""

from pathlib import Path

from fledge.core.config import Settings
from fledge.core.log import say


class MergeOptions(Settings, frozen=True, kw_only=True):
    """Make an adapter part of its base's weights: a run that everything can start from, serve and export."""

    run: str
    "Run or checkpoint of an adapter (lora, dora, ia3 or bitfit)."
    out: str
    "Run folder to write."


def merge(options: MergeOptions) -> Path:
    """Write the merged model and return its checkpoint; the same merge again does nothing.

    Raises ValueError where `run` holds no adapter, or one that is no change of weights.
    """
    import msgspec

    from fledge import __version__
    from fledge.core.adapters import MERGEABLE
    from fledge.core.checkpoint import (
        canonical_json,
        list_checkpoints,
        load_checkpoint,
        run_lock,
        save_checkpoint,
        write_atomically,
    )
    from fledge.stages.common import fix_recipe, open_model

    out, found = Path(options.out), load_checkpoint(options.run)
    if "adapter" not in found.card:
        raise ValueError(f"{found.path} holds a whole model: there is nothing to merge")
    kind = found.card["adapter"]["config"]["kind"]
    if kind not in MERGEABLE:
        raise ValueError(
            f"{found.path} holds a {kind} adapter, which is no change of weights: it is used beside its base, as "
            "`fledge chat` and every stage do by themselves"
        )
    recipe = fix_recipe(out, "merge", options)
    if (out / "done.json").exists() and (done := list_checkpoints(out)):
        if load_checkpoint(done[-1]).card["parent"]["id"] != found.id:
            raise ValueError(f"{out} holds another merge than that of {found.path} now: choose another --out")
        return done[-1]
    opened = open_model(options.run, head=found.card["model"]["head"], device="cpu")
    card = {
        **{name: found.card[name] for name in ("chat_format", "imported") if name in found.card},
        "stage": "merge",
        "parent": opened.reference(),
        "model": msgspec.to_builtins(opened.model.config),
        "recipe": recipe["recipe"],
        "data": {},
        "merged": found.card["adapter"],
        "fledge": __version__,
    }
    with run_lock(out):
        saved = save_checkpoint(
            out, 0, model=opened.model.state_dict(), optimizer={}, state={}, card=card, tokenizer=opened.tokenizer.json
        )
        write_atomically(out / "done.json", canonical_json({"step": 0}))
    say(f"{out}: {kind} adapter {found.path} on {found.card['adapter']['base']['path']}, merged")
    return saved
