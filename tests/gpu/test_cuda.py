"""The same stages on CUDA: agreement with the CPU, a training run that resumes, and generation."""

import pytest
import torch

from fledge.core.batch import Batch
from fledge.core.checkpoint import list_checkpoints
from fledge.core.config import TrainConfig
from fledge.core.model import ModelConfig, Transformer
from fledge.core.objectives import weighted_nll
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.stages import pretrain

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")]


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


def test_a_run_trains_and_goes_on(tmp_path):
    (tmp_path / "a.txt").write_text("the river runs to the sea and the day is long. " * 400)
    recipe = pretrain.PretrainRecipe(
        out=str(tmp_path / "run"), text=[str(tmp_path / "a.txt")], vocab_size=300,
        train=TrainConfig(steps=30, device="cuda", batch_tokens=512, lr=3e-3),
    )  # fmt: skip
    path = pretrain.run(recipe, quiet=True)
    assert pretrain.run(recipe, quiet=True) == path == list_checkpoints(tmp_path / "run")[-1]
