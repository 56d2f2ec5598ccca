"""Rollouts: a source whose batches are the model's own answers, scored, with rewards turned into weights and credit.

One update = one rollout: draw prompts, sample `group_size` answers to each, score them, work out advantages, and give the
result as epochs x minibatches steps. Weights are the model's own at that moment; nothing goes through a file.
Shapes: P prompts, G answers each, R = P G answers, n tokens of the longest answer, B rows, T positions of a batch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fledge.core.adapting import Reference
from fledge.core.batch import Batch
from fledge.core.config import Settings
from fledge.core.model import Transformer
from fledge.core.policy import Baseline, kl_estimate
from fledge.generate.credit import Place, Progress, Rollout, Shaping, credit, joined, shaped_rewards, silent
from fledge.generate.engine import Engine, Samples
from fledge.generate.sampling import Sampling
from fledge.text.sources import order
from fledge.text.tokenizer import Tokenizer

Divisor = Literal["token", "sequence", "fixed"]
KlUse = Literal["off", "measure", "reward", "loss"]
Score = Callable[[Sequence[int], Sequence[str]], Sequence[float]]  # (prompt numbers [R], answers [R]) -> rewards [R]

_ROUND_TO = 16  # row lengths come in few sizes: memory of one step fits the next
_KL_GAIN, _KL_STEP = 0.1, 0.2  # Ziegler et al. 2019, section 2.2


class RolloutConfig(Settings, frozen=True, kw_only=True):
    """How answers are sampled and how rewards become credit."""

    prompts_per_update: int = 16
    "Prompts of one rollout."
    group_size: int = 8
    "Answers sampled to each prompt."
    epochs: int = 1
    "Times each rollout is trained on."
    minibatches: int = 1
    "Steps each epoch of a rollout is cut into."
    max_tokens: int = 64
    "Longest answer in tokens."
    baseline: Baseline = "group-std"
    "What an answer's reward is compared with."
    divisor: Divisor = "token"
    "token: all tokens count alike; sequence: all answers; fixed: as token, divided by answers x max_tokens."
    lam: float = 0.95
    "Lambda of GAE, for baseline = value."
    kl: KlUse = "measure"
    "Where distance from the reference is paid: nowhere (measured only), in the reward, or in the loss."
    kl_coefficient: float = 0.0
    "Price of one nat."
    kl_target: float | None = None
    "Adapt the price so that an answer's KL stays near this many nats."
    shaping: Shaping = "end"
    "end: one reward per answer; steps: progress is paid as it happens; potential: the same, paid back at the end."
    resample: int = 0
    "Rounds of new prompts in place of those whose answers all score the same."
    cut_penalty: float = 1.0
    "Taken off the reward of an answer that did not end by itself."
    seed: int = 0
    "Seed of the order of prompts and of the sampling."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = []
        for name in ("prompts_per_update", "group_size", "epochs", "minibatches", "max_tokens"):
            if getattr(self, name) < 1:
                found.append(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.baseline in ("group", "group-std", "leave-one-out") and self.group_size < 2:
            found.append(
                f"group_size = {self.group_size}: baseline {self.baseline} compares answers to the same prompt; "
                "set group_size to 2 or more (8 is usual), or another baseline"
            )
        if self.baseline == "mean" and self.prompts_per_update * self.group_size < 2:
            found.append("prompts_per_update x group_size = 1: baseline mean needs at least 2 answers to compare")
        if self.minibatches > self.prompts_per_update * self.group_size:
            found.append(f"minibatches = {self.minibatches}: must be at most the answers of a rollout")
        if self.kl in ("reward", "loss") and not self.kl_coefficient > 0:
            found.append(f"kl_coefficient = {self.kl_coefficient}: kl = {self.kl} pays nothing; set it above 0 (0.05)")
        if self.kl in ("off", "measure") and (self.kl_coefficient or self.kl_target is not None):
            found.append(f"kl = {self.kl} pays nothing: set kl to reward or loss, or leave the coefficient and target out")
        if self.kl_target is not None and not self.kl_target > 0:
            found.append(f"kl_target = {self.kl_target}: must be above 0 nats, or none")
        if not 0 <= self.lam <= 1:
            found.append(f"lam = {self.lam}: must be in [0, 1]; 0.95 is usual")
        if self.resample < 0:
            found.append(f"resample = {self.resample}: must be at least 0 rounds")
        if self.cut_penalty < 0:
            found.append(f"cut_penalty = {self.cut_penalty}: must be at least 0; 0 lets cut-off answers keep their reward")
        if self.resample and self.group_size < 2:
            found.append(f"resample = {self.resample}: needs group_size of 2 or more")
        return found


class Rollouts:
    """A Source of scored answers. Its state: a few integers, the KL price, and the running rollout while it is in use."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        score: Score,
        config: RolloutConfig,
        *,
        reference: Transformer | Reference | None = None,
        progress: Progress | None = None,
        identity: str = "",
        stop_ids: Sequence[int] | None = None,
        micro_tokens: int = 16384,
        want_entropy: bool = False,
    ):
        """prompts: token ids up to where the answer begins. reference: frozen model for the KL, None with kl = "off".

        identity: what the score is, so that a resumed run cannot be scored by something else.

        Raises ValueError for settings, prompts or stop tokens that cannot work.
        """
        problems = config.problems()
        stop_ids = [tokenizer.end, tokenizer.eos] if stop_ids is None else list(stop_ids)
        if tokenizer.end not in stop_ids:
            problems.append(
                f"stop_ids = {stop_ids} lacks the end token {tokenizer.end}: answers could not end themselves and their "
                "end would carry no credit; add it"
            )
        if not prompts:
            problems.append("0 prompts: give a --task or a --prompts file with at least one usable prompt")
        room = model.config.context_tokens - config.max_tokens
        if room < 1 or any(len(p) > room for p in prompts):
            longest = max(map(len, prompts), default=0)
            problems.append(
                f"max_tokens = {config.max_tokens} leaves {room} of the context of {model.config.context_tokens} tokens "
                f"to the prompt, the longest has {longest}: lower max_tokens or leave long prompts out"
            )
        if (reference is None) != (config.kl == "off"):
            problems.append(f"kl = {config.kl} " + ("needs a reference model" if reference is None else "uses none"))
        if reference is not None and reference.config.vocab_size != model.config.vocab_size:
            problems.append(
                f"the reference has a vocabulary of {reference.config.vocab_size} tokens, the model {model.config.vocab_size}: "
                "log-probs of different tokens cannot be compared; take a reference with the same tokenizer"
            )
        if config.baseline == "value" and model.config.head != "tokens+value":
            problems.append("baseline = value needs a value head: open the model with head = 'tokens+value'")
        if config.shaping != "end" and progress is None:
            problems.append(f"shaping = {config.shaping}: this task does not say how far an answer got; use end")
        if problems:
            raise ValueError("; ".join(problems))
        self.model, self.tokenizer, self.reference = model, tokenizer, reference
        self.prompts, self.score, self.progress, self.config = prompts, score, progress, config
        self.engine = Engine(model, stop_ids)
        self.micro_tokens, self.want_entropy = micro_tokens, want_entropy
        self.content = hashlib.sha256(repr((identity, [list(p) for p in prompts])).encode()).hexdigest()
        self.update, self.inner, self.epoch, self.position = 0, 0, 0, 0
        self.kl_coefficient = config.kl_coefficient
        self.last: Rollout | None = None  # for whoever shows samples
        self._held: Batch | None = None  # the rollout's rows while later steps still need them

    @property
    def steps_per_update(self) -> int:
        return self.config.epochs * self.config.minibatches

    def state_dict(self) -> dict[str, Any]:
        """Integers, the KL price, and in the middle of a rollout its columns as tensors."""
        state = {
            "update": self.update, "inner": self.inner, "epoch": self.epoch, "position": self.position,
            "kl_coefficient": self.kl_coefficient, "content": self.content,
        }  # fmt: skip
        if self._held is not None:
            held = {n: getattr(self._held, n) for n in _COLUMNS if getattr(self._held, n) is not None}
            state |= {f"column/{n}": t.contiguous() for n, t in held.items()}
            # notes as pairs: a checkpoint sorts keys, and the log's lines are written in this order
            state["held"] = {"notes": [*self._held.notes.items()], "kl_weight": self._held.kl_weight}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["content"] != self.content:
            raise ValueError(
                f"the prompts or the reward changed since the checkpoint (sha256 {self.content[:12]} now, "
                f"{state['content'][:12]} then): "
                "restore them, or start the stage again in another folder"
            )
        self.update, self.inner = state["update"], state["inner"]
        self.epoch, self.position = state["epoch"], state["position"]
        self.kl_coefficient, self._held = state["kl_coefficient"], None
        if "held" in state:
            columns = {n: state[f"column/{n}"] for n in _COLUMNS if f"column/{n}" in state}
            notes, kl_weight = dict(state["held"]["notes"]), state["held"]["kl_weight"]
            self._held = Batch(
                units=1.0, want_entropy=self.want_entropy, notes=notes, kl_weight=kl_weight, **columns
            )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self._held is None:
                self._held = self._new()
            batch = self._step(self._held, self.inner)  # before the count moves on: the order of rows hangs on it
            self.inner += 1
            if self.inner == self.steps_per_update:
                self.update, self.inner, self._held = self.update + 1, 0, None
            yield batch

    # ------------------------------------------------------------------------------------------------- sampling

    def _take(self, count: int) -> list[int]:
        """The next prompts, in an order that is a function of seed and epoch."""
        taken: list[int] = []
        while len(taken) < count:
            shuffled = order(self.config.seed, self.epoch, len(self.prompts))
            part = shuffled[self.position : self.position + count - len(taken)]
            taken += part.tolist()
            self.position += len(part)
            if self.position == len(shuffled):
                self.epoch, self.position = self.epoch + 1, 0
        return taken

    def sample(self, prompts: list[int], round_: int = 0) -> Rollout:
        """Answers to these prompts by the present weights, scored."""
        c = self.config
        seed = int(np.random.SeedSequence([c.seed, self.update, round_]).generate_state(1)[0])
        sampling = Sampling(temperature=1.0, max_tokens=c.max_tokens, seed=seed)
        drawn = self.engine.sample([self.prompts[p] for p in prompts], sampling, samples=c.group_size)
        samples = Samples(*(column.cpu() for column in drawn))
        rows = samples.tokens.tolist()
        answers = [
            self.tokenizer.decode(row[:size]) for row, size in zip(rows, samples.lengths.tolist(), strict=True)
        ]
        numbers = [p for p in prompts for _ in range(c.group_size)]
        rewards = torch.tensor(list(self.score(numbers, answers)), dtype=torch.float32)
        rewards = rewards - c.cut_penalty * (~samples.stopped).float()
        return Rollout(prompts, samples, answers, rewards, silent(rewards, c.group_size).float().mean().item())

    def _gather(self) -> Rollout:
        """One rollout; prompts whose answers all score the same make room for others while rounds are left."""
        c = self.config
        first = self.sample(self._take(c.prompts_per_update))
        best, tried, mute = first, c.prompts_per_update, first.silent * c.prompts_per_update
        for round_ in range(1, c.resample + 1):
            lacking = silent(best.rewards, c.group_size)  # [P]
            missing = int(lacking.sum())
            if not missing:
                break
            more = self.sample(self._take(missing), round_)
            tried, mute = tried + missing, mute + more.silent * missing
            keep = torch.cat((~lacking, ~silent(more.rewards, c.group_size)))
            spare = int(keep.sum())  # where too few have a signal, silent ones fill the rest
            chosen = torch.cat((keep.nonzero()[:, 0], (~keep).nonzero()[:, 0][: c.prompts_per_update - spare]))
            best = joined(best, more, chosen[: c.prompts_per_update].sort().values, c.group_size)
        return best._replace(silent=mute / tried)

    # -------------------------------------------------------------------------------------------------- credit

    def _new(self) -> Batch:
        """Sample, score, and lay out the rollout as one Batch of R rows with every column a step may need."""
        self.last = rollout = self._gather()
        batch, place = self._rows(rollout)
        alive = place.alive
        ref_logp = None if self.reference is None else self._scored(self.reference, batch).logp
        reuse = self.steps_per_update > 1
        logp = old_value = kl = None
        if reuse or self.config.kl in ("reward", "loss") or self.config.baseline == "value":
            scored = self._scored(self.model, batch)
            logp, old_value = scored.logp, scored.value
        if ref_logp is not None:  # to measure it, the log-probs of the engine that sampled do
            now = rollout.samples.logp if logp is None else place.read(logp)
            kl = kl_estimate(now, place.read(ref_logp), "k1") * alive  # [R,n]
        values = place.read(old_value) if self.config.baseline == "value" else None
        price = self.kl_coefficient if self.config.kl == "reward" else 0.0
        shaped = None
        if self.config.shaping != "end":
            shaped = shaped_rewards(rollout, self.config.group_size, self.config.shaping, self.progress, self.tokenizer)
        advantage, returns = credit(
            rollout, alive, group=self.config.group_size, baseline=self.config.baseline, lam=self.config.lam,
            shaped=shaped, paid=price * kl if price else None, values=values,
        )  # fmt: skip
        notes = self._notes(rollout, kl, None if logp is None else place.read(logp), alive)
        batch = replace(
            batch,
            advantage=place.write(advantage),
            old_logp=logp if reuse else None,
            ref_logp=ref_logp if self.config.kl == "loss" else None,
            returns=None if returns is None else place.write(returns),
            old_value=None if returns is None else old_value,
            kl_weight=self.kl_coefficient if self.config.kl == "loss" else 0.0,
            notes=notes,
        )
        self._adapt(notes)
        return batch

    def _rows(self, rollout: Rollout) -> tuple[Batch, Place]:
        """Prompt and answer of each row, shifted; weight 1 on the sampled tokens, their end token included."""
        sizes = rollout.samples.lengths.tolist()
        prompts = [self.prompts[p] for p in rollout.prompts for _ in range(self.config.group_size)]
        starts = torch.tensor([len(p) - 1 for p in prompts])  # [R] position that predicts the first sampled token
        longest = max(len(p) + n for p, n in zip(prompts, sizes, strict=True)) - 1
        length = min(-(-longest // _ROUND_TO) * _ROUND_TO, self.model.config.context_tokens)
        whole = np.full((len(prompts), length + 1), self.tokenizer.pad, np.int64)
        sampled = rollout.samples.tokens.numpy()
        for row, (prompt, size) in enumerate(zip(prompts, sizes, strict=True)):
            whole[row, : len(prompt)] = prompt
            whole[row, len(prompt) : len(prompt) + size] = sampled[row, :size]
        tokens = torch.from_numpy(whole)
        place = Place(starts, rollout.samples.lengths, length)
        batch = Batch(
            tokens=tokens[:, :-1].contiguous(),
            targets=tokens[:, 1:].contiguous(),
            weight=place.write(place.alive),
            units=1.0,
            ids=torch.tensor([p for p in rollout.prompts for _ in range(self.config.group_size)]),
            want_entropy=self.want_entropy,
        )
        return batch, place

    def _scored(self, model: Transformer | Reference, batch: Batch) -> "_Scored":
        """logp and value [R,T] of every row, cut as the first epoch's steps will be: there the ratio is exactly 1."""
        logp, value = [], []
        with torch.no_grad():
            for part in np.array_split(np.arange(len(batch.tokens)), self.config.minibatches):
                for micro in batch.rows(int(part[0]), int(part[-1]) + 1).split(self.micro_tokens):
                    output = model(micro.to(model.embedding.device))
                    logp.append(output.logp.cpu())
                    value.append(None if output.value is None else output.value.cpu())
        return _Scored(torch.cat(logp), None if value[0] is None else torch.cat(value))

    def _adapt(self, notes: dict[str, float]) -> None:
        """Proportional control of the KL price (Ziegler et al. 2019, section 2.2)."""
        if self.config.kl_target is not None:
            error = notes["kl"] / self.config.kl_target - 1
            self.kl_coefficient *= 1 + _KL_GAIN * max(-_KL_STEP, min(_KL_STEP, error))

    def _notes(self, rollout: Rollout, kl: Tensor | None, logp: Tensor | None, alive: Tensor) -> dict[str, float]:
        """What the log says about this rollout. kl and entropy are in nats; kl is per answer, entropy per token."""
        samples, tokens = rollout.samples, float(alive.sum())
        drawn = samples.logp
        notes = {
            "update": self.update + 1,
            "reward": rollout.rewards.mean().item(),
            "reward_std": rollout.rewards.std(correction=0).item(),
            "entropy": -float(drawn.sum()) / tokens,  # mean of -log p over tokens the policy drew
            "length": tokens / len(alive),
            "no_signal": rollout.silent,
            "cut_off": 1.0 - samples.stopped.float().mean().item(),
        }
        if kl is not None:
            notes["kl"] = float((kl * alive).sum()) / len(alive)
        if self.config.kl in ("reward", "loss"):
            notes["kl_coefficient"] = self.kl_coefficient
        if logp is not None:  # how far the engine that sampled is from the model that trains, by rounding
            notes["engine_gap"] = float(((logp - drawn) * alive).abs().sum()) / tokens
        return notes

    # --------------------------------------------------------------------------------------------------- steps

    def _step(self, whole: Batch, inner: int) -> Batch:
        """Step `inner` of a rollout: its rows, weights by the divisor, units that make the loss a mean."""
        c = self.config
        epoch, part = divmod(inner, c.minibatches)
        rows = len(whole.tokens)
        # the first epoch keeps the order the old log-probs were computed in
        shuffled = np.arange(rows) if epoch == 0 else order(c.seed + self.update, epoch, rows)
        members = torch.from_numpy(np.array_split(shuffled, c.minibatches)[part])
        columns = {n: getattr(whole, n)[members] for n in _COLUMNS if getattr(whole, n) is not None}
        weight = columns["weight"]
        lengths = weight.sum(1, keepdim=True)
        units = float(weight.sum())
        if c.divisor == "sequence":
            columns["weight"], units = weight / lengths, float(len(members))
        elif c.divisor == "fixed":
            units = float(len(members) * c.max_tokens)
        return replace(whole, units=units, **columns)


_COLUMNS = ("tokens", "targets", "weight", "advantage", "old_logp", "ref_logp", "returns", "old_value", "ids")


class _Scored(NamedTuple):
    logp: Tensor
    value: Tensor | None
