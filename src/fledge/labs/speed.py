"""How fast this machine is beside the one on which the labs' minutes were taken."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from fledge.core.durable import canonical_json, write_atomically

# Seconds of 20 training steps of the pocket model on 2 cores of the machine of results/labs (4,096 tokens a step).
REFERENCE_SECONDS = 1.53


def slowness(folder: Path) -> float:
    """Time this machine needs relative to the reference: 2 is half as fast. Measured once, kept in FOLDER/speed.json."""
    found = known_slowness(folder)
    if found is None:
        write_atomically(folder / "speed.json", canonical_json(found := twenty_steps() / REFERENCE_SECONDS))
    return found


def known_slowness(folder: Path) -> float | None:
    """The same where it has been measured."""
    kept = folder / "speed.json"
    return msgspec.json.decode(kept.read_bytes(), type=float) if kept.exists() else None


def twenty_steps() -> float:
    """Seconds that 20 training steps take here."""
    import torch

    from fledge.core.batch import Batch
    from fledge.core.config import TrainConfig
    from fledge.core.model import Shape, Transformer
    from fledge.core.objectives import weighted_nll
    from fledge.core.optim import Optimizer
    from fledge.core.runtime import choose_device, choose_dtype, set_threads

    set_threads(None)
    device = choose_device("auto")
    model = Transformer(Shape(size="pocket", context_tokens=128).resolved(1536)).initialise(0).to(device)
    model.compute_dtype = choose_dtype(TrainConfig().precision, device)
    tokens = torch.randint(1536, (32, 128), generator=torch.Generator().manual_seed(0)).to(device)
    batch = Batch(tokens=tokens, targets=tokens, weight=torch.ones(tokens.shape, device=device), units=tokens.numel())
    optimizer = Optimizer(model, kind="muon", lr=0.0)
    for step in range(23):
        if step == 3:
            start = time.monotonic()
        (weighted_nll(model(batch), batch)[0] / batch.units).backward()
        optimizer.step(0.0)
        optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - start
