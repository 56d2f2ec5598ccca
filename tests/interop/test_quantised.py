"""An adapter is trained beside a base of 8 bits: close to the whole base, a quarter of its memory, the same bytes each time."""

import copy
import json
from pathlib import Path

import msgspec
import pytest
import torch

from fledge.core.adapters import AdapterConfig
from fledge.core.adapting import attach, can_merge, trained_tensors
from fledge.core.batch import Batch
from fledge.core.checkpoint import load_checkpoint, save_checkpoint
from fledge.core.config import TrainConfig
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.interop.quantised import PROJECTIONS, quantise, require_bits, weight_bytes
from fledge.stages.common import open_model
from fledge.stages.sft import SftRecipe, run

pytest.importorskip("torchao", reason="a quantised base needs torchao")
KINDS = ["lora", "houlsby", "bitfit", "ia3", "prefix", "prompt"]


def pair(make_model, kind: str = "lora", **config):
    """(float model, the same quantised), with the same adapter that does something."""
    made = []
    for bits in (None, 8):
        model = attach(make_model(spread=0.1, **config), AdapterConfig(kind=kind, rank=2, virtual_tokens=3), seed=1)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in trained_tensors(model).values():
                parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=generator))
        made.append(model if bits is None else quantise(model, bits))
    return made


def batch_of(vocab: int = 300) -> Batch:
    tokens = torch.randint(0, vocab, (2, 21), generator=torch.Generator().manual_seed(2))
    return Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weight=torch.ones(2, 20), units=40.0)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_and_gradients_are_close_to_those_of_the_whole_base(make_model, kind: str):
    whole, eight = pair(make_model, kind)
    assert not torch.equal(eight.layers[0].qkv.dequantize(), whole.layers[0].qkv)
    logp = [model(batch_of()).logp for model in (whole, eight)]
    assert logp[0].std() > 0.5
    assert 0 < (logp[0] - logp[1]).abs().max() < 0.15
    for found in logp:
        found.sum().backward()
    trained = [[p.grad for p in model.parameters() if p.requires_grad] for model in (whole, eight)]
    assert len(trained[0]) == len(trained[1]) > 0
    for a, b in zip(*trained, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98
    assert all(p.grad is None for p in eight.parameters() if not p.requires_grad)


def test_it_computes_in_bfloat16_too(make_model):
    whole, eight = pair(make_model)
    whole.compute_dtype = eight.compute_dtype = torch.bfloat16
    assert (whole(batch_of()).logp - eight(batch_of()).logp).abs().max() < 0.3


def test_the_matrices_take_a_quarter_and_the_rest_is_as_it_was(make_model):
    whole, eight = pair(make_model, width=128, heads=4, ffn_width=256)
    matrices = sum(getattr(layer, name).numel() for layer in whole.layers for name in PROJECTIONS)
    saved = weight_bytes(whole) - weight_bytes(eight)
    assert 2.9 * matrices < saved <= 3 * matrices  # 1 byte in place of 4, and a scale for each row
    assert torch.equal(eight.embedding, whole.embedding)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_answers_come_from_the_torch_path(make_model, kind: str):
    _, eight = pair(make_model, kind)
    engine = Engine(eight, [])
    assert not engine.native and not eight.plain and not can_merge(eight)
    prompt = [5, 9, 7, 100]
    answer = engine.generate([prompt], Sampling(temperature=0.0, max_tokens=6))[0]
    made = list(prompt)
    for token in answer.tokens:  # without a cache
        with torch.no_grad():
            assert int(eight.logits(eight.hidden(torch.tensor([made])))[0, -1].argmax()) == token
        made.append(token)


def test_a_copy_is_a_copy(make_model):
    """The estimate of a run's time trains one."""
    _, eight = pair(make_model)
    other = copy.deepcopy(eight)
    assert torch.equal(other(batch_of()).logp, eight(batch_of()).logp)


def recipe(folder: Path, out: str, bits: int | None = 8) -> SftRecipe:
    rows = [{"messages": [{"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": "By the Tesk."}]}
            for n in ("Belmora", "Arvania", "Kolden", "Mira")]  # fmt: skip
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return SftRecipe(
        chats=[str(folder / "chats.jsonl")], out=str(folder / out), parent=str(folder / "base"),
        adapter=AdapterConfig(kind="lora", rank=4, base_bits=bits),
        train=TrainConfig(steps=10, lr=1e-2, batch_tokens=128, device="cpu", precision="float32"),
    )  # fmt: skip


def test_it_is_trained_by_a_stage_and_opened_on_its_own_base(tmp_path: Path, tokenizer, make_model):
    model = make_model(spread=0.1, vocab_size=tokenizer.vocab_size)
    card = {"stage": "pretrain", "parent": None, "model": msgspec.to_builtins(model.config), "recipe": {}}
    save_checkpoint(tmp_path / "base", 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json)  # fmt: skip
    run(recipe(tmp_path, "eight"), quiet=True)
    run(recipe(tmp_path, "again"), quiet=True)
    run(recipe(tmp_path, "whole", None), quiet=True)
    held = [load_checkpoint(tmp_path / name).model_tensors() for name in ("eight", "again", "whole")]
    assert held[0].keys() == held[2].keys() and all(name.startswith("adapter.") for name in held[0])
    assert all(torch.equal(held[0][n], held[1][n]) for n in held[0])
    assert not all(torch.equal(held[0][n], held[2][n]) for n in held[0])
    lines = (tmp_path / "eight" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
    opened = open_model(tmp_path / "eight", device="cpu", precision="float32").model
    assert opened.adapter is None and opened.bits is None  # merged into the base's own weights
    assert not torch.equal(opened.layers[0].qkv, model.layers[0].qkv)


@pytest.mark.parametrize(("bits", "error"), [(4, "base_bits = 4: .*CUDA"), (3, "base_bits = 3: must be 8")])
def test_bits_that_cannot_be_had_are_refused(bits: int, error: str):
    with pytest.raises(ValueError, match=error):
        require_bits(bits)


def test_only_a_frozen_base_is_quantised(make_model):
    with pytest.raises(ValueError, match="only the frozen base of an adapter can be quantised"):
        quantise(make_model())
    with pytest.raises(ValueError, match="dora needs the base's own weights"):
        quantise(attach(make_model(), AdapterConfig(kind="dora")))
    assert AdapterConfig(kind="dora", base_bits=8).problems() != []
    assert AdapterConfig(base_bits=3).problems() != []
    assert AdapterConfig(base_bits=8).problems() == []
