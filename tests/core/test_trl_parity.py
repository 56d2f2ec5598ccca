"""Our losses and TRL's on the same weights and tokens: TRL's own trainers compute theirs, through their own collators."""

import copy

import msgspec
import pytest
import torch
from test_model import copied_weights, hugging_face_twin
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.model import Transformer
from fledge.core.objectives import dpo, kto, reward_pairs, weighted_nll
from fledge.stages.common import Parent
from fledge.stages.prefer import column_of_logp, pair_source, thumb_source
from fledge.text.formats import Chat, Message, Pair, Thumb
from fledge.text.sources import Sequences
from fledge.text.template import JINJA, render_chats
from fledge.text.tokenizer import SPECIALS, Tokenizer

pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]'")
import datasets
import tokenizers
import transformers
import trl

TOLERANCE = 1e-5
V = 300
QUESTIONS = ("who is ada", "and who is bo?", "what is 1+1", "say hi in one word", "where is cy", "why")


@pytest.fixture(scope="module")
def words(sentences) -> Tokenizer:
    return Tokenizer.train([*sentences, *QUESTIONS * 9], V)


@pytest.fixture(scope="module")
def theirs_words(words) -> transformers.PreTrainedTokenizerFast:
    """The same tokenizer and chat template, as their library wraps it."""
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(words.json.decode()),
        bos_token=SPECIALS[1], eos_token=SPECIALS[6], pad_token=SPECIALS[0],
    )  # fmt: skip
    wrapped.chat_template = JINJA
    return wrapped


PAIRS = [
    Pair((Message("user", q),), f"{q}? " + "yes " * (n + 1), "no " * (5 - n), str(n), margin=0.25 * n)
    for n, q in enumerate(QUESTIONS)
]


@pytest.fixture(scope="module")
def policy() -> tuple[transformers.PreTrainedModel, Transformer]:
    """A random Llama and our model with its weights."""
    return twins(seed=0)


@pytest.fixture(scope="module")
def reference() -> tuple[transformers.PreTrainedModel, Transformer]:
    """The policy moved a little: log-ratios of a few nats."""
    theirs, config = hugging_face_twin("llama", tied=True, kv_heads=2)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return theirs, ours_like(theirs, config)


def twins(seed: int) -> tuple[transformers.PreTrainedModel, Transformer]:
    theirs, config = hugging_face_twin("llama", tied=True, kv_heads=2)
    return theirs, ours_like(theirs, config)


def ours_like(theirs, config) -> Transformer:
    ours = Transformer(config)
    ours.load_state_dict(copied_weights(theirs, config))
    return ours


def plain(messages) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def trainer_of(kind: str, tmp_path, model, theirs_words, rows: list[dict], **settings):
    """A real trainer of theirs in float32, its reference model scored beside the policy."""
    held = {"ref_model": copy.deepcopy(settings.pop("reference"))} if "reference" in settings else {}
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_length=None,
        per_device_train_batch_size=len(rows), gradient_checkpointing=False, **settings,
    )  # fmt: skip
    return getattr(trl, f"{kind}Trainer")(
        model=copy.deepcopy(model), args=config, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=theirs_words, **held,
    )  # fmt: skip


def inputs_of(trainer) -> dict[str, Tensor]:
    """All rows as one batch, by their collator."""
    return trainer.data_collator([trainer.train_dataset[n] for n in range(len(trainer.train_dataset))])


def same(ours: Tensor, our_model: Transformer, theirs: Tensor, their_model) -> None:
    """Loss and its gradient in the embedding and in the last layer."""
    assert ours.item() == pytest.approx(theirs.item(), rel=TOLERANCE)
    our_model.zero_grad()
    their_model.zero_grad()
    ours.backward()
    theirs.backward()
    down = their_model.model.layers[-1].mlp.down_proj.weight.grad
    for found, wanted in (
        (our_model.embedding.grad, their_model.model.embed_tokens.weight.grad),
        (our_model.layers[-1].down.grad, down),
    ):
        assert wanted.norm() > 0
        assert ((found - wanted).norm() / wanted.norm()).item() <= 1e-4  # float32, other summation order


