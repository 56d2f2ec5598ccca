"""Our policy gradients and TRL's on the same weights, answers and rewards.

Both sides are the real code: their `_generate_and_score_completions` and `_compute_loss`, our `Rollouts` and
`policy_gradient`. Only what was said is given, so that lengths vary and some answers are cut off.
"""

import copy
import random

import pytest
import torch
from torch import Tensor

from fledge.core.policy import policy_gradient
from fledge.generate.credit import Rollout, silent
from fledge.generate.engine import Samples
from fledge.generate.rollout import RolloutConfig, Rollouts
from fledge.text.template import JINJA
from fledge.text.tokenizer import SPECIALS, Tokenizer

pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[dev]'")
import datasets
import tokenizers
import transformers
import trl
from test_model import hugging_face_twin
from test_trl_parity import ours_like, same

TOLERANCE = 1e-5
QUESTIONS = ("who is ada", "and who is bo?", "what is 1+1")
GROUP, LONGEST = 4, 6
REWARDS = [0.0, 1.0, 1.0, 0.5, 0.1, 0.1, 0.1, 0.1, -2.0, 3.0, 0.25, 0.25]  # the second group is silent


@pytest.fixture(scope="module")
def words(sentences) -> Tokenizer:
    return Tokenizer.train([*sentences, *QUESTIONS * 9], 300)


