"""pass@k against enumeration, and ranks against logits."""

import itertools

import pytest
import torch

from fledge.probe.pass_at_k import curve, doublings, first_token_rank, pass_at_k


@pytest.mark.parametrize(("samples", "correct", "k"), [(5, 2, 1), (5, 2, 3), (5, 0, 5), (6, 1, 6), (6, 5, 2)])
def test_pass_at_k_is_the_share_of_all_choices(samples, correct, k):
    chosen = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
    assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))


def test_a_curve_rises_and_ends_with_the_share_ever_right():
    found = curve([0, 1, 6, 3], 6)
    assert list(found) == doublings(6) == [1, 2, 4, 6] and list(found.values()) == sorted(found.values())
    assert found[1] == pytest.approx(10 / 24) and found[6] == 0.75
    with pytest.raises(ValueError, match="need 1 <= k <= samples"):
        pass_at_k(4, 1, 5)


def test_ranks_are_of_the_next_token(make_model):
    model = make_model(0, spread=0.2, vocab_size=20, context_tokens=16)
    prompts = [[1, 2, 3], [4, 5]]
    for prompt, (rank, p) in zip(prompts, first_token_rank(model, prompts, [[7], [8, 9]]), strict=True):
        with torch.no_grad():
            row = model.logits(model.hidden(torch.tensor([prompt]))[0, -1:])[0].softmax(-1)
        best = row[7] if prompt == [1, 2, 3] else row[[8, 9]].max()
        assert p == pytest.approx(float(best), abs=1e-5) and rank == int((row > best).sum()) + 1
