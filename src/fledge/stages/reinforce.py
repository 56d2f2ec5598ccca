"""Stage 3 by policy gradients: the model's own answers, scored, pulled closer or pushed away.

The methods are one objective with five sets of defaults; a field set in the recipe wins over its method's default.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from fledge.core.adapters import AdapterConfig
from fledge.core.checkpoint import list_checkpoints, sha256, step_of
from fledge.core.config import Settings, TrainConfig
from fledge.core.log import say
from fledge.core.policy import Baseline, policy_gradient
from fledge.feedback.rewards import Reward, take_scale, unscaled
from fledge.generate.rollout import Divisor, KlUse, RolloutConfig, Rollouts, Shaping
from fledge.generate.sampling import Sampling
from fledge.stages.common import Parent, adapted, fix_recipe, open_model, run_stage
from fledge.stages.evaluate import ask, messages_of, sample_of
from fledge.stages.observer import LOOKING, Looking, Observer, Questions
from fledge.stages.reinforce_page import write_page
from fledge.stages.rewarding import Opened, open_rewards
from fledge.tasks.base import Example, Task
from fledge.tasks.catalog import open_task
from fledge.tasks.prompts import PromptFile
from fledge.text.template import render_prompt

_HELD_OUT = 200  # of them at most


class Method(NamedTuple):
    """What a method's name stands for."""

    baseline: Baseline
    divisor: Divisor
    epochs: int = 1
    clip: tuple[float, ...] = ()
    lam: float = 0.95
    value_weight: float = 0.0
    value_clip: float | None = None


METHODS = {
    # Williams 1992: whole answers against the mean of all answers
    "reinforce": Method("mean", "fixed"),
    # actor-critic: whole returns against a learned value (Mnih et al. 2016, section 4.3)
    "a2c": Method("value", "token", lam=1.0, value_weight=0.5),
    # Schulman et al. 2017, eq. 9; weights as in trl's PPO
    "ppo": Method("value", "token", epochs=4, clip=(0.2, 0.2), value_weight=0.1, value_clip=0.2),
    # Shao et al. 2024, eq. 3
    "grpo": Method("group-std", "sequence", clip=(0.2, 0.2)),
    # Ahmadian et al. 2024, eq. 7
    "rloo": Method("leave-one-out", "fixed"),
}
_TRIED, _SCALED = 4, 128  # answers a reward is tried on, and those a mixture takes its scale from
_VALUE_WEIGHT = 0.5  # where baseline = value was asked of a method without one
_KL_COEFFICIENT = 0.05  # where the reward is a model's opinion and nothing else was set