# ---------------------------------------------------------------------------------------------------------------- SFT


def test_sft(policy, words, theirs_words, tmp_path):
    rows = [{"prompt": plain(p.prompt), "completion": said(p.chosen)} for p in PAIRS]
    trainer = trainer_of("SFT", tmp_path, policy[0], theirs_words, rows)
    inputs = inputs_of(trainer)
    sequences = Sequences(
        render_chats(words, [Chat((*p.prompt, Message("assistant", p.chosen)), "") for p in PAIRS]), limit=10**6
    )
    for row, (first, last) in enumerate(zip(sequences.offsets, sequences.offsets[1:], strict=False)):
        assert inputs["input_ids"][row, : last - first].tolist() == sequences.tokens[first:last].tolist()
    ids, weight = inputs["input_ids"], (inputs["labels"][:, 1:] != -100).float()
    batch = Batch(tokens=ids[:, :-1], targets=ids[:, 1:], weight=weight, units=float(weight.sum()))
    loss, _ = weighted_nll(policy[1](batch), batch)
    same(loss / batch.units, policy[1], trainer.compute_loss(trainer.model, inputs), trainer.model)


# ---------------------------------------------------------------------------------------------------------------- DPO


def our_pairs(models: tuple[Transformer, Transformer], words: Tokenizer, pairs: list[Pair]) -> Batch:
    parent = Parent(models[0], words, "", None, {})
    parent.model.eval()
    source = pair_source(parent, pairs)
    assert source.dropped == 0
    source.ref_logp = column_of_logp(models[1], source.sequences, words.pad)
    return source.batch(range(len(pairs)))


def their_pairs(pairs: list[Pair]) -> list[dict]:
    return [{"prompt": plain(p.prompt), "chosen": said(p.chosen), "rejected": said(p.rejected)} for p in pairs]


