"""``CEMAgent``: the planner as one more SB3 algorithm."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import maybe_transpose
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import is_vectorized_observation
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_erl.core.action_spaces import inside
from sb3_erl.core.checks import check_env, check_learn, check_range, spaces_checked
from sb3_erl.core.seeding import Address, Stream
from sb3_erl.envs.packages import register_namespaces
from sb3_erl.planning.agent_files import AgentFiles
from sb3_erl.planning.base import episode_length, single_env
from sb3_erl.planning.cem_planner import CEMPlanner, Plan
from sb3_erl.planning.choice import make_model, make_planner
from sb3_erl.planning.env_states import EnvStates, evaluated_in
from sb3_erl.planning.learned_model import LearnedModel

SelfAgent = TypeVar("SelfAgent", bound="CEMAgent")


class CEMAgent(AgentFiles):
    """
    An agent that plans every action with :class:`~sb3_erl.planning.cem_planner.CEMPlanner` and has no policy to train.

    Hafner et al. (2019), https://arxiv.org/abs/1811.04551: the planner of PlaNet, with a simulator, given equations or a
    network on observations as the model (PlaNet's own model learns from images).

    ``predict`` plans. A simulator's state is not in an observation, so it plans from the state of the environment that shows
    this observation: the agent's own, or one that :meth:`add_env` or a callback of ``learn`` (``EvalCallback``) named. Rewards
    are the environment's own, also under ``VecNormalize``. ``learn`` plays episodes with exploration noise, fills the replay
    buffer, and fits a model that can be fitted after each episode.

    With a warm start or action repeat, ``predict`` returns what it has to remember, as recurrent policies of SB3's do: give it
    back with the next observation (``evaluate_policy`` and the Zoo do). Without it every call makes a plan of its own.

    :param policy: ``None``; or, without ``env``, the environment or its id
    :param env: one environment, vectorized or not, its id, or ``None`` for loading
    :param model: ``"simulator"``, ``"rollout"``, ``"learned"``, a class of :mod:`sb3_erl.planning`, or an object
    :param model_kwargs: arguments of the model, if it is made here, beside environment, spaces, seed and device
    :param planner_kwargs: arguments of :class:`~sb3_erl.planning.cem_planner.CEMPlanner`, such as ``{"horizon": 20}``
    :param buffer_size: transitions that are kept
    :param learning_starts: steps with random actions before the first plan, with a model that is fitted only
    :param batch_size: transitions per gradient step of a model that is fitted
    :param gradient_steps: its gradient steps after an episode, -1 for as many as the episode had steps
    :param stats_window_size: episodes in the logged means
    :param tensorboard_log: folder of TensorBoard logs, ``None`` for none
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: of the planner, the environment and a model that is made here
    :param device: of a model that is made here
    :raises ValueError: if an argument is out of range, there are several environments, or an episode is shorter than a plan
    :raises TypeError: if an argument is of another type
    """

    def __init__(
        self,
        policy: Any = None,
        env: GymEnv | str | None = None,
        model: Any = "simulator",
        model_kwargs: dict[str, Any] | None = None,
        planner_kwargs: dict[str, Any] | None = None,
        buffer_size: int = 100_000,
        learning_starts: int = 1000,
        batch_size: int = 256,
        gradient_steps: int = -1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        if env is None and policy is not None:
            policy, env = None, policy
        if policy is not None:
            raise ValueError(f"policy must be None: CEMAgent plans its actions and has no policy; got {policy!r}")
        register_namespaces(env)
        self.model_class, self.model_kwargs, self.planner_kwargs = model, model_kwargs, planner_kwargs
        self.buffer_size, self.learning_starts = buffer_size, learning_starts
        self.batch_size, self.gradient_steps = batch_size, gradient_steps
        self.planner: CEMPlanner | None = None
        self._planner_arguments: dict[str, Any] | None = None
        self.replay_buffer: ReplayBuffer | None = None
        self.run_seed: int | None = None
        self.n_decisions = 0
        """Plans that ``learn`` has made over the life of the agent, each of them an address of random numbers."""
        self._env_states = EnvStates()
        with spaces_checked(self, verbose, None, is_loading=not _init_setup_model):
            super().__init__(
                policy=None,  # type: ignore[arg-type]
                env=env,
                learning_rate=0.0,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                verbose=verbose,
                device=device,
                support_multi_env=True,
                seed=seed,
            )
        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        check_env(self)
        for name in ("buffer_size", "batch_size"):
            check_range(name, getattr(self, name), 1, integer=True)
        check_range("stats_window_size", self._stats_window_size, 1, integer=True)
        check_range("learning_starts", self.learning_starts, 0)
        check_range("gradient_steps", self.gradient_steps, -1, integer=True)
        if self.seed is not None:
            check_range("seed", self.seed, 0, 2**32 - 1, integer=True)
        for name in ("model_kwargs", "planner_kwargs"):
            if not isinstance(getattr(self, name) or {}, dict):
                raise TypeError(f"{name} must be None or a dict of arguments; got {getattr(self, name)!r}")

    def _setup_model(self) -> None:
        self._check_arguments()
        self.policy = None  # type: ignore[assignment]
        self.set_random_seed(None if self.seed is None else int(self.seed))
        if self.run_seed is None:
            self.run_seed = int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else self.seed
        arguments = (self.model_class, self.model_kwargs, self.observation_space, self.action_space)
        self.model = make_model(*arguments, seed=self.run_seed, device=self.device)
        made_of = {"seed": self.run_seed, **(self.planner_kwargs or {})}
        self.planner = make_planner(self.model, self.action_space, made_of, self.planner, self._planner_arguments)
        self._planner_arguments = made_of
        self._check_env(self.env)
        if self.replay_buffer is None:
            spaces_ = (self.observation_space, self.action_space)
            self.replay_buffer = ReplayBuffer(self.buffer_size, *spaces_, device="cpu", n_envs=1)

    @property
    def _is_simulator(self) -> bool:
        return getattr(self.model, "is_simulator", False)

    def _check_env(self, env: VecEnv | None) -> None:
        """:raises ValueError: if the agent cannot plan in it"""
        if env is None:
            return
        assert self.planner is not None
        if self._is_simulator:
            self.model.sync(env)
        if env.num_envs != 1 or isinstance(env.unwrapped, DummyVecEnv):
            self.planner.check_horizon(episode_length(single_env(env)))

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        :param env: where to plan and act from now on
        :param force_reset: whether it is reset before the next ``learn``
        :raises ValueError: if its spaces are others, there are several, or the horizon is longer than an episode
        """
        self._check_env(self._wrap_env(env))
        super().set_env(env, force_reset)
        self._env_states.forget()

    def add_env(self, env: VecEnv) -> None:
        """
        Let ``predict`` plan in a further environment, when it is given what this one shows.

        :param env: a ``VecEnv`` of one environment, for ``evaluate_policy`` for example
        :raises TypeError: if it is no ``VecEnv``
        :raises ValueError: if there are several in it, or it is in another process
        """
        self._env_states.add(env)

    # ---------------------------------------------------------------- acting

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Plan; without exploration noise, which is for ``learn`` only.

        :param observation: one observation or a batch of one; with a model that plans from observations, any batch
        :param state: what the previous call returned, ``None`` at first
        :param episode_start: ``(n,)``, whether an episode begins, so that ``state`` is of the previous one
        :param deterministic: as in SB3; makes no difference
        :return: actions in units of the environment, and what to give to the next call
        :raises ValueError: if a simulator is to plan for several observations, or for one that no environment it knows shows
        """
        assert self.planner is not None
        observation = maybe_transpose(np.asarray(observation), self.observation_space)
        is_batch = is_vectorized_observation(observation, self.observation_space)
        rows = observation if is_batch else observation[None]
        if self._is_simulator and len(rows) != 1:
            raise ValueError(
                f"observation must be a single one for a model with the state of one environment; got {len(rows)}"
            )
        _, _, horizon, action_dim = self.planner.shape
        means, actions = np.zeros((len(rows), horizon, action_dim)), np.zeros((len(rows), *self.action_space.shape))  # type: ignore[misc]
        left, has_mean = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=bool)
        if state is not None:
            means, actions, left, has_mean = (part.copy() for part in state)
            begins = np.zeros(len(rows), dtype=bool) if episode_start is None else np.asarray(episode_start, dtype=bool)
            left[begins], has_mean[begins] = 0, False
        for i, row in enumerate(rows):
            if left[i] == 0:
                self.planner.reset()
                start = means[i] if has_mean[i] else None
                actions[i], plan = self.planner.plan(self._state_for(row), mean=start, deterministic=True)
                means[i], left[i], has_mean[i] = plan.mean, self.planner.action_repeat, True
            left[i] -= 1
        remembers = self.planner.warm_start or self.planner.action_repeat > 1
        acted = inside(actions, self.action_space)
        return acted if is_batch else acted[0], (means, actions, left, has_mean) if remembers else None

    def _state_for(self, observation: np.ndarray) -> Any:
        """:return: where the model starts: an unnormalized observation, or the state of the environment that shows it"""
        if not self._is_simulator:
            normalizer: Any = self._vec_normalize_env
            return observation if normalizer is None else normalizer.unnormalize_obs(observation[None])[0]
        if self.env is None:
            raise ValueError("env must be set before a simulator plans; got None: call set_env(), or load(..., env=...)")
        return self._env_states.state_of(self.model, self.env, observation)

    # ---------------------------------------------------------------- learning

    def learn(
        self: SelfAgent,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "CEMAgent",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAgent:
        """
        Play, store transitions, and fit the model after each episode if it can be fitted.

        :param total_timesteps: environment steps
        :param callback: called at every environment step
        :param log_interval: episodes between two log tables, ``None`` for no automatic log
        :param tb_log_name: name of the TensorBoard run
        :param reset_num_timesteps: whether to count from 0 again
        :param progress_bar: show a progress bar (needs tqdm and rich)
        :return: the agent
        :raises ValueError: if ``total_timesteps`` is not positive or there is no environment
        """
        check_learn(self, total_timesteps, callback, log_interval)
        arguments = (int(total_timesteps), callback, reset_num_timesteps, tb_log_name, progress_bar)
        total_timesteps, callback = self._setup_learn(*arguments)
        states, others = self._env_states, self._env_states.others
        states.others = [*others, *evaluated_in(callback)]
        try:
            callback.on_training_start(locals(), globals())
            while self.num_timesteps < total_timesteps and self._play(callback, total_timesteps):
                if log_interval is not None and self._episode_num % log_interval == 0:
                    self.dump_logs()
            callback.on_training_end()
        finally:
            states.others = others
        return self

    def _play(self, callback: BaseCallback, total_timesteps: int) -> bool:
        """An episode or what is left of the budget; returns whether to go on."""
        callback.on_rollout_start()
        plan, n_steps, is_over = None, 0, False
        while not is_over and self.num_timesteps < total_timesteps:
            action, scaled, plan = self._decide(plan)
            for _ in range(self.planner.action_repeat):  # type: ignore[union-attr]
                goes_on, is_over = self._step(action, scaled, callback)
                if not goes_on:
                    return False
                n_steps += 1
                if is_over or self.num_timesteps >= total_timesteps:
                    break
        if is_over:
            self._episode_num += 1
            self._fit(n_steps if self.gradient_steps < 0 else self.gradient_steps)
        callback.on_rollout_end()
        return is_over

    def _decide(self, previous: Plan | None) -> tuple[np.ndarray, np.ndarray, Plan | None]:
        """:return: an action in units of the environment, the same in [-1, 1], and the plan, ``None`` for a random action"""
        assert self.planner is not None and self.run_seed is not None and isinstance(self.action_space, spaces.Box)
        rng = Address(self.run_seed, self.n_decisions).rng(Stream.EXPLORATION)
        self.n_decisions += 1
        low, high = self.planner.low, self.planner.high
        if hasattr(self.model, "fit") and self.num_timesteps < self.learning_starts:
            scaled, plan = rng.uniform(-1, 1, len(low)), None
            action = self.planner.unscale(scaled)
        else:
            begin = time.perf_counter()
            shown: Any = self._last_obs if self._vec_normalize_env is None else self._last_original_obs
            state = self.model.sync(self.env) if self._is_simulator else shown[0]
            self.planner.reset()
            action, plan = self.planner.plan(state, mean=None if previous is None else previous.mean, rng=rng)
            self.logger.record_mean("time/seconds_per_action", time.perf_counter() - begin)
            self.logger.record_mean("planner/predicted_return", plan.best_return)
            self.logger.record_mean("planner/std", float(plan.std.mean()))
            scaled = 2.0 * (action - low) / np.where(high > low, high - low, 1.0) - 1.0
        return inside(action, self.action_space), scaled, plan

    def _step(self, action: np.ndarray, scaled: np.ndarray, callback: BaseCallback) -> tuple[bool, bool]:
        """:return: whether to go on, and whether the episode is over"""
        assert self.env is not None and self.replay_buffer is not None
        new_obs, rewards, dones, infos = self.env.step(action[None])
        self.num_timesteps += 1
        callback.update_locals(locals())
        if not callback.on_step():
            return False, False
        self._update_info_buffer(infos, dones)
        transition: Any = (self.replay_buffer, scaled[None], new_obs, rewards, dones, infos)
        OffPolicyAlgorithm._store_transition(self, *transition)  # type: ignore[arg-type]
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        return True, bool(dones[0])

    def _fit(self, gradient_steps: int) -> None:
        if not hasattr(self.model, "fit") or self.num_timesteps < self.learning_starts or gradient_steps == 0:
            return
        metrics = self.model.fit(self.replay_buffer, gradient_steps, self.batch_size)
        self._n_updates += gradient_steps
        for name, value in {"n_updates": self._n_updates, **metrics}.items():
            self.logger.record(f"train/{name}", value)

    def dump_logs(self) -> None:
        """Write the log table; the same rows as SB3's off-policy classes."""
        OffPolicyAlgorithm.dump_logs(self)  # type: ignore[arg-type]

    # ---------------------------------------------------------------- files

    @property
    def network(self) -> Any:
        """The network of a learned model."""
        return self.model.network

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "model", "_env_states"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return (["network"] if isinstance(self.model, LearnedModel) else []), []
