"""The encoder against transformers' BERT with the same random weights, and what it does with padding and packing."""

import math

import pytest
import torch
import transformers
from torch import Tensor
from twins import V, batch_of, error, random_tokens, shake

from fledge.core.batch import Batch
from fledge.core.encoder import Encoder, build_model
from fledge.core.model import ModelConfig, Transformer
from fledge.core.objectives import weighted_nll
from fledge.generate.engine import Engine

LENGTH = 40
BERT = {
    "vocab_size": V, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 72,
    "max_position_embeddings": 48, "type_vocab_size": 2, "layer_norm_eps": 1e-6, "attn_implementation": "eager",
    "num_labels": 5,
}  # fmt: skip
LINEARS = {
    "attention_out": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense",
    "attention_post_norm": "attention.output.LayerNorm", "ffn_post_norm": "output.LayerNorm",
}  # fmt: skip
OUTER = {
    "tokens": {
        "transform": "cls.predictions.transform.dense", "transform_norm": "cls.predictions.transform.LayerNorm",
    },
    "class": {"pooler": "bert.pooler.dense", "class_head": "classifier"},
}  # fmt: skip


def bert_tensors(source: dict[str, Tensor], head: str, tied: bool) -> dict[str, Tensor]:
    """BERT's tensors under our names."""
    at = "bert.embeddings"
    found = {
        "embedding": source[f"{at}.word_embeddings.weight"],
        "position_embedding": source[f"{at}.position_embeddings.weight"],
        "type_embedding": source[f"{at}.token_type_embeddings.weight"],
    }
    pairs = {"embedding_norm": f"{at}.LayerNorm", **OUTER[head]}
    for i in range(BERT["num_hidden_layers"]):
        theirs, ours = f"bert.encoder.layer.{i}", f"layers.{i}"
        pairs |= {f"{ours}.{mine}": f"{theirs}.{name}" for mine, name in LINEARS.items()}
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            parts = [source[f"{theirs}.attention.self.{p}.{kind}"] for p in ("query", "key", "value")]
            found[f"{ours}.qkv{suffix}"] = torch.cat(parts)
    for mine, name in pairs.items():
        found |= {mine: source[f"{name}.weight"], f"{mine}_bias": source[f"{name}.bias"]}
    if head == "tokens":
        found["logit_bias"] = source["cls.predictions.decoder.bias"]  # cls.predictions.bias is the same where tied
        if not tied:
            found["unembedding"] = source["cls.predictions.decoder.weight"]
    return found


def bert_twins(head: str, tied: bool = True) -> tuple[torch.nn.Module, Encoder]:
    kind = transformers.BertForMaskedLM if head == "tokens" else transformers.BertForSequenceClassification
    theirs = shake(kind(transformers.BertConfig(**BERT, tie_word_embeddings=tied)))
    config = ModelConfig(
        architecture="bert", causal=False, vocab_size=V, width=48, layers=3, heads=4, ffn_width=72, context_tokens=48,
        token_types=2, norm_eps=1e-6, tied=tied, head=head, classes=5,
    )  # fmt: skip
    ours = build_model(config)
    assert isinstance(ours, Encoder)
    ours.load_state_dict(bert_tensors(theirs.state_dict(), head, tied))
    return theirs, ours.eval()


