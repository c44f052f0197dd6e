"""PDERL: ERL whose crossover distills two parents into a child and whose mutation spares what actions are sensitive to."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.algorithms.erl import ERL
from sb3_erl.buffers.genetic_memory import GeneticMemories
from sb3_erl.buffers.rollout_steps import Steps
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.core.observations import combine, packed, take, unpacked, zeros
from sb3_erl.core.parameters import ParameterLayout
from sb3_erl.core.registry import resolve
from sb3_erl.engine import generation as verbs
from sb3_erl.engine.generation import Generation
from sb3_erl.engine.representation import Representation
from sb3_erl.engine.rollout_phase import ReplayStore
from sb3_erl.evolution.distilled_ga import DistilledGA
from sb3_erl.evolution.operators.distillation import GreedyDistillation
from sb3_erl.rollouts.jobs import Job


class MemoryStore(ReplayStore):
    """Puts steps into the replay buffer and into the memory of the individual, or of the learner, that took them."""

    def store(self, job: Job, summary: Steps) -> None:
        """See :class:`~sb3_erl.engine.rollout_phase.StepStore`."""
        super().store(job, summary)
        if len(summary) > 0:
            seen, done = take(summary.observations, slice(-1)), summary.actions
            seen = packed(seen) if isinstance(seen, dict) else seen
            owner = min(job.candidate, self.model.pop_size)
            self.model.evolver.memories.append(owner, seen, done.reshape(len(done), -1))


class PDERL(ERL):
    """
    Proximal distilled evolutionary reinforcement learning.

    ERL for networks that plain crossover and mutation would break; for continuous actions, with ``learner="dqn"`` for discrete
    ones: ``PDERL("Hopper-v5", verbose=1).learn(1_000_000)``.

    Bodnar, Day, Lio (AAAI 2020), https://arxiv.org/abs/1906.09807; authors' code: crisbodnar/pderl. ERL in which each
    individual remembers what it has seen: crossover teaches a child what its parents do in those states, in each the
    parent whose action the critic prefers; mutation divides its noise by the sensitivity of the actions to each weight.

    Differences from the authors' code, beside those of :class:`~sb3_erl.algorithms.erl.ERL`:

    1. an elite's copy is matched with the elite's fitness (theirs has that of the individual it replaced), and no
       individual is crossed with itself;
    2. all elite copies are protected from the learner's injection, not only the first;
    3. all children of a generation are distilled together on stacked parameters, and all sensitivities are measured
       together;
    4. the learner enters the population only after ``learning_starts`` transitions.

    Parameters that are not listed here are those of :class:`~sb3_erl.algorithms.erl.ERL`.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learner: as in ERL. With TD7 operators and critic read the fixed state embedding, which takes no gradient; of
        SAC's actors the deterministic action counts. With DQN a child learns to prefer its parents' greedy actions
        (:class:`~sb3_erl.evolution.operators.distillation.GreedyDistillation`), and mutation measures the sensitivity of
        the values of all actions
    :param crossover_prob: probability of replacing a selected parent by its child with another one
    :param learning_rate: as in ERL
    :param evolver: ``"distilled_ga"`` or a subclass of :class:`~sb3_erl.evolution.distilled_ga.DistilledGA`
    :param genetic_memory_size: transitions that each individual remembers; they are saved with the model
    :param crossover: ``"distillation"``, or an operator of ERL, such as ``"rows"``
    :param mutation: ``"proximal"``, or an operator of ERL, such as ``"gaussian"``
    :param parent_matching: which parents are distilled: pairs by the sum of their ``"fitness"``, or those whose behavior
        has the largest ``"distance"`` (``"dist"`` in the authors' code; not with discrete actions)
    :param q_filter: critic that chooses between the parents' actions: ``"q1"`` or the smaller of both, ``"min"``
    :param distill_epochs: passes over a child's memory
    :param distill_batch_size: states per distillation step
    :param distill_lr: learning rate of the distillation
    :param distill_action_reg: weight of the squared actions in the distillation loss, without meaning for discrete ones
    :param mutation_magnitude: standard deviation of the proximal noise
    :param mutation_batch_size: states on which the sensitivity is measured
    :param sensitivity_floor: smallest sensitivity
    :param evolver_kwargs: further arguments of :class:`~sb3_erl.evolution.distilled_ga.DistilledGA`, for example
        ``distance_from``, ``crossover_kwargs`` or ``mutation_kwargs``
    :raises ValueError: if an argument is out of range or unknown, or the environment's spaces are not supported
    """

    @inherits_arguments("n_migrants", "population_policy_kwargs")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        evolver: Any = "distilled_ga",
        genetic_memory_size: int = 8000,
        crossover: str | type = "distillation",
        mutation: str | type = "proximal",
        parent_matching: Literal["fitness", "distance", "dist"] = "fitness",
        q_filter: Literal["q1", "min"] = "min",
        distill_epochs: int = 12,
        distill_batch_size: int = 128,
        distill_lr: float = 1e-3,
        distill_action_reg: float = 1.0,
        mutation_magnitude: float = 0.05,
        mutation_batch_size: int = 256,
        sensitivity_floor: float = 0.01,
        **kwargs: Any,
    ):
        self.genetic_memory_size = genetic_memory_size
        self.parent_matching, self.q_filter = "distance" if parent_matching == "dist" else parent_matching, q_filter
        self.distill_epochs, self.distill_batch_size = distill_epochs, distill_batch_size
        self.distill_lr, self.distill_action_reg = distill_lr, distill_action_reg
        self.mutation_magnitude, self.mutation_batch_size = mutation_magnitude, mutation_batch_size
        self.sensitivity_floor = sensitivity_floor
        parts = {"evolver": evolver, "crossover": crossover, "mutation": mutation}
        super().__init__(policy, env, learning_rate, **parts, **kwargs)

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_choice("parent_matching", self.parent_matching, ("fitness", "distance"))
        if self.parent_matching == "distance" and self.takes_discrete_actions:
            raise ValueError(
                "parent_matching must be 'fitness' with discrete actions, between whose numbers there is no distance; got "
                "'distance'"
            )
        check_choice("q_filter", self.q_filter, ("q1", "min"))
        check_range("genetic_memory_size", self.genetic_memory_size, 2, integer=True)
        for name in ("distill_epochs", "distill_batch_size", "mutation_batch_size"):
            check_range(name, getattr(self, name), 1, integer=True)
        for name in ("distill_lr", "sensitivity_floor"):
            check_range(name, getattr(self, name), 0, open_low=True)
        for name in ("distill_action_reg", "mutation_magnitude"):
            check_range(name, getattr(self, name), 0)
        evolver = resolve("evolver", self.evolver_class)
        if not (isinstance(evolver, type) and issubclass(evolver, DistilledGA)):
            raise ValueError(
                f"evolver must be 'distilled_ga' or a subclass of DistilledGA; got {self.evolver_class!r}. "
                "ERL takes any evolver"
            )

    def _make_representation(self) -> Representation:
        representation = super()._make_representation()
        representation.layout = ParameterLayout.of(self._varied_actor)  # operators call it by these names
        return representation

    @property
    def _varied_actor(self) -> th.nn.Module:
        """A network of the individuals' shape whose outputs the operators compare: actions, or the values of all actions."""
        return self.actor if self.takes_discrete_actions else self.learner.greedy_actor()

    def _evolver_arguments(self) -> dict[str, Any]:
        one = zeros(self.observation_space, 1)
        row = packed(one) if isinstance(one, dict) else one
        n_memories = self.pop_size + 1  # the last one is the learner's
        size = (n_memories, self.genetic_memory_size, row.shape[1:], row.dtype, get_action_dim(self.action_space))
        arguments: dict[str, Any] = {
            "actor": self._varied_actor,
            "memories": GeneticMemories(*size, rounds=False),
            "value": self._value,
            "prepare": self._prepare,
            "parent_matching": self.parent_matching,
            **super()._evolver_arguments(),
        }
        if arguments["crossover"] == "distillation":
            names = {"epochs": "epochs", "batch_size": "batch_size", "lr": "learning_rate", "action_reg": "action_reg"}
            own = {theirs: getattr(self, f"distill_{mine}") for mine, theirs in names.items()}
            arguments["crossover_kwargs"] = {**own, **arguments.get("crossover_kwargs", {})}
            if self.takes_discrete_actions:
                arguments["crossover"] = GreedyDistillation
        if arguments["mutation"] == "proximal":
            own = {"magnitude": self.mutation_magnitude, "batch_size": self.mutation_batch_size}
            own["floor"] = self.sensitivity_floor
            arguments["mutation_kwargs"] = {**own, **arguments.get("mutation_kwargs", {})}
        return arguments

    def _value(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        return self.learner.value(observations, actions, self.q_filter == "min")

    def _prepare(self, rows: np.ndarray) -> Any:
        space = self.observation_space
        observations: Any = unpacked(rows, space) if isinstance(space, spaces.Dict) else rows
        if self._vec_normalize_env is not None:
            observations = self._vec_normalize_env.normalize_obs(observations)
        return combine(lambda array: th.as_tensor(array, device=self.device), observations)

    # ---------------------------------------------------------------- the parts of a generation

    def _step_store(self) -> MemoryStore:
        return MemoryStore(self)

    def _exchange(self, generation: Generation) -> None:
        verbs.exchange(self, generation)
        if self._injected_slot is not None:
            sources = np.arange(self.pop_size)
            sources[self._injected_slot] = self.pop_size
            memories: GeneticMemories = self.evolver.memories  # type: ignore[assignment]
            memories.take(sources)