class ReinforceRecipe(Settings, frozen=True, kw_only=True):
    """Improve a model by its own scored answers (reinforcement learning)."""

    out: str
    "Folder of this run."
    parent: str
    "Checkpoint or run to start from, usually the SFT model; also the reference of the KL."
    method: Literal["reinforce", "a2c", "ppo", "grpo", "rloo"] = "grpo"
    "Sets baseline, divisor, epochs and clip where they are not set."
    task: str | None = None
    "Built-in task: arithmetic, arithmetic:3, worked, poem, reverse, count, teach, world, gsm8k:FILE."
    prompts: list[str] = []
    "Own prompts instead of a task: JSONL with prompt, and answers where a rule needs them."
    reward: list[str] = []
    "task, exact, regex:.., length:N, file.py:function, a reward model's folder, judge:URL#MODEL, piecewise(H,S); 0.5*NAME weighs."
    watch: list[str] = []
    "Rewards that are not trained on, scored on held-out prompts to notice when the reward is gamed."
    prompts_per_update: int = 16
    "Prompts of one rollout."
    group_size: int = 8
    "Answers sampled to each prompt."
    max_tokens: int = 64
    "Longest answer in tokens."
    epochs: int | None = None
    "Times each rollout is trained on."
    baseline: Baseline | None = None
    "What a reward is compared with: none, mean, value, group, group-std, leave-one-out."
    divisor: Divisor | None = None
    "token: all tokens count alike; sequence: all answers; fixed: divided by answers x max_tokens."
    clip: list[float] | None = None
    "Bounds of the probability ratio: low and high, and a third number for dual clip; [] leaves it free."
    kl: KlUse | None = None
    "Where KL to the parent is paid: off, measure, reward, loss. Unset: measured, or paid where a model gives the reward."
    kl_coefficient: float | None = None
    "Price of one nat of KL."
    kl_target: float | None = None
    "Adapt the price so that an answer's KL stays near this many nats."
    entropy_weight: float = 0.0
    "Bonus per nat of entropy."
    shaping: Shaping = "end"
    "end: one reward per answer; steps: progress paid as it happens; potential: the same, paid back at the end."
    resample: int = 0
    "Rounds of new prompts in place of those whose answers all score the same."
    cut_penalty: float = 1.0
    "Taken off the reward of an answer that did not end by itself."
    adapter: AdapterConfig | None = None
    "Train a small adapter beside the frozen weights instead of all of them."
    train: TrainConfig = TrainConfig(steps=200, lr=1e-4, schedule="constant", batch_tokens=65536, weight_decay=0.0)
    "Settings of the loop; a rollout larger than batch_tokens is cut into several steps."

    def problems(self) -> list[str]:
        found = self.train.problems() + (self.adapter.problems() if self.adapter else [])
        if self.train.steps is None:
            found.append("train.steps = none: must be set; a rollout takes epochs steps")
        if (self.task is None) == (not self.prompts):
            found.append("task and prompts: set one of them (--task arithmetic, or --prompts prompts.jsonl)")
        if self.prompts and not self.reward:
            found.append("reward: empty; own prompts need one (--reward exact, --reward rules.py:my_reward, ...)")
        if not self.entropy_weight >= 0:
            found.append(f"entropy_weight = {self.entropy_weight}: must be >= 0; 0 turns it off")
        try:
            policy_gradient(clip=self._clip)
        except ValueError as error:
            found.append(str(error))
        return found + self.rollouts().problems()

    @property
    def _clip(self) -> list[float] | None:
        return (list(METHODS[self.method].clip) if self.clip is None else self.clip) or None

    def rollouts(self, opinion: bool = False, positions: int = 0) -> RolloutConfig:
        """The rollouts' settings. opinion: the reward comes from a model. positions: of the longest row."""
        method = METHODS[self.method]
        priced = self.kl_coefficient is not None or self.kl_target is not None
        kl = self.kl or (("loss" if self.method == "grpo" else "reward") if opinion or priced else "measure")
        paid = kl in ("reward", "loss")
        rows = self.prompts_per_update * self.group_size
        return RolloutConfig(
            prompts_per_update=self.prompts_per_update,
            group_size=self.group_size,
            max_tokens=self.max_tokens,
            epochs=method.epochs if self.epochs is None else self.epochs,
            minibatches=max(1, -(-rows * positions // self.train.batch_tokens)),
            baseline=self.baseline or method.baseline,
            divisor=self.divisor or method.divisor,
            lam=method.lam,
            kl=kl,
            kl_coefficient=(_KL_COEFFICIENT if paid else 0.0) if self.kl_coefficient is None else self.kl_coefficient,
            kl_target=self.kl_target,
            shaping=self.shaping,
            resample=self.resample,
            cut_penalty=self.cut_penalty,
            seed=self.train.seed,
        )

    def objective(self):
        """The clipped surrogate with what this method adds to it."""
        method = METHODS[self.method]
        return policy_gradient(
            clip=self._clip,
            entropy_weight=self.entropy_weight,
            value_weight=(method.value_weight or _VALUE_WEIGHT) if self.rollouts().baseline == "value" else 0.0,
            value_clip=method.value_clip,
        )


def questions_of(recipe: ReinforceRecipe, parent: Parent) -> Questions:
    """What a recipe asks and how it is scored, opened."""
    task = open_task(recipe.task) if recipe.task else PromptFile(recipe.prompts)
    reward = open_rewards(recipe.reward or ["task"], task, recipe.train.device)
    watch = {name: open_rewards([name], task, recipe.train.device).reward for name in recipe.watch}
    questions = fitting(recipe, parent, task, reward, watch=watch, scored=recipe.task is not None)
    if mixed := [r for r in (questions.reward, *watch.values()) if unscaled(r)]:
        examples = sample_of(questions.train, _SCALED, 0)
        answers = _answers(parent, examples, recipe.max_tokens)
        for mixture in mixed:
            take_scale(mixture, examples, answers)
    return questions


def fitting(
    recipe: ReinforceRecipe,
    parent: Parent,
    task: Task,
    reward: Opened,
    *,
    watch: dict[str, Reward] | None = None,
    scored: bool = True,
    most: int = _HELD_OUT,
) -> Questions:
    """The task's prompts that leave room for an answer. scored: the task's own score is told at every look.

    most: held-out prompts. Raises ValueError where no prompt fits.
    """
    train = list(task.examples("train"))
    room = parent.model.config.context_tokens - recipe.max_tokens

    def tokens_of(example: Example) -> list[int]:
        return render_prompt(parent.tokenizer, messages_of(example))

    rendered = [tokens_of(e) for e in train]
    fits = [len(tokens) <= room for tokens in rendered]
    if not any(fits):
        shortest = min(map(len, rendered), default=0)
        raise ValueError(
            f"0 of {len(train)} prompts can be used: with max_tokens = {recipe.max_tokens} the context of "
            f"{parent.model.config.context_tokens} tokens leaves {room} for the prompt, the shortest has {shortest}; "
            "give prompts, lower max_tokens or take a model with a longer context"
        )
    asked = sha256(repr([(e.id, e.answers, e.meta) for e in train]).encode())  # what a rule compares answers with
    return Questions(
        [e for e, fit in zip(train, fits, strict=True) if fit],
        sample_of([e for e in task.examples("test") if len(tokens_of(e)) <= room], most, 0),
        [tokens for tokens, fit in zip(rendered, fits, strict=True) if fit],
        fits.count(False), reward.reward, watch or {}, task if scored else None, reward.opinion,
        f"{reward.reward.identity}\n{asked}",
    )  # fmt: skip


def run(
    recipe: ReinforceRecipe,
    quiet: bool = False,
    *,
    ask_about: Callable[[ReinforceRecipe, Parent], Questions] = questions_of,
    looking: Looking = LOOKING,
) -> Path:
    """Train and return the last checkpoint; continues what recipe.out already holds.

    ask_about: where prompts and rewards come from, for experiments that no recipe can name.
    """
    out = Path(recipe.out)
    head = "tokens+value" if recipe.rollouts().baseline == "value" else "tokens"
    where = {"device": recipe.train.device, "precision": recipe.train.precision}
    parent = open_model(recipe.parent, head=head, **where)
    questions = ask_about(recipe, parent)
    _try_rewards(parent, questions, recipe.max_tokens)
    positions = max(map(len, questions.tokens)) + recipe.max_tokens
    config = recipe.rollouts(questions.opinion, positions)
    if problems := config.problems():
        raise ValueError("; ".join(problems))
    if config.minibatches * config.epochs > 1 and recipe._clip is None:
        raise ValueError(
            f"{recipe.method} without clip takes one step per rollout, here a rollout is {config.epochs} x "
            f"{config.minibatches} steps: set clip = [0.2, 0.2], or epochs = 1 and train.batch_tokens to at least "
            f"{recipe.prompts_per_update * recipe.group_size * positions}"
        )
    parent, reference = adapted(parent, recipe.adapter, recipe.train.seed)
    if config.kl == "off":
        reference = None
    elif reference is None:
        reference = open_model(recipe.parent, **where).model.requires_grad_(False)
    source = Rollouts(
        parent.model, parent.tokenizer, questions.tokens, _scorer(questions.train, questions.reward), config,
        reference=reference, progress=_progress(questions), identity=questions.identity,
        micro_tokens=recipe.train.micro_tokens, want_entropy=recipe.entropy_weight > 0,
    )  # fmt: skip
    fixed = fix_recipe(out, "reinforce", recipe)  # after all that can be refused: a mended command may use the folder
    observer = Observer(
        out, parent, questions, source, looking, steps=recipe.train.steps, kl_target=recipe.kl_target, quiet=quiet
    )
    if not quiet:
        _say_plan(recipe, config, questions, source)
    saved = list_checkpoints(out)
    if not saved:
        observer.look(0)
    observer.recall(step_of(saved[-1]) if saved else 0)
    data = {
        "prompts": len(questions.train), "dropped": questions.dropped, "held_out": len(questions.test),
        "reward": questions.reward.name, "sha256": source.content, "reference": parent.id,
        "rollouts": msgspec.to_builtins(config),
    }  # fmt: skip
    path = run_stage(
        "reinforce", parent.model, parent.tokenizer, source, recipe.objective(), recipe.train,
        out=out, recipe=fixed, parent=parent, data=data, hooks=[observer], estimate=False, quiet=quiet,
        shown=("reward", "reward_std", "kl", "entropy", "length", "no_signal", "cut_off"),
    )  # fmt: skip
    page = write_page(out)
    if not quiet:
        observer.show_end()
        say(f"curves, samples and red flags: {page}")
    return path


def _answers(parent: Parent, examples: Sequence[Example], max_tokens: int) -> list[str]:
    return [a.text for a in ask(parent, examples, Sampling(temperature=1.0, max_tokens=max_tokens))]


def _try_rewards(parent: Parent, questions: Questions, max_tokens: int) -> None:
    """Score a few of the parent's answers before anything is written. Raises ValueError where a reward cannot."""
    examples = questions.train[:_TRIED]
    answers = _answers(parent, examples, max_tokens)
    for reward in (questions.reward, *questions.watch.values()):
        reward(examples, answers)


def _scorer(examples: Sequence[Example], reward: Reward):
    return lambda numbers, answers: reward([examples[i] for i in numbers], answers)


def _progress(questions: Questions):
    """How far an answer got, where the task can tell."""
    told = getattr(questions.task, "progress", None)
    return None if told is None else lambda number, partial: told(questions.train[number], partial)


def _say_plan(recipe: ReinforceRecipe, config: RolloutConfig, questions: Questions, source: Rollouts) -> None:
    if questions.dropped:
        say(f"prompts: {questions.dropped} left out: longer than the context leaves room for")
    kl = config.kl if config.kl in ("off", "measure") else f"in the {config.kl}, {config.kl_coefficient} per nat"
    say(
        f"{recipe.method}: {len(questions.train)} prompts, {config.prompts_per_update} x {config.group_size} answers per "
        f"update, {source.steps_per_update} steps on each; baseline {config.baseline}, divisor {config.divisor}, "
        f"clip {recipe._clip or 'off'}, KL {kl}; reward {questions.reward.name}"
    )
