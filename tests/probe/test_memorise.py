"""Memorisation: distances, recall, the exhaustive one-token prompt, the gradient, the search, and the command."""

import json
from itertools import product

import pytest
import torch

from fledge.cli import main
from fledge.core.model import ModelConfig, Transformer
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.probe.memorise import Gcg, Search, compress, edit_distance, one_token_prompt, recall, rouge_l

BOS, VOCAB = 0, 24
ALLOWED = range(1, VOCAB)


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(size="tiny", layers=2, width=32, heads=2, vocab_size=VOCAB, context_tokens=32)
    found = Transformer(config).initialise(3).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # as drawn, all prompts are answered alike
    return found


def greedy(model, prompts, count):
    answers = Engine(model, stop_ids=[]).generate(prompts, Sampling(temperature=0.0, max_tokens=count))
    return [a.tokens for a in answers]


def test_distances():
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3 == edit_distance([1, 2, 3], [])
    assert edit_distance("same", "same") == 0
    assert rouge_l("abcd", "abcd") == 1.0 and rouge_l("abc", "xyz") == 0.0 and rouge_l([], []) == 0.0
    assert rouge_l("abcd", "axcxd") == pytest.approx(2 * 3 / 9)


def test_recall_is_greedy_against_the_text(model):
    own = [5, 9, *greedy(model, [[BOS, 5, 9]], 6)[0]]
    other = [*own[:-1], (own[-1] + 1) % VOCAB]
    same, almost, short = recall(model, BOS, [own, other, own[:4]], 2)
    assert same.exact and same.prefix == 6 and same.distance == 0.0 and same.rouge_l == 1.0
    assert not almost.exact and almost.prefix == 5 and almost.distance == pytest.approx(1 / 6)
    assert short.exact and len(short.written) == 2
    with pytest.raises(ValueError, match="begin = 8"):
        recall(model, BOS, [own], 8)
    with pytest.raises(ValueError, match="must be 1 to 31"):
        recall(model, BOS, [[1] * 40], 2)


def test_one_token_prompts_are_found_whenever_there_is_one(model):
    after = dict(zip(ALLOWED, greedy(model, [[BOS, v] for v in ALLOWED], 4), strict=True))
    for target in after.values():
        assert after[one_token_prompt(model, BOS, target, ALLOWED)] == target
    unseen = next(list(t) for t in product(ALLOWED, repeat=4) if list(t) not in after.values())
    assert one_token_prompt(model, BOS, unseen, ALLOWED) is None


def test_the_gradient_is_that_of_the_embeddings(model):
    target, prompts = [4, 7, 2], torch.tensor([[3, 8], [11, 5]])
    gcg = Gcg(model, BOS, target, ALLOWED, Search())
    found, step, place = gcg.gradient(prompts), 1e-3, 1
    assert found.shape == (2, 2, VOCAB - 1)
    for token in (6, 13):
        losses = []
        for sign in (1, -1):  # along the embedding of a token, at one place
            push = sign * step * model.embedding.detach()[token]

            def move(block, given, push=push):
                moved = given[0].clone()
                moved[:, 1 + place] += push
                return moved, *given[1:]

            hook = model.layers[0].register_forward_pre_hook(move)
            losses.append(gcg._loss(gcg.model.hidden(gcg._rows(prompts))).detach())
            hook.remove()
        slope = (losses[0] - losses[1]) / (2 * step)
        assert torch.allclose(slope, found[:, place, token - 1], rtol=0.05, atol=2e-3)
    assert all(p.grad is None for p in model.parameters())


def test_a_prompt_that_exists_is_found_and_works(model):
    alone = greedy(model, [[BOS, v] for v in ALLOWED], 5)
    pairs = [list(p) for p in product(ALLOWED, repeat=2)]
    target = next(t for t in greedy(model, [[BOS, *p] for p in pairs], 5) if t not in alone)
    search = Search(start=4, steps=40, top=16, candidates=48)
    told = compress(model, BOS, target, ALLOWED, search)
    assert told.found and told.ratio == 5 / len(told.prompt) and told.tried[:2] == [1, 4]
    assert greedy(model, [[BOS, *told.prompt]], 5)[0] == target
    assert compress(model, BOS, target, ALLOWED, search) == told  # a seed, a prompt
    assert set(told.prompt) <= set(ALLOWED)


def test_one_token_is_tried_first_and_failure_is_said(model):
    target = greedy(model, [[BOS, 6]], 4)[0]
    told = compress(model, BOS, target, ALLOWED)
    assert told.ratio == 4.0 and told.tried == [1]
    failed = compress(model, BOS, [1, 2, 3, 4, 5, 6], [7], Search(start=2, step=2, longest=1.0, steps=1))
    assert not failed.found and failed.ratio == 1.0 and failed.prompt == [] and failed.tried == [1, 2, 4, 6]
    with pytest.raises(ValueError, match="longest = 0"):
        compress(model, BOS, target, ALLOWED, Search(longest=0.5))  # what is not found would count as compressed
    with pytest.raises(ValueError, match="steps = 0"):
        compress(model, BOS, target, ALLOWED, Search(steps=0))


def test_the_command(base_run, tmp_path, capsys):
    out = tmp_path / "found.json"
    asked = ["memorise", str(base_run), "--text", "to be or not", "--out", str(out)]
    assert main([*asked, "--search.steps", "1", "--search.longest", "1"]) == 0
    row = json.loads(out.read_bytes())["texts"][0]
    assert row["tokens"] > 0 and 0 <= row["recall"]["distance"] <= 1 and row["compression"]["tried"][0] == 1
    assert "ACR" in capsys.readouterr().out
    assert main([*asked, "--recall_only", "true"]) == 0
    assert "compression" not in json.loads(out.read_bytes())["texts"][0]
    assert main(["memorise", str(base_run)]) == 2
