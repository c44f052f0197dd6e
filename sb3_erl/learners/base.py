"""Base of all gradient learners, the settings and rates they are given, and helpers of their updates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import update_learning_rate
from torch import nn

from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.compiled.gradients import can_trace
from sb3_erl.compiled.programs import UpdatePrograms
from sb3_erl.core.checks import check_range, warn_caller
from sb3_erl.learners.graphs import UpdateGraphs

Precision = Literal["fp32", "bf16"]
"""What the matrix products of updates are computed in; parameters and optimizers are fp32 in either case."""

TARGETS_ARE_COPIED = "targets are copied, learner_kwargs=dict(target_update_interval=...) says how often"
"""Way out for those who give ``tau`` to a learner without soft updates."""

AUTO_AFTER = 50_000
"""Updates of a learner after which ``compile="auto"`` compiles: as long as compiling takes at most."""

Sampler = Callable[[], ReplayBufferSamples]
"""Draws one batch from the replay buffer."""


def products_in(precision: Precision, device: torch.device) -> torch.autocast:
    """
    :param precision: of matrix products
    :param device: where they are computed
    :return: context of any number of updates
    """
    # a cast that autocast kept would outlive the optimizer's steps on the weights
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


@dataclass
class LearnerSettings:
    """
    Constants of an update; ``gamma`` and ``tau`` are those of the last :class:`Rates`.

    :param gamma: discount factor in [0, 1]
    :param tau: soft update coefficient in [0, 1]
    :param policy_delay: critic updates per actor update, at least 1
    :param target_policy_noise: standard deviation of the target smoothing noise, 0 for none
    :param target_noise_clip: bound of that noise, at least 0
    :param max_grad_norm: clip gradients at this norm, at least 0; ``None`` for no clipping
    :param delay_critic_target: the critic's target moves with the actor (TD3); otherwise after every critic step (CERL)
    :param policy_first: the actor moves in the first of every ``policy_delay`` updates of a call, and each call counts anew
        (ERL-Re2 and EvoRainbow); otherwise in the last, counted over the learner's life (TD3)
    :raises ValueError: if a constant is out of range
    """

    gamma: float = 0.99
    tau: float = 0.005
    policy_delay: int = 1
    target_policy_noise: float = 0.0
    target_noise_clip: float = 0.5
    max_grad_norm: float | None = None
    delay_critic_target: bool = True
    policy_first: bool = False

    def __post_init__(self) -> None:
        check_range("policy_delay", self.policy_delay, 1, integer=True)
        check_range("target_policy_noise", self.target_policy_noise, 0)
        check_range("target_noise_clip", self.target_noise_clip, 0)
        if self.max_grad_norm is not None:
            check_range("max_grad_norm", self.max_grad_norm, 0)


@dataclass(frozen=True)
class Rates:
    """
    What an algorithm tells its learner before a number of updates.

    :param gamma: discount factor in [0, 1]
    :param tau: soft update coefficient in [0, 1]
    :param learning_rate: of all optimizers; ``None`` for the learner's published rates
    :param progress_remaining: share of the run that is left, in [0, 1], for schedules that a learner has of its own
    :param n_updates: updates that this learner has made before
    :param batch_size: transitions in the batches to come
    :param by_optimizer: learning rates by the optimizer's name, for those that differ from ``learning_rate``
    :param steps_per_update: environment steps for each update, for classes of SB3 that do something at every step
    """

    gamma: float
    tau: float
    learning_rate: float | None = None
    progress_remaining: float = 1.0
    n_updates: int = 0
    batch_size: int = 256
    by_optimizer: Mapping[str, float] = field(default_factory=dict)
    steps_per_update: float = 1.0


class Learner:
    """
    Base of all gradient learners: it reads batches and writes the networks of the policy it was given, nothing else.

    A class of one's own can be named in the argument ``learner`` of the hybrids; it is built as ``cls(policy, settings)``.

    :param policy: holds networks and optimizers
    :param settings: constants of the rule
    """

    settings_class: ClassVar[type[LearnerSettings]] = LearnerSettings
    settings_defaults: ClassVar[dict[str, Any]] = {}
    """What ``None`` in an algorithm's constructor means for this learner."""
    buffer_class: ClassVar[type[ReplayBuffer] | None] = None
    """Replay buffer that the published learner samples from; ``None`` for SB3's own choice."""
    learning_rates: tuple[float, float] = (1e-3, 1e-3)
    """Published learning rates of actor and critic, used where the user gives none."""
    n_critics: ClassVar[int | None] = None
    """Critics of its policy, unless ``learner_kwargs`` has ``n_critics``; ``None`` for a policy without such an argument."""
    batch_size: ClassVar[int | None] = None
    """Published batch size; ``None`` for that of the algorithm."""
    policy_aliases: ClassVar[dict[str, type[BasePolicy]] | None] = None
    """Policy classes it needs, by alias; ``None`` for those of the algorithm."""
    policy_explores: ClassVar[bool] = False
    """Whether its actor draws actions at random, which is then its exploration."""
    action_space_class: ClassVar[type[spaces.Space]] = spaces.Box
    """Actions it can learn."""
    pure_methods: ClassVar[tuple[str, ...]] = ()
    """Methods from tensors to tensors, which hold nearly all arithmetic of an update; see :meth:`compile`."""
    use_graphs = False
    """Whether whole updates become CUDA graphs on a GPU, compiled programs on a CPU; may be switched off for a learner."""
    unread: ClassVar[dict[str, str]] = {}
    """Arguments of algorithms that it does not read, each with what to give instead."""
    priority_set: int | None = None
    """Number of the priorities in a :class:`~sb3_erl.buffers.lap.LAPReplayBuffer` that it draws by and writes, if any."""

    def __repr__(self) -> str:
        rule = getattr(self, "rule", None)
        return f"{type(self).__name__}({'' if rule is None else type(rule).__name__})"

    def __init__(self, policy: BasePolicy, settings: LearnerSettings):
        self.policy = policy
        self.settings = settings
        self.n_updates = 0
        self._is_compiled = False
        self.buffer: LAPReplayBuffer | None = None
        """Where it writes priorities; ``None`` where it has no :attr:`priority_set` or the replay buffer no priorities."""
        self.graphs: UpdateGraphs | None = None
        """Replays what an update launches on a GPU; ``None`` where updates run as they are."""
        self.programs: UpdatePrograms | None = None
        """Runs updates as compiled programs; ``None`` where they run as they are, see :meth:`compile`."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what :meth:`compile` translated and what was recorded on a GPU, which copies make anew."""
        compiled = self.pure_methods if self._is_compiled else ()
        state = {name: value for name, value in vars(self).items() if name not in compiled}
        return {**state, "graphs": None, "programs": None, "_is_compiled": False}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers by the attribute name under which the algorithm saves them."""
        raise NotImplementedError

    @property
    def save_params(self) -> tuple[list[str], list[str]]:
        """Names of state dicts and of tensors to be saved beside the policy, as attributes of the algorithm."""
        return list(self.optimizers), []

    def begin(self, rates: Rates, buffer: ReplayBuffer | None = None) -> None:
        """
        Take over constants and learning rates before a number of updates.

        :param rates: of the updates to come
        :param buffer: what batches are drawn from; learners with a :attr:`priority_set` write priorities to a
            :class:`~sb3_erl.buffers.lap.LAPReplayBuffer`
        """
        self.buffer = buffer if isinstance(buffer, LAPReplayBuffer) and self.priority_set is not None else None
        if not self.use_graphs:
            self.graphs = None
        elif self.graphs is None and self.policy.device.type == "cuda":
            self.graphs = UpdateGraphs(self._state, lambda: list(self.optimizers.values()))
        for runner in (self.graphs, self.programs):
            if runner is not None:
                runner.refresh()
        self.settings.gamma, self.settings.tau = rates.gamma, rates.tau
        self.n_updates = rates.n_updates
        for name, optimizer in self.optimizers.items():
            rate = rates.by_optimizer.get(name, rates.learning_rate)
            published = self.learning_rates[0 if name.startswith("actor") else 1]
            update_learning_rate(optimizer, published if rate is None else rate)

    @property
    def is_one_program(self) -> bool:
        """Whether :meth:`compile` translates whole updates, and not only their losses."""
        on_cpu = isinstance(self.policy, nn.Module) and self.policy.device.type == "cpu"
        return self.use_graphs and on_cpu and all(map(can_trace, self.optimizers.values()))

    def compile(self, only_whole: bool = False) -> bool:
        """
        Let torch's compiler translate updates; the first ones then take a minute or two, in a later process some seconds.

        Where it can an update is one program: losses, gradients, optimizer steps and soft updates. Otherwise, as on a GPU and
        with optimizers that are not Adam, ``torch.compile`` translates the losses. The numbers differ in their last digits
        from those without. Calling it again changes nothing.

        :param only_whole: do nothing where an update cannot be one program
        :return: whether it changed anything
        """
        if self._is_compiled or (only_whole and not self.is_one_program):
            return False
        if not self.is_one_program and not self.pure_methods:
            warn_caller(f"compile=True has no effect with {self!r}, which has nothing that can be compiled")
        self._is_compiled = True
        if self.is_one_program:
            self.programs = UpdatePrograms(self._state, lambda: list(self.optimizers.values()))
            self.programs.refresh()
            return True
        for name in self.pure_methods:
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False))
        return True

    def _state(self) -> list[torch.Tensor]:
        """What updates change, in an order that does not depend on how the optimizers came by it."""
        optimizers = self.optimizers.values()
        states = [o.state.get(p, {}) for o in optimizers for group in o.param_groups for p in group["params"]]
        tensors = [state[name] for state in states for name in sorted(state) if isinstance(state[name], torch.Tensor)]
        return [*self.policy.parameters(), *self.policy.buffers(), *tensors]

    def _run(self, function: Callable[..., Any], *inputs: Any, **choices: Hashable) -> Any:
        """
        Call ``function(*inputs, **choices)``, by way of :attr:`graphs` or :attr:`programs` where there are any.

        :param function: a method that looks at no tensor's value
        :param inputs: tensors, ``None``, and tuples of them
        :param choices: what else it depends on, beside settings and learning rates
        """
        runner = self.programs or self.graphs
        if runner is None:
            return function(*inputs, **choices)
        is_coarse = torch.is_autocast_enabled(self.policy.device.type)
        key = (function.__name__, *choices.items(), *vars(self.settings).values(), self.policy.training, is_coarse)
        if runner is self.graphs:
            key += tuple(group["lr"] for optimizer in self.optimizers.values() for group in optimizer.param_groups)
        return runner.run(key, partial(function, **choices), inputs)

    def _run_program(self, function: Callable[..., Any], *inputs: Any, **choices: Hashable) -> Any:
        """As :meth:`_run`, but for what never becomes a CUDA graph."""
        run = function if self.programs is None else partial(self._run, function)
        return run(*inputs, **choices)

    def update(self, sample: Sampler, n_updates: int) -> dict[str, float]:
        """
        :param sample: draws one batch
        :param n_updates: how many gradient iterations
        :return: means of the logged quantities, keys without the ``train/`` prefix
        """
        raise NotImplementedError

    def greedy_actor(self) -> nn.Module:
        """
        The learner's actor as a network whose output is the deterministic action.

        :return: its parameters are those of ``policy.actor`` in the same order, perhaps under other names
        """
        return self.policy.actor  # type: ignore[return-value]

    def value(self, observations: Any, actions: torch.Tensor, pessimistic: bool = True) -> torch.Tensor:
        """
        Values of actions by the critic.

        :param observations: batch of observations
        :param actions: ``(batch, action_dim)`` in [-1, 1]
        :param pessimistic: the smallest value of all critics, otherwise the first critic's
        :return: ``(batch,)``
        """
        values = self.all_values(observations, actions)[..., 0]
        return values.amin(dim=0) if pessimistic else values[0]

    def all_values(self, observations: Any, actions: torch.Tensor) -> torch.Tensor:
        """:return: values by each critic, ``(critics, batch, 1)``; see :meth:`value`"""
        raise NotImplementedError


@dataclass
class Metrics:
    """Running means that stay on the device until they are read."""

    _sums: dict[str, torch.Tensor] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, **values: torch.Tensor) -> None:
        """Add one value to each named mean."""
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] += 1

    def means(self) -> dict[str, float]:
        """:return: the means as floats (this waits for the device)"""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}


class SquashedMean(nn.Module):
    """
    Deterministic actions of SB3's actors with a squashed Gaussian, without its distribution objects.

    :param actor: actor of SAC, TQC or CrossQ
    """

    def __init__(self, actor: Any):
        super().__init__()
        self.actor = actor

    def forward(self, observations: Any) -> torch.Tensor:
        return torch.tanh(self.actor.get_action_dist_params(observations)[0])
