"""The same stages on CUDA: agreement with the CPU, a training run that resumes, and generation."""

import copy

import pytest
import torch

from fledge.core.batch import Batch
from fledge.core.checkpoint import list_checkpoints
from fledge.core.config import TrainConfig
from fledge.core.model import ModelConfig, Transformer
from fledge.core.objectives import weighted_nll
from fledge.core.policy import policy_gradient
from fledge.generate.engine import Engine
from fledge.generate.live import Live
from fledge.generate.rollout import RolloutConfig, Rollouts
from fledge.generate.sampling import Sampling
from fledge.stages import pretrain
from fledge.text.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


def model_and_batch() -> tuple[Transformer, Batch]:
    model = Transformer(ModelConfig(size="tiny", vocab_size=300, context_tokens=64)).initialise(0)
    tokens = torch.randint(0, 300, (4, 65), generator=torch.Generator().manual_seed(0))
    doc = (torch.arange(64) >= 20).int().expand(4, 64)
    weight = (torch.arange(64) % 3 > 0).float().expand(4, 64)
    return model, Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weight=weight, doc=doc, units=float(weight.sum()))


def test_loss_and_gradient_agree_with_the_cpu():
    gradients = []
    for device in ("cpu", "cuda"):
        model, batch = model_and_batch()
        model.to(device)
        loss, _ = weighted_nll(model(batch.to(torch.device(device))), batch.to(torch.device(device)))
        (loss / batch.units).backward()
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_greedy_tokens_agree_with_the_cpu():
    prompts = [[1, 5, 9, 20], [1, 7]]
    made = []
    for device in ("cpu", "cuda"):
        model, _ = model_and_batch()
        engine = Engine(model.to(device).eval(), stop_ids=[2], dtype=torch.float32)
        made.append([c.tokens for c in engine.generate(prompts, Sampling(temperature=0.0, max_tokens=16))])
    assert made[0] == made[1]


def test_answers_that_join_late_are_those_of_the_engine_alone():
    model, _ = model_and_batch()
    engine, sampling = (
        Engine(model.to("cuda").eval(), stop_ids=[2], dtype=torch.float32),
        Sampling(max_tokens=16, seed=4),
    )
    live, prompts, found = Live(engine, 2), [[1, 5, 9, 20], [1, 7], [3]], {0: [], 1: [], 2: []}
    waiting = list(enumerate(prompts))
    while live.busy or waiting:
        if live.free and waiting:
            key, prompt = waiting.pop(0)
            live.add(key, prompt, sampling, stream=key)
        for written in live.go(3):
            found[written.key] += written.tokens
    for key, prompt in enumerate(prompts):
        assert found[key] == engine.sample([prompt], sampling, streams=[key]).tokens[0].tolist()


def test_a_run_trains_and_goes_on(tmp_path):
    (tmp_path / "a.txt").write_text("the river runs to the sea and the day is long. " * 400)
    recipe = pretrain.PretrainRecipe(
        out=str(tmp_path / "run"), text=[str(tmp_path / "a.txt")], vocab_size=300,
        train=TrainConfig(steps=30, device="cuda", batch_tokens=512, lr=3e-3),
    )  # fmt: skip
    path = pretrain.run(recipe, quiet=True)
    assert pretrain.run(recipe, quiet=True) == path == list_checkpoints(tmp_path / "run")[-1]


def test_a_rollout_is_sampled_scored_and_trained_on():
    tokenizer = Tokenizer.train(["1+2=3 4 5 6 7 8 9 0"] * 10, 280)
    config = ModelConfig(size="tiny", vocab_size=tokenizer.vocab_size, context_tokens=64, head="tokens+value")
    model = Transformer(config).initialise(0).to("cuda")
    model.compute_dtype = torch.bfloat16
    prompts = [[tokenizer.bos, *tokenizer.encode(f"{n}+{n}="), tokenizer.assistant] for n in range(8)]
    settings = RolloutConfig(
        prompts_per_update=4, group_size=4, max_tokens=8, baseline="value", epochs=2, kl="reward", kl_coefficient=0.1
    )
    source = Rollouts(
        model, tokenizer, prompts, lambda _, answers: [float(len(a)) for a in answers], settings,
        reference=copy.deepcopy(model),
    )  # fmt: skip
    batch = next(iter(source)).to(torch.device("cuda"))
    loss, metrics = policy_gradient(clip=(0.2, 0.2), value_weight=0.5)(model(batch), batch)
    (loss / batch.units).backward()
    assert torch.isfinite(loss) and metrics["ratio"].item() == pytest.approx(batch.weight.sum().item(), rel=1e-3)