@pytest.mark.parametrize("tied", [True, False])
def test_masked_token_logits_and_gradients_equal_bert(path, tied):
    theirs, ours = bert_twins("tokens", tied)
    tokens, types = random_tokens(2, LENGTH), random_tokens(2, LENGTH, seed=2) % 2
    with torch.no_grad():
        expected = theirs(tokens, token_type_ids=types).logits
        assert error(ours.logits(ours.hidden(tokens, types=types)), expected) <= 1e-4
    targets, expected = random_tokens(2, LENGTH, seed=1), theirs(tokens).logits
    weight = (random_tokens(2, LENGTH, seed=3) % 4 == 0).float()
    batch = Batch(tokens=tokens, targets=targets, weight=weight, units=float(weight.sum()), want_entropy=True)
    nll = torch.nn.functional.cross_entropy(expected.transpose(1, 2), targets, reduction="none")
    (nll * weight).sum().backward()
    output = ours(batch)
    assert error(output.logp, -nll.detach() * weight) <= 1e-4
    logp = expected.detach().log_softmax(-1)
    assert error(output.entropy, -(logp.exp() * logp).sum(-1) * weight) <= 1e-4
    weighted_nll(output, batch)[0].backward()
    grads = {n: p.grad for n, p in theirs.named_parameters(remove_duplicate=False)}
    wanted = bert_tensors(grads, "tokens", tied)
    largest = max(g.abs().max().item() for g in wanted.values())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - wanted[name]).abs().max().item() <= 1e-4 * largest, name


def test_classes_at_the_first_position_equal_berts_classifier(path):
    theirs, ours = bert_twins("class")
    tokens = random_tokens(3, 20)
    with torch.no_grad():
        output = ours(batch_of(tokens))
        assert error(output.classes[:, 0], theirs(tokens).logits) <= 1e-4
    assert output.classes.shape == (3, 20, 5) and output.value is None and not output.logp.any()


def test_padding_and_packing_leave_an_encoder_unmoved(path):
    """doc = -1 is what attention_mask = 0 is there; packed documents count their positions from their own start."""
    theirs, ours = bert_twins("tokens")
    tokens = random_tokens(1, 12)
    padded = torch.cat((tokens, torch.zeros(1, 6, dtype=torch.long)), 1)
    doc = torch.tensor([[0] * 12 + [-1] * 6])
    other = random_tokens(1, 9, seed=4)
    with torch.no_grad():
        mask = (doc >= 0).long()
        expected = theirs(padded, attention_mask=mask).logits[:, :12]
        assert error(ours.logits(ours.hidden(padded, doc))[:, :12], expected) <= 1e-4
        packed = ours.hidden(torch.cat((other, tokens), 1), torch.tensor([[0] * 9 + [1] * 12]))
        assert error(packed[:, 9:], ours.hidden(tokens)) <= 1e-4
        assert error(packed[:, :9], ours.hidden(other)) <= 1e-4


@pytest.mark.parametrize("head", ["tokens", "class"])
def test_a_new_encoder_counts_starts_and_learns(head):
    config = ModelConfig(
        architecture="bert", causal=False, size="tiny", vocab_size=V, head=head, classes=3, context_tokens=32
    )
    ours, again = (build_model(config).initialise(5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))
    if head == "tokens":
        assert ours.config.parameter_count() == sum(p.numel() for p in ours.parameters())
    batch = batch_of(random_tokens(4, 16))
    losses = []
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    for _ in range(30):
        output = ours(batch)
        if head == "tokens":
            loss = -output.logp.mean()
        else:
            loss = torch.nn.functional.cross_entropy(output.classes[:, 0], torch.tensor([0, 1, 2, 1]))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(math.log(V if head == "tokens" else 3), abs=0.2) and losses[-1] < 0.8 * losses[0]


def test_an_encoder_is_not_built_as_a_decoder_nor_read_past_its_positions():
    config = ModelConfig(architecture="bert", causal=False, size="tiny", vocab_size=V, context_tokens=8)
    with pytest.raises(ValueError, match="build_model"):
        Transformer(config)
    with pytest.raises(ValueError, match="learned 8 positions"):
        build_model(config).initialise(0).hidden(random_tokens(1, 9))
    assert isinstance(build_model(ModelConfig(size="tiny", vocab_size=V)), Transformer)
    for both_ways in (config, ModelConfig(size="tiny", vocab_size=V, causal=False)):
        with pytest.raises(ValueError, match="causal = False"):
            Engine(build_model(both_ways), [2])
