"""Sources of preferences: rows, columns and what follows them, KTO's mismatched answers, resuming bit for bit."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from source_checks import assert_resumes_everywhere, take

from fledge.core.batch import Batch
from fledge.core.model import Output
from fledge.text.formats import Message, Pair
from fledge.text.pairs import PairSource, ThumbSource, sequence_sums
from fledge.text.template import Rendered, render_answers, render_pairs

# -------------------------------------------------------------------------------------------------------- pairs


@pytest.fixture(scope="module")
def pairs(sentences, tokenizer) -> list[tuple[Rendered, Rendered]]:
    made = [
        Pair(
            (Message("user", f"{n} {sentences[n % 9][:12]}"),), sentences[(n + 1) % 9][: 4 + n], f"no {n}", f"test:{n}"
        )
        for n in range(20)
    ]
    return render_pairs(tokenizer, made)


def pair_source(pairs, tokenizer, read="answers", limit=200, batch_tokens=160, seed=0) -> PairSource:
    return PairSource(pairs, limit=limit, batch_tokens=batch_tokens, seed=seed, pad=tokenizer.pad, read=read)


def test_rows_are_chosen_then_rejected_each_pair_once_per_epoch(pairs, tokenizer):
    source, seen = pair_source(pairs, tokenizer), []
    assert 1 < source.pairs_per_step < len(pairs)
    for batch in take(source, source.steps_per_epoch()):
        assert batch.rows_per_unit == 2 and batch.units == len(batch.tokens) / 2 and batch.ref_logp is None
        for row, pair in enumerate(batch.ids.tolist()):
            tokens, weights = pairs[pair][row % 2]
            size = len(tokens) - 1
            assert batch.tokens[row, :size].tolist() == tokens[:-1]
            assert batch.targets[row, :size].tolist() == tokens[1:]
            assert batch.weight[row, :size].tolist() == weights[1:]
            assert (batch.tokens[row, size:] == tokenizer.pad).all() and not batch.weight[row, size:].any()
        longest = max(len(side.tokens) - 1 for p in batch.ids.tolist() for side in pairs[p])
        assert longest <= batch.tokens.shape[1] < longest + 8 and batch.tokens.shape[1] % 8 == 0
        seen += batch.ids.tolist()[::2]
    assert sorted(seen) == list(range(20)) and source.state_dict()["epoch"] == 1
    assert [b.ids.tolist() for b in take(source, source.steps_per_epoch())] != seen


@pytest.mark.parametrize("forward_tokens", [None, 1, 200, 10**6])
@pytest.mark.parametrize("kind", ["pairs", "rewards", "votes"])
def test_micro_batches_by_length_give_the_gradient_of_the_step(
    pairs, votes, tokenizer, make_model, kind, forward_tokens
):
    """Split, sorted and cut short: the same gradient and figures as all rows at once, each unit once."""
    from fledge.core.objectives import dpo, kto, reward_pairs
    from fledge.core.train import _accumulate

    model = make_model(spread=0.1, vocab_size=500, context_tokens=256, head="reward" if kind == "rewards" else "tokens")
    if kind == "votes":
        source, objective = thumb_source(votes, tokenizer, batch_tokens=10**4), kto()
    else:
        source = pair_source(pairs, tokenizer, read="end" if kind == "rewards" else "answers", batch_tokens=10**4)
        source.ref_logp = -np.ones(len(source.sequences.tokens), np.float32)
        objective = reward_pairs if kind == "rewards" else dpo(nll_weight=0.3)
    source.forward_tokens = forward_tokens
    batch = next(iter(source))
    whole = Batch(**{f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)})
    found = {}
    for name, data in (("split", batch), ("whole", whole)):
        model.zero_grad()
        figures = _accumulate(model, objective, data, data.units, 10**6)
        found[name] = figures, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert found["split"][0] == pytest.approx(found["whole"][0], rel=1e-4, abs=1e-5)
    difference = found["split"][1] - found["whole"][1]
    assert difference.norm() <= 1e-4 * found["whole"][1].norm() and found["whole"][1].norm() > 1e-3
    parts = list(batch.split(10**6))
    assert torch.equal(torch.cat([p.ids for p in parts]).sort().values, batch.ids.sort().values)
    assert len(parts) == {None: 1, 1: len(batch.tokens) // batch.rows_per_unit, 10**6: 1}.get(
        forward_tokens, len(parts)
    )
    for part in parts:
        reach = max(row.nonzero().max().item() + 1 for row in part.weight)
        assert (
            reach <= part.tokens.shape[1] < reach + 8 and part.tokens.shape == part.weight.shape == part.targets.shape
        )
        assert part.tokens.numel() <= max(forward_tokens or 10**6, part.rows_per_unit * part.tokens.shape[1])
        assert part.rows_per_unit == 1 or torch.equal(part.ids[0::2], part.ids[1::2])


def test_ranks_share_a_padded_step(pairs, tokenizer):
    batch = next(iter(pair_source(pairs, tokenizer, batch_tokens=10**4)))
    shards = [batch.shard(rank, 3) for rank in range(3)]
    assert torch.cat([s.ids for s in shards]).tolist() == batch.ids.tolist()
    assert sum(s.units for s in shards) == batch.units
    assert [sum(len(m.tokens) for m in s.split(10**6)) for s in shards] == [len(s.tokens) for s in shards]


def test_a_reward_head_reads_each_answer_at_its_end_token(pairs, tokenizer):
    for batch in take(pair_source(pairs, tokenizer, read="end"), 5):
        assert (batch.weight.sum(1) == 1).all()
        assert (batch.tokens[batch.weight > 0] == tokenizer.end).all()
        for row, pair in enumerate(batch.ids.tolist()):
            tokens = pairs[pair][row % 2].tokens
            assert batch.tokens[row, : len(tokens)].tolist() == tokens  # the whole answer, its end included
            assert batch.weight[row, len(tokens) - 1] == 1


def test_the_reference_column_lines_up_with_the_targets(pairs, tokenizer):
    source = pair_source(pairs, tokenizer)
    source.ref_logp = -np.arange(len(source.sequences.tokens), dtype=np.float32)  # each token's place, as its log-prob
    for batch in take(source, 5):
        places = (-batch.ref_logp).long()
        counted = batch.weight > 0
        flat = torch.from_numpy(source.sequences.tokens)
        assert torch.equal(flat[places[counted]], batch.targets[counted])
        for row, pair in enumerate(batch.ids.tolist()):
            side = 2 * pair + row % 2
            first, last = source.sequences.offsets[side], source.sequences.offsets[side + 1]
            assert places[row, : last - first - 1].tolist() == list(range(first + 1, last))
            assert not places[row, last - first - 1 :].any()


def test_the_scored_reference_is_the_model_s_own_logp(pairs, tokenizer, make_model):
    """Scored in order and in other batches, read back in the order of training: dpo starts at exactly ln 2."""
    from fledge.core.objectives import dpo
    from fledge.stages.prefer import reference_logp

    model, source = make_model(spread=0.1, vocab_size=500, context_tokens=256), pair_source(pairs, tokenizer, seed=5)
    source.ref_logp = reference_logp(model, source)
    for batch in take(source, 4):
        with torch.no_grad():
            output = model(batch)
        assert torch.allclose(output.logp, batch.ref_logp, atol=1e-4)
        loss, _ = dpo(beta=0.1)(output, batch)
        assert loss.item() / batch.units == pytest.approx(np.log(2), abs=1e-4)


def test_a_pair_with_one_side_too_long_is_dropped_whole_and_counted(pairs, tokenizer):
    limit = sorted(max(len(c.tokens), len(r.tokens)) for c, r in pairs)[9]
    source = pair_source(pairs, tokenizer, limit=limit)
    kept = [p for p in pairs if max(len(p[0].tokens), len(p[1].tokens)) <= limit]
    assert (source.pairs, source.dropped) == (len(kept), 20 - len(kept)) and 0 < source.dropped
    batch = source.batch(range(len(kept)))
    assert [t[: len(c.tokens) - 1].tolist() for t, (c, _) in zip(batch.tokens[::2], kept, strict=True)] == [
        c.tokens[:-1] for c, _ in kept
    ]
    with pytest.raises(ValueError, match="none of 20 pairs fits"):
        pair_source(pairs, tokenizer, limit=3)


@pytest.mark.parametrize("read", ["answers", "end"])
def test_pairs_resume_at_every_step_over_three_epochs(pairs, tokenizer, read):
    assert_resumes_everywhere(lambda: pair_source(pairs, tokenizer, read=read), steps=60, epochs=3)


def test_margins_follow_their_pairs(tokenizer):
    pair = Rendered([1, 2, 3], [0, 0, 1]), Rendered([1, 2, 4], [0, 0, 1])
    long = Rendered(list(range(9)), [0] * 8 + [1]), Rendered([1, 2, 4], [0, 0, 1])
    pairs, margins = [pair, long, pair, pair], [0.5, 9.0, None, 2.0]
    source = PairSource(pairs, limit=5, batch_tokens=64, seed=0, pad=0, read="end", margins=margins)
    assert source.dropped == 1
    assert source.batch([0, 1, 2]).margin.tolist() == [0.5, 0.5, 0.0, 0.0, 2.0, 2.0]
    plain = PairSource(pairs, limit=5, batch_tokens=64, seed=0, pad=0, read="end", margins=[None] * 4)
    assert plain.batch([0]).margin is None


def test_ties_follow_their_pairs_and_are_part_of_the_content(tokenizer):
    pair = Rendered([1, 2, 3], [0, 0, 1]), Rendered([1, 2, 4], [0, 0, 1])
    long = Rendered(list(range(9)), [0] * 8 + [1]), Rendered([1, 2, 4], [0, 0, 1])
    settings = {"limit": 5, "batch_tokens": 64, "seed": 0, "pad": 0}
    source = PairSource([pair, long, pair, pair], **settings, ties=[False, True, True, False])
    assert source.batch([0, 1, 2]).win.tolist() == [1.0, 1.0, 0.5, 0.5, 1.0, 1.0] and source.ties == 1
    plain = PairSource([pair, long, pair, pair], **settings, ties=[False, True, False, False])
    assert plain.batch([0]).win is None and plain.ties == 0  # the tie was too long
    assert plain.content == PairSource([pair, long, pair, pair], **settings).content != source.content
    with pytest.raises(ValueError, match="the data changed"):
        source.load_state_dict(plain.state_dict())


def test_other_pairs_are_refused_on_resume(pairs, tokenizer):
    source = pair_source(pairs, tokenizer)
    take(source, 3)
    with pytest.raises(ValueError, match="the data changed since the checkpoint"):
        pair_source([*pairs[:-1], pairs[-1][::-1]], tokenizer).load_state_dict(source.state_dict())
    pair_source(pairs, tokenizer).load_state_dict(source.state_dict())


# -------------------------------------------------------------------------------------------------------- thumbs


@pytest.fixture(scope="module")
def votes(sentences, tokenizer) -> tuple[list[Rendered], list[bool]]:
    """23 votes on 8 prompts, neighbours mostly on the same prompt, two turns in some."""
    made, liked = [], []
    for n in range(23):
        asked = Message("user", f"{n // 3} {sentences[n // 3][:12]}")
        before = (Message("user", "hi"), Message("assistant", "hello")) if n // 3 % 2 else ()
        made.append(((*before, asked), f"{n} {sentences[(n + 1) % 9][: 4 + n]}"))
        liked.append(n % 3 != 1)
    return render_answers(tokenizer, made), liked


def nothing_learnt(batch) -> torch.Tensor:
    return torch.zeros(batch.tokens.shape)


def thumb_source(votes, tokenizer, score=nothing_learnt, limit=200, batch_tokens=400, seed=0) -> ThumbSource:
    rendered, liked = votes
    source = ThumbSource(
        rendered, liked, limit=limit, batch_tokens=batch_tokens, seed=seed, pad=tokenizer.pad, score=score
    )
    source.set_reference(*(np.zeros(len(s.tokens), np.float32) for s in (source.sequences, source.mismatched)))
    return source


def parts(rendered: Rendered) -> tuple[list[int], list[int]]:
    """(prompt, answer) of a rendering whose trained tokens are the answer."""
    start = rendered.weights.index(1)
    assert not any(rendered.weights[:start]) and all(rendered.weights[start:])
    return rendered.tokens[:start], rendered.tokens[start:]


def mismatched_of(source: ThumbSource, index: int) -> list[int]:
    first, last = source.mismatched.offsets[index : index + 2]
    return source.mismatched.tokens[first:last].tolist()


def test_votes_are_rows_of_prompt_and_answer_each_as_often_as_the_others(votes, tokenizer):
    source, seen = thumb_source(votes, tokenizer), []
    assert 2 < source.votes_per_step < 23
    rendered, liked = votes
    for batch in take(source, 3 * source.steps_per_epoch()):
        assert batch.rows_per_unit == 1 and batch.units == len(batch.tokens) <= source.votes_per_step
        assert len(batch.tokens) >= source.votes_per_step - 1  # no small remainder: every z0 is a mean of as many
        for row, vote in enumerate(batch.ids.tolist()):
            tokens, weights = rendered[vote]
            size = len(tokens) - 1
            assert batch.tokens[row, :size].tolist() == tokens[:-1]
            assert batch.targets[row, :size].tolist() == tokens[1:]
            assert batch.weight[row, :size].tolist() == weights[1:]
            assert (batch.tokens[row, size:] == tokenizer.pad).all() and not batch.weight[row, size:].any()
            assert batch.liked[row].item() == liked[vote]
        seen += batch.ids.tolist()
    epochs = [seen[i : i + 23] for i in range(0, len(seen), 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs) and source.state_dict()["epoch"] == 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 23])
def test_every_step_of_votes_holds_at_least_two(votes, tokenizer, count):
    rendered, liked = votes
    few = rendered[:: 23 // count][:count], liked[:: 23 // count][:count]
    source = thumb_source(few, tokenizer, batch_tokens=100)
    for batch in take(source, 2 * source.steps_per_epoch()):
        assert 2 <= len(batch.tokens) <= source.votes_per_step + 1
    assert source.state_dict()["epoch"] == 2


def test_a_mismatched_answer_belongs_to_another_prompt_and_nearly_all_answers_serve(votes, tokenizer):
    rendered, _ = votes
    source, given = thumb_source(votes, tokenizer), []
    for index, vote in enumerate(rendered):
        prompt, own = parts(vote)
        mixed = mismatched_of(source, index)
        assert mixed[: len(prompt)] == prompt
        answer = mixed[len(prompt) :]
        (partner,) = [n for n, other in enumerate(rendered) if parts(other)[1] == answer]
        assert parts(rendered[partner])[0] != prompt and answer != own
        first, last = source.mismatched.offsets[index : index + 2]
        assert source.mismatched.weights[first:last].tolist() == [0.0] * len(prompt) + [1.0] * len(answer)
        given.append(partner)
    assert len(set(given)) > 0.7 * len(rendered)
    again = thumb_source(votes, tokenizer, seed=9)  # the seed orders the steps; partners stay, for they are scored once
    assert [mismatched_of(again, n) for n in range(23)] == [mismatched_of(source, n) for n in range(23)]


def test_partners_of_pairs_are_liked_and_disliked_answers_alike(tokenizer):
    """The next row of another prompt in the file would be a liked answer for every row of such a file."""
    items = [((Message("user", f"q {n}"),), f"{kind} {n}") for n in range(100) for kind in ("good", "bad")]
    source = thumb_source((render_answers(tokenizer, items), [True, False] * 100), tokenizer)
    answers = [tokenizer.decode(mismatched_of(source, n)) for n in range(200)]
    assert 80 <= sum("good" in a for a in answers) <= 120


def test_a_mismatched_answer_too_long_is_cut_and_keeps_at_least_a_token(tokenizer):
    long_prompt = (Message("user", "a b c d e f g h i j k l m n o p"),)
    items = [(long_prompt, "y"), ((Message("user", "z"),), "one two three")]
    rendered = render_answers(tokenizer, items)
    limit = len(rendered[0].tokens)
    source = thumb_source((rendered, [True, False]), tokenizer, limit=limit, batch_tokens=10**4)
    prompt, _ = parts(rendered[0])
    mixed = mismatched_of(source, 0)
    assert len(mixed) == limit and mixed[: len(prompt)] == prompt
    assert mixed[len(prompt) :] == parts(rendered[1])[1][: limit - len(prompt)] and limit - len(prompt) == 2
    assert source.mismatched.cut == 1


def test_the_reference_point_is_the_clamped_mean_over_mismatched_answers_without_gradient(votes, tokenizer, make_model):
    """Against autograd and a loop by hand: z0 = max(0, mean_i log pi(y_j|x_i) - log ref(y_j|x_i))."""
    from fledge.stages.prefer import column_of_logp

    policy, reference = (make_model(seed=n, spread=0.1, vocab_size=500, context_tokens=256) for n in (1, 2))

    def by_hand(model, tokens: list[int], answer_start: int) -> torch.Tensor:
        logits = model.logits(model.hidden(torch.tensor([tokens[:-1]])))[0].log_softmax(1)
        return sum(logits[t - 1, tokens[t]] for t in range(answer_start, len(tokens)))

    def score(batch):
        with torch.no_grad():
            return policy(batch).logp

    for learner, frozen in ((policy, reference), (reference, policy)):  # one way round the mean is below 0
        policy = learner
        source = thumb_source(votes, tokenizer, score=score)
        source.set_reference(*(column_of_logp(frozen, s, tokenizer.pad) for s in (source.sequences, source.mismatched)))
        batch = next(iter(source))
        means = []
        for vote in batch.ids.tolist():
            start, mixed = len(parts(votes[0][vote])[0]), mismatched_of(source, vote)
            ratio = by_hand(learner, mixed, start) - by_hand(frozen, mixed, start)
            assert ratio.requires_grad
            means.append(ratio.item())
        assert not batch.kto_kl.requires_grad and len(set(batch.kto_kl.tolist())) == 1
        assert batch.kto_kl[0].item() == pytest.approx(max(0.0, float(np.mean(means))), abs=2e-3)
    assert any(np.mean(means) * sign > 0.1 for sign in (1, -1))


def test_at_the_reference_z0_and_r_are_0_and_every_row_costs_a_half(votes, tokenizer, make_model):
    from fledge.core.objectives import kto
    from fledge.stages.prefer import column_of_logp

    model = make_model(spread=0.1, vocab_size=500, context_tokens=256)

    def score(batch):
        with torch.no_grad():
            return model(batch).logp

    source = thumb_source(votes, tokenizer, score=score)
    source.set_reference(*(column_of_logp(model, s, tokenizer.pad) for s in (source.sequences, source.mismatched)))
    for batch in take(source, 4):
        output = Output(score(batch), None, None)
        loss, _ = kto(beta=0.1)(output, batch)
        assert loss.item() / batch.units == pytest.approx(0.5, abs=1e-5)
        assert batch.kto_kl[0].item() == pytest.approx(0.0, abs=1e-4)


def test_a_flat_column_sums_by_sequence(votes, tokenizer):
    source = thumb_source(votes, tokenizer)
    column = np.arange(len(source.sequences.tokens), dtype=np.float32)
    sums = sequence_sums(source.sequences, column)
    for index, (first, last) in enumerate(itertools.pairwise(source.sequences.offsets)):
        assert sums[index] == column[first:last].sum()


def test_thumbs_resume_at_every_step_over_three_epochs(votes, tokenizer):
    assert_resumes_everywhere(lambda: thumb_source(votes, tokenizer, batch_tokens=160), steps=60, epochs=3)


def test_other_votes_are_refused_on_resume(votes, tokenizer):
    rendered, liked = votes
    source = thumb_source(votes, tokenizer)
    take(source, 3)
    for other in ((rendered[:-1], liked[:-1]), (rendered, [not liked[0], *liked[1:]])):
        with pytest.raises(ValueError, match="the data changed since the checkpoint"):
            thumb_source(other, tokenizer).load_state_dict(source.state_dict())
    thumb_source(votes, tokenizer).load_state_dict(source.state_dict())


def test_a_step_of_one_vote_is_refused_with_what_to_set(votes, tokenizer):
    with pytest.raises(
        ValueError, match=r"train.batch_tokens = 20: a step of KTO would hold 1 vote.*set it to (\d+) or more"
    ) as e:
        thumb_source(votes, tokenizer, batch_tokens=20)
    enough = int(str(e.value).split("set it to ")[1].split()[0])
    assert thumb_source(votes, tokenizer, batch_tokens=enough).votes_per_step == 2


def test_votes_on_a_single_prompt_are_refused(tokenizer):
    items = [((Message("user", "the same"),), f"answer {n}") for n in range(4)]
    with pytest.raises(ValueError, match=r"all 4 votes have the same prompt: .*at least 2 different prompts"):
        thumb_source((render_answers(tokenizer, items), [True, False] * 2), tokenizer)


def test_votes_too_long_are_dropped_and_counted_and_a_missing_reference_is_named(votes, tokenizer):
    rendered, liked = votes
    limit = sorted(len(v.tokens) for v in rendered)[12]
    source = thumb_source(votes, tokenizer, limit=limit)
    kept = [up for v, up in zip(rendered, liked, strict=True) if len(v.tokens) <= limit]
    assert (source.votes, source.dropped) == (len(kept), 23 - len(kept)) and source.liked.tolist() == kept
    with pytest.raises(ValueError, match=r"none of 23 votes fits model.context_tokens = 4"):
        thumb_source(votes, tokenizer, limit=5)
    bare = ThumbSource(rendered, liked, limit=200, batch_tokens=400, seed=0, pad=0, score=nothing_learnt)
    with pytest.raises(ValueError, match="ThumbSource has no reference"):
        next(iter(bare))