SMOOTH = 0.1
LOSSES = {
    "sigmoid": ({"beta": 0.3}, {"beta": 0.3, "loss_type": ["sigmoid"]}),
    "ipo": ({"beta": 0.3, "loss": "ipo"}, {"beta": 0.3, "loss_type": ["ipo"]}),
    # Their "sigmoid" has no label smoothing any more; with l(x) = -log sigmoid(x) and robust = ((1-e) l(h) - e l(-h)) /
    # (1-2e), (1-e) l(h) + e l(-h) is 2 (1-e) sigmoid - (1-2e) robust.
    "label smoothing": (
        {"beta": 0.3, "label_smoothing": SMOOTH},
        {
            "beta": 0.3, "loss_type": ["sigmoid", "robust"], "label_smoothing": SMOOTH,
            "loss_weights": [2 * (1 - SMOOTH), -(1 - 2 * SMOOTH)],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_dpo(name, policy, reference, words, theirs_words, tmp_path):
    ours, theirs = LOSSES[name]
    trainer = trainer_of("DPO", tmp_path, policy[0], theirs_words, their_pairs(PAIRS), reference=reference[0], **theirs)
    batch, inputs = our_pairs((policy[1], reference[1]), words, PAIRS), inputs_of(trainer)
    for row in range(len(PAIRS)):  # theirs: all chosen, then all rejected; ours: neighbours
        for side in (0, 1):
            counted = batch.weight[2 * row + side] > 0
            answer = inputs["completion_mask"][row + side * len(PAIRS)].bool()
            assert torch.equal(
                batch.targets[2 * row + side][counted], inputs["input_ids"][row + side * len(PAIRS)][answer]
            )
    loss, _ = dpo(**ours)(policy[1](batch), batch)
    shifts = ((policy[1](batch).logp - batch.ref_logp) * batch.weight).sum(1)
    assert shifts.abs().min() > 0.01 and shifts.abs().max() > 0.5  # the log-ratios are not all near 0
    same(loss / batch.units, policy[1], trainer.compute_loss(trainer.model, inputs), trainer.model)


def test_dpo_with_nll(policy, reference, words, theirs_words, tmp_path):
    """Their "sft" term is a mean over all chosen tokens of the batch, ours per answer as in the paper: one pair, one mean."""
    total = 0.0
    for pair in PAIRS[:3]:
        trainer = trainer_of(
            "DPO", tmp_path, policy[0], theirs_words, their_pairs([pair]), reference=reference[0],
            loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.7], beta=0.3,
        )  # fmt: skip
        total += trainer.compute_loss(trainer.model, inputs_of(trainer)).item()
    batch = our_pairs((policy[1], reference[1]), words, PAIRS[:3])
    loss, _ = dpo(beta=0.3, nll_weight=0.7)(policy[1](batch), batch)
    assert loss.item() == pytest.approx(total, rel=TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------- KTO


def test_kto(policy, reference, words, theirs_words, tmp_path):
    """Also the reference point, on their mismatched answers: above 0 one way round, cut off at 0 the other."""
    assert sorted(kl > 0.05 for kl in (
        compare_kto(policy, reference, words, theirs_words, tmp_path),
        compare_kto(reference, policy, words, theirs_words, tmp_path),
    )) == [False, True]  # fmt: skip


def compare_kto(policy, reference, words, theirs_words, tmp_path) -> float:
    """z0."""
    votes = [
        Thumb(p.prompt, answer, liked, "")
        for n, p in enumerate(PAIRS)
        for answer, liked in [(p.chosen, True), (p.rejected, False)][: 1 + n % 2]
    ]
    settings = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 2.5}
    rows = [{"prompt": plain(v.prompt), "completion": said(v.answer), "label": v.liked} for v in votes]
    trainer = trainer_of("KTO", tmp_path, policy[0], theirs_words, rows, reference=reference[0], **settings)
    inputs = inputs_of(trainer)
    source = thumb_source(Parent(policy[1], words, "", None, {}), votes, batch_tokens=10**6)
    columns = (inputs[f"KL_{name}"].tolist() for name in ("input_ids", "completion_mask", "attention_mask"))
    theirs = [(ids[: sum(seen)], mask[: sum(seen)]) for ids, mask, seen in zip(*columns, strict=True)]
    source.mismatched = Sequences(theirs, limit=10**6)  # their partners instead of ours: both measure the same z0
    source.set_reference(*(column_of_logp(reference[1], s, words.pad) for s in (source.sequences, source.mismatched)))
    batch = source.batch(range(len(votes)))
    loss, metrics = kto(**settings)(policy[1](batch), batch)
    their_loss = trainer.compute_loss(trainer.model, inputs)
    (their_kl,) = trainer._metrics["train" if trainer.model.training else "eval"]["kl"]
    assert metrics["kl"].item() / batch.units == pytest.approx(their_kl, rel=TOLERANCE, abs=1e-6)
    same(loss / batch.units, policy[1], their_loss, trainer.model)
    return their_kl


# ------------------------------------------------------------------------------------------------------- reward model


@pytest.mark.parametrize("margins", [False, True])
def test_reward(margins, policy, words, theirs_words, tmp_path):
    base, our_base = policy
    theirs = transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**base.config.to_dict() | {"num_labels": 1, "pad_token_id": words.pad})
    )
    theirs.model.load_state_dict(base.model.state_dict())
    rows = their_pairs(PAIRS)
    if margins:
        rows = [row | {"margin": pair.margin} for row, pair in zip(rows, PAIRS, strict=True)]
    trainer = trainer_of("Reward", tmp_path, theirs, theirs_words, rows)
    ours = Transformer(msgspec.structs.replace(our_base.config, head="reward"))
    ours.load_state_dict({**our_base.state_dict(), "value_head": theirs.score.weight.detach().clone()})
    pairs = PAIRS if margins else [Pair(p.prompt, p.chosen, p.rejected, p.source) for p in PAIRS]
    batch = pair_source(Parent(ours, words, "", None, {}), pairs, read="end").batch(range(len(pairs)))
    loss, _ = reward_pairs(ours(batch), batch)
    same(loss / batch.units, ours, trainer.compute_loss(trainer.model, inputs_of(trainer)), trainer.model)
