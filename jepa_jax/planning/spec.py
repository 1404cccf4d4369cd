"""What a planner is asked, how it searches, and what it answers."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

# Forward passes in whose time a gradient is there: 2.8 to 3.6 of them on a CPU core, measured on the table-top's world model.
# By operations it would be 1.8 to 1.9, as weights have no gradients here.
GRADIENT_COST = 3
CHOICES = ("mean", "best")
LAST, SUM = "last", "sum"
# They are counted in int32.
_MOST_EVALUATIONS = 2**31 - 1
_PER_DIM = ("std", "start", "momentum_mean", "momentum_std", "deadzone", "action_penalty")


class Root(NamedTuple):
    """Say where a plan starts and where it shall lead.

    Attributes:
      state: pytree, what `dynamics_fn` starts from, without an axis of candidates.
      goal: pytree, handed to `cost_fn` as it is.
      mean: float32 `[R, A]` to start the search from, such as `warm_start` of the previous plan, or `[A]` for
        every step; None for the start of the spec.
    """

    state: Any
    goal: Any
    mean: jax.Array | None = None


class Trace(NamedTuple):
    """What happened in I iterations of S candidates, G gradient steps from several starts and P from the best.

    Attributes:
      costs: float32 `[I, S]` of the candidates.
      means, stds: float32 `[I, R, A]` after each iteration.
      descent: float32 `[G + P]`, the lowest before each gradient step.
    """

    costs: jax.Array
    means: jax.Array
    stds: jax.Array
    descent: jax.Array


class PlanOutput(NamedTuple):
    """A plan.

    Attributes:
      actions: float32 `[R, A]`, the plan.
      cost: float32 `[]` of exactly these actions.
      mean, std: float32 `[R, A]` of the candidates that would come next.
      evaluations: int32 `[]`, see `PlanSpec.evaluations`.
      trace: `Trace`.
    """

    actions: jax.Array
    cost: jax.Array
    mean: jax.Array
    std: jax.Array
    evaluations: jax.Array
    trace: Trace


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """Say how to search. Hashable, so that it can be a static argument; lists become tuples.

    A plan is R actions of A numbers. Numbers "per dim" are one for all, or a tuple of A.

    Attributes:
      low, high: tuples of A numbers, bounds of an action. Candidates are clipped to them one by one.
      horizon: R, actions of a plan.
      samples, iterations: candidates drawn in each iteration, and iterations; 0 iterations for none.
      elites: the best K, to which the next mean and std are fitted; with iterations, 2 to samples.
      temperature: weight elites by exp(-cost / (temperature * std of the costs of all candidates));
        None weights them alike.
      std: per dim, of the first candidates; None for half of high - low.
      start: per dim, mean of the first candidates; None for the value in the bounds that is nearest to 0.
      momentum_mean, momentum_std: per dim, share of the old mean and std that stays.
      noise_color: exponent b of the noise over the horizon, whose power falls as frequency ** -b; 0 is white.
      keep: the best so many candidates of an iteration that take part in the next one again.
      include_mean: the mean itself is a candidate of every iteration.
      gradient_steps, restarts, learning_rate: steps of Adam after the iterations, from the best elites (without
        iterations: from the mean and random plans); the rate is in halves of high - low,
        and falls to 0 along half a cosine.
      polish_steps: steps of `dilation.space_dilation` that follow, from the best plan alone, the first a quarter of the learning rate
        long; how many are enough grows with horizon and numbers.
      choice: "mean" answers the last mean, "best" the best plan of all that were evaluated.
      deadzone: per dim; smaller numbers of the answer become 0.
      fixed: pairs (dim, value): numbers that are not searched.
      held: triples (dim, first step, value): numbers set after clipping from that step on, to which the mean
        moves as it does to others; bounds do not apply.
      cost: "last" counts the state reached by the last action, "sum" those of all actions; or R weights.
      action_penalty: per dim, is multiplied with the squared action, in halves of high - low, of every step; the mean
        over A is added.
      chunk: candidates evaluated at once, to bound memory; None for all. It does not change the plan.

    Raises:
      ValueError: a field does not fit; the message names it, its value and what is allowed.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    horizon: int = 1
    samples: int = 400
    iterations: int = 10
    elites: int = 10
    temperature: float | None = None
    std: float | tuple[float, ...] | None = None
    start: float | tuple[float, ...] | None = None
    momentum_mean: float | tuple[float, ...] = 0.0
    momentum_std: float | tuple[float, ...] = 0.0
    noise_color: float = 0.0
    keep: int = 0
    include_mean: bool = False
    gradient_steps: int = 0
    restarts: int = 1
    polish_steps: int = 0
    learning_rate: float = 0.1
    choice: str = "mean"
    deadzone: float | tuple[float, ...] = 0.0
    fixed: tuple[tuple[int, float], ...] = ()
    held: tuple[tuple[int, int, float], ...] = ()
    cost: str | tuple[float, ...] = LAST
    action_penalty: float | tuple[float, ...] = 0.0
    chunk: int | None = None

    def __post_init__(self):
        """Bring fields into their types and check them."""
        for field, width in (("fixed", 2), ("held", 3)):
            entries = as_tuple(getattr(self, field))
            self._require(all(isinstance(entry, (tuple, list)) and len(entry) == width for entry in entries), field, f"tuples of {width} numbers")
            object.__setattr__(self, field, tuple(map(tuple, entries)))
        self._check_bounds()
        half = [(high - low) / 2 for low, high in zip(self.low, self.high)]
        defaults = {"std": half, "start": [min(max(0.0, low), high) for low, high in zip(self.low, self.high)]}
        for field in _PER_DIM:
            value = defaults[field] if getattr(self, field) is None else getattr(self, field)
            object.__setattr__(self, field, self._numbers(field, value, self.dims))
        if not isinstance(self.cost, str):
            object.__setattr__(self, "cost", self._numbers("cost", self.cost, self.horizon))
        self._check_counts()
        self._check_numbers()
        if self.evaluations > _MOST_EVALUATIONS:
            raise ValueError(f"planner: samples, iterations, gradient_steps, restarts, polish_steps and horizon make {self.evaluations} "
                             f"calls of the model; there may be {_MOST_EVALUATIONS} at most")

    @property
    def dims(self) -> int:
        """Count the numbers A of an action."""
        return len(self.low)

    @property
    def cost_weights(self) -> tuple[float, ...]:
        """Return how much the state after each of the R actions counts."""
        if isinstance(self.cost, str):
            return (float(self.cost == SUM),) * (self.horizon - 1) + (1.0,)
        return self.cost

    @property
    def evaluations(self) -> int:
        """Count calls of the model per plan: one for a step of a candidate, `GRADIENT_COST` with its gradient."""
        steps = sum(steps * calls for steps, calls in self.descents)
        return (self.samples * self.iterations + (not self.answers_evaluated)) * self.horizon + steps

    @property
    def answers_evaluated(self) -> bool:
        """Say whether the answer is a plan that the search has evaluated, so that its cost is known."""
        return self.choice == "best" and not any(self.deadzone)

    @property
    def descents(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (gradient steps, calls of the model in each of them) from all starts, and from the best plan alone."""
        return tuple((steps, GRADIENT_COST * starts * self.horizon)
                     for steps, starts in ((self.gradient_steps, self.restarts), (self.polish_steps, 1)))

    def _require(self, holds: object, field: str, allowed: str) -> None:
        if not holds:
            raise ValueError(f"planner: {field} is {getattr(self, field)!r}; it must be {allowed}")

    def _whole(self, field: str, least: int) -> bool:
        value = getattr(self, field)
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    def _numbers(self, field: str, value: float | Sequence[float], count: int) -> tuple[float, ...]:
        value = (value,) * count if isinstance(value, numbers.Real) else as_tuple(value)
        self._require(len(value) == count and all(map(_is_number, value)), field, f"a finite number or {count} of them")
        return tuple(map(float, value))

    def _check_bounds(self) -> None:
        for field in ("low", "high"):
            value = getattr(self, field)
            object.__setattr__(self, field, self._numbers(field, value, len(as_tuple(value))))
        self._require(self.low, "low", "at least one number: bounds of the actions that are planned")
        self._require(len(self.high) == len(self.low), "high", f"{len(self.low)} long, as low is")
        free = set(range(self.dims)) - {dim for dim, _ in self.fixed}
        for dim in sorted(free):
            if self.low[dim] >= self.high[dim]:
                raise ValueError(f"planner: the bounds of action number {dim} are {self.low[dim]:g} to {self.high[dim]:g}; the "
                                 "low one must be below the high one")

    def _check_counts(self) -> None:
        for field, least in (("horizon", 1), ("samples", 1), ("iterations", 0), ("gradient_steps", 0), ("restarts", 1),
                             ("polish_steps", 0), ("keep", 0), ("elites", 1)):
            self._require(self._whole(field, least), field, f"a whole number of at least {least}")
        self._require(isinstance(self.include_mean, bool), "include_mean", "True or False")
        self._require(self.iterations or self.gradient_steps, "iterations", "at least 1 where gradient_steps is 0")
        if self.iterations:
            self._require(2 <= self.elites <= self.samples, "elites", f"from 2 to the number of samples, {self.samples}")
            self._require(self.keep <= self.elites and self.keep + self.include_mean < self.samples, "keep",
                          f"at most elites, {self.elites}, and leave samples to draw")
            if self.gradient_steps:
                self._require(self.restarts <= self.elites, "restarts", f"at most elites, {self.elites}")
        self._require(self.chunk is None or self._whole("chunk", 1), "chunk", "None or a whole number of at least 1")

    def _check_numbers(self) -> None:
        self._require(self.choice in CHOICES, "choice", f"one of {', '.join(CHOICES)}")
        named = not isinstance(self.cost, str) or self.cost in (LAST, SUM)
        self._require(named and any(self.cost_weights), "cost", f"{LAST}, {SUM} or weights of which one is not 0")
        self._require(self.temperature is None or _is_number(self.temperature) and self.temperature > 0, "temperature", "None or a number above 0")
        self._require(_is_number(self.learning_rate) and self.learning_rate > 0, "learning_rate", "a number above 0")
        self._require(_is_number(self.noise_color) and self.noise_color >= 0, "noise_color", "a number of at least 0")
        for field in ("momentum_mean", "momentum_std"):
            self._require(all(0 <= number <= 1 for number in getattr(self, field)), field, "from 0 to 1")
        for field in ("std", "deadzone", "action_penalty"):
            self._require(all(number >= 0 for number in getattr(self, field)), field, "at least 0")
        self._require(all(dim in range(self.dims) and _is_number(value) for dim, value in self.fixed), "fixed",
                      f"pairs (0 to {self.dims - 1}, finite value)")
        self._require(all(dim in range(self.dims) and _is_number(step) and step >= 0 and _is_number(value) for dim, step, value in self.held),
                      "held", f"triples (0 to {self.dims - 1}, step from 0 on, finite value)")


def as_tuple(value: Any) -> tuple:
    """Return what a sequence holds; what is none, such as a text, as the only element."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