@pytest.fixture(scope="module")
def said(words) -> list[list[int]]:
    """Answers of 1 to 6 tokens; those that reach 6 are cut off, or end with their sixth token."""
    chance = random.Random(7)
    answers = []
    for n in [1, 6, 3, 6, 2, 5, 6, 4, 6, 2, 3, 6]:
        answers.append([chance.randrange(8, 300) for _ in range(n - 1)] + [words.end])
    for cut in (1, 6, 11):
        answers[cut][-1] = 77
    return answers


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(their policy, folder of their reference, our policy, our reference), which is the policy moved a little."""
    theirs, config = hugging_face_twin("llama", tied=True, kv_heads=2)
    other = copy.deepcopy(theirs)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("reference")
    other.save_pretrained(folder)
    return theirs, str(folder), ours_like(theirs, config), ours_like(other, config).requires_grad_(False)


def trainer_of(kind: str, models, words: Tokenizer, said, tmp_path, **settings):
    """A trainer of theirs that has been told what to say, and its reward function."""
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(words.json.decode()),
        bos_token=SPECIALS[1], eos_token=SPECIALS[6], pad_token=SPECIALS[0],
    )  # fmt: skip
    wrapped.chat_template = JINJA
    policy = copy.deepcopy(models[0])
    policy.config._name_or_path = models[1]  # where their trainer loads the reference from
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, num_generations=GROUP,
        per_device_train_batch_size=len(said), max_completion_length=LONGEST, gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "eager"} if settings.get("beta") else None,
        **settings,
    )  # fmt: skip

    def reward(completion_ids, **_) -> list[float]:
        assert completion_ids == said
        return REWARDS

    rows = [{"prompt": [{"role": "user", "content": q}]} for q in QUESTIONS]
    trainer = getattr(trl, f"{kind}Trainer")(
        model=policy, args=config, reward_funcs=reward, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=wrapped,
    )  # fmt: skip
    trainer._generate_single_turn = lambda *_, **__: (said, None) if kind == "GRPO" else said
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    found = trainer._generate_and_score_completions([row for row in rows for _ in range(GROUP)])
    return trainer, found


class Told(Rollouts):
    """Our rollouts with what was said given."""

    def sample(self, prompts: list[int], round_: int = 0) -> Rollout:
        said, order = self.said, [p * GROUP + g for p in prompts for g in range(GROUP)]
        tokens = torch.full((len(said), LONGEST), -1)
        for row, r in enumerate(order):
            tokens[row, : len(said[r])] = torch.tensor(said[r])
        lengths = torch.tensor([len(said[r]) for r in order])
        stopped = torch.tensor([said[r][-1] == self.tokenizer.end for r in order])
        samples = Samples(tokens, torch.zeros(tokens.shape), lengths, stopped)
        rewards = torch.tensor([REWARDS[r] for r in order])
        self.order = order  # of theirs, row by row
        return Rollout(prompts, samples, [""] * len(order), rewards, silent(rewards, GROUP).float().mean().item())


def our_source(models, words: Tokenizer, said, found: dict[str, Tensor], **settings) -> Told:
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(found["prompt_ids"], found["prompt_mask"], strict=True)][
        ::GROUP
    ]
    assert len({len(p) for p in prompts}) > 1
    config = RolloutConfig(prompts_per_update=len(prompts), group_size=GROUP, max_tokens=LONGEST, **settings)
    reference = None if config.kl == "off" else models[3]
    source = Told(models[2], words, prompts, lambda *_: [], config, reference=reference)
    source.said = said
    return source


def spread(source: Told, batch, values: Tensor) -> Tensor:
    """Their [R,n] in their order -> [R,T] in ours, where the answers stand."""
    rows = torch.zeros(batch.weight.shape)
    for row, r in enumerate(source.order):
        at = (batch.weight[row] > 0).nonzero()[:, 0]
        rows[row, at] = values[r, : len(at)]
    return rows


LOSSES = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "fixed"}


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("setting", ["on-policy", "clipped", "two-sided", "with KL", "no scaling"])
def test_grpo(loss_type, setting, models, words, said, tmp_path):
    theirs = {"epsilon": 0.2, "epsilon_high": 0.3, "beta": 0.0, "loss_type": loss_type}
    ours, clip = {"divisor": LOSSES[loss_type], "baseline": "group-std", "kl": "off"}, (0.2, 0.3)
    if setting == "two-sided":
        theirs["delta"], clip = 1.5, (0.2, 0.3, 1.5)
    if setting == "with KL":
        theirs |= {
            "beta": 0.4,
            "use_bias_correction_kl": False,
        }  # as in GRPO's equation 3; their default is DeepSeek-V3.2's
        ours |= {"kl": "loss", "kl_coefficient": 0.4}
    if setting == "no scaling":
        theirs["scale_rewards"] = "none"
        ours["baseline"] = "group"
    trainer, found = trainer_of("GRPO", models, words, said, tmp_path, **theirs)
    on_policy = setting == "on-policy"
    source = our_source(models, words, said, found, epochs=1 if on_policy else 2, **ours)
    batch = next(iter(source))

    for row, r in enumerate(source.order):
        credit = batch.advantage[row][batch.weight[row] > 0]
        assert credit.tolist() == pytest.approx([found["advantages"][r].item()] * len(credit), rel=TOLERANCE, abs=1e-6)
    assert found["advantages"].abs().max() > 1 and found["advantages"][4:8].abs().max() == 0

    if not on_policy:  # the policy has moved since: up to twice as likely, or half
        moved = 0.7 * torch.randn(found["completion_ids"].shape, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            ids = torch.cat((found["prompt_ids"], found["completion_ids"]), 1)
            seen = torch.cat((found["prompt_mask"], found["completion_mask"]), 1)
            logp, *_ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, seen, LONGEST)
        found["old_per_token_logps"] = logp - moved
        assert torch.allclose(spread(source, batch, logp), batch.old_logp, atol=1e-4)
        batch.old_logp.copy_(spread(source, batch, found["old_per_token_logps"]))
    if setting == "with KL":
        assert torch.allclose(spread(source, batch, found["ref_per_token_logps"]), batch.ref_logp, atol=1e-4)
        assert (batch.ref_logp - models[2](batch).logp).abs().max() > 0.5
    loss, metrics = policy_gradient(clip=clip)(models[2](batch), batch)
    assert (metrics["clipped"] > 0) != on_policy
    same(1 + loss / batch.units, models[2], 1 + trainer._compute_loss(trainer.model, found), trainer.model)  # may be 0


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_rloo(beta, models, words, said, tmp_path):
    """Leave-one-out with the KL in the reward; on-policy the gradients agree (theirs is not divided by the longest)."""
    trainer, found = trainer_of("RLOO", models, words, said, tmp_path, beta=beta)
    kl = {"kl": "reward", "kl_coefficient": beta} if beta else {"kl": "off"}
    source = our_source(models, words, said, found, baseline="leave-one-out", divisor="fixed", **kl)
    batch = next(iter(source))
    for row, r in enumerate(source.order):
        credit = batch.advantage[row][batch.weight[row] > 0]
        assert credit.tolist() == pytest.approx([found["advantages"][r].item()] * len(credit), rel=1e-4, abs=1e-4)
    assert (found["advantages"][4:8].abs().max() > 0.1) == bool(beta)  # with KL paid no two answers are worth the same
    theirs = trainer._compute_loss(trainer.model, found)
    loss, _ = policy_gradient()(models[2](batch), batch)
    # the value differs: theirs weighs the ratio of a whole answer, ours that of each token; at ratio 1 not the gradient
    ours = LONGEST * loss / batch.units
    same(ours - ours.detach() + theirs.detach(), models[2], theirs, trainer.model)
