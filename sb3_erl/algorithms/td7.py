"""TD7: TD3 with learned state-action embeddings, policy checkpoints and prioritised replay."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TrainFreq, TrainFrequencyUnit

from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_choice, check_common, check_learn, check_range, resolve_policy_and_env, spaces_checked
from sb3_erl.engine.stepwise import StepwiseOffPolicyAlgorithm
from sb3_erl.learners.assessment import Assessment, AssessmentSettings
from sb3_erl.learners.base import Precision
from sb3_erl.learners.td7 import TD7Learner, TD7Settings
from sb3_erl.policies.td7 import TD7Policy
from sb3_erl.rollouts.exploration import NoiseExploration
from sb3_erl.rollouts.jobs import Explorer
from sb3_erl.rollouts.soundness import environments_watched

EVERY_STEP = TrainFreq(1, TrainFrequencyUnit.STEP)


class TD7(StepwiseOffPolicyAlgorithm):
    """
    TD7: TD3 with state-action learned embeddings (SALE), policy checkpoints, LAP replay and, offline, behavior cloning.

    Fujimoto, Chang, Smith, Gu, Precup, Meger (NeurIPS 2023), https://arxiv.org/abs/2306.02451; authors' code: sfujim/TD7.
    The policy is frozen while its training episodes assess it; then one update is made per environment step. The policy
    with the best worst return is kept as checkpoint, with which ``predict(deterministic=True)`` acts.

    Differences from the authors' code:

    1. a true terminal that falls on the time limit's step is stored as terminal;
    2. several environments: an assessment has at least as many episodes as there are environments, counted in the order
       in which they start; episodes that run while the weights change are stored and paid for, but not judged;
    3. every episode is reset with a seed of its own, and ``learn`` begins with new episodes, interrupted ones being
       stored as truncated; so a run that is saved and loaded continues bit for bit;
    4. updates owed when ``learn`` ends are made when the interrupted assessment is completed by the next ``learn``.

    :param policy: ``"MlpPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: of encoder, critic and actor, a float or a schedule
    :param buffer_size: transitions in the replay buffer
    :param learning_starts: environment steps of the random warm-up, which lasts to the end of the running episode
    :param batch_size: transitions per update
    :param gamma: discount factor in [0, 1]
    :param train_freq: only 1: when to train is decided by the assessment, or without checkpoints after each step
    :param gradient_steps: -1 for one update per environment step with the policy, else updates per training call
    :param action_noise: exploration noise in place of ``exploration_noise``
    :param replay_buffer_class: :class:`~sb3_erl.buffers.lap.LAPReplayBuffer` if ``None``; with another SB3 buffer there are
        no priorities
    :param replay_buffer_kwargs: further arguments of the replay buffer
    :param policy_delay: updates per actor step
    :param target_update_interval: updates between two hard copies of all targets
    :param target_policy_noise: std of target smoothing
    :param target_noise_clip: bound of target smoothing
    :param exploration_noise: std of the Gaussian exploration noise, for actions in [-1, 1]
    :param lap_alpha: exponent of the priorities
    :param lap_min_priority: floor of the priorities, before the exponent
    :param offline: learn from a filled replay buffer alone: ``learn`` counts updates and steps no environment
    :param bc_coef: weight of the behavior-cloning term, offline only
    :param use_checkpoints: assess policies and keep the best; ``None`` for yes online, no offline
    :param early_assessment_episodes: episodes per assessment in the early phase
    :param late_assessment_episodes: episodes per assessment in the late phase
    :param updates_before_late_phase: updates after which the late phase begins
    :param checkpoint_reset_weight: factor on the checkpoint's score at that moment
    :param checkpoint_reset_rule: ``"scale"`` (authors' code: multiply, which raises a negative score) or ``"relax"`` (lower
        it by the same share of its absolute value)
    :param encoder_lr: learning rate of the encoder, ``None`` for ``learning_rate``
    :param critic_lr: learning rate of the critic, ``None`` for ``learning_rate``
    :param actor_lr: learning rate of the actor, ``None`` for ``learning_rate``
    :param deploy: who acts in ``predict``: ``"checkpoint"`` or ``"learner"`` (the live actor); ``None`` for the checkpoint
        where there is one
    :param precision: ``"fp32"``, or ``"bf16"`` for products in bfloat16, which pays on hardware with instructions for it
    :param compile: translate the losses with ``torch.compile``; pays after some ten thousand updates
    :param policy_kwargs: arguments of :class:`~sb3_erl.policies.td7.TD7Policy`
    :param stats_window_size: episodes in the logged means
    :param tensorboard_log: folder of TensorBoard logs, ``None`` for none
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: seed of the run; all random numbers of a run derive from it
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``
    :raises ValueError: if an argument is out of range or the environment's spaces are not supported
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TD7Policy}
    policy: TD7Policy
    learner: TD7Learner

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 25_000,
        batch_size: int = 256,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = -1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        policy_delay: int = 2,
        target_update_interval: int = 250,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        exploration_noise: float = 0.1,
        lap_alpha: float = 0.4,
        lap_min_priority: float = 1.0,
        offline: bool = False,
        bc_coef: float = 0.1,
        use_checkpoints: bool | None = None,
        early_assessment_episodes: int = 1,
        late_assessment_episodes: int = 20,
        updates_before_late_phase: int = 750_000,
        checkpoint_reset_weight: float = 0.9,
        checkpoint_reset_rule: Literal["scale", "relax"] = "scale",
        encoder_lr: float | None = None,
        critic_lr: float | None = None,
        actor_lr: float | None = None,
        deploy: Literal["checkpoint", "learner"] | None = None,
        precision: Precision = "fp32",
        compile: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        policy, env = resolve_policy_and_env(policy, env, "MlpPolicy", list(self.policy_aliases))
        self._init_stepwise()
        self.policy_delay = policy_delay
        self.target_update_interval = target_update_interval
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.exploration_noise = exploration_noise
        self.lap_alpha = lap_alpha
        self.lap_min_priority = lap_min_priority
        self.offline = offline
        self.bc_coef = bc_coef
        self.use_checkpoints = use_checkpoints
        self.early_assessment_episodes = early_assessment_episodes
        self.late_assessment_episodes = late_assessment_episodes
        self.updates_before_late_phase = updates_before_late_phase
        self.checkpoint_reset_weight = checkpoint_reset_weight
        self.checkpoint_reset_rule = checkpoint_reset_rule
        self.encoder_lr, self.critic_lr, self.actor_lr = encoder_lr, critic_lr, actor_lr
        self.deploy = deploy
        self.precision, self.compile = precision, compile
        self.assessment_state: dict[str, Any] = {}
        with spaces_checked(self, verbose, policy_kwargs):
            super().__init__(**known_to(super().__init__, locals()), support_multi_env=True, sde_support=False)
        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        """:raises ValueError: naming the argument that is out of range"""
        check_common(self)
        self._check_update_options()
        counts = ("buffer_size", "batch_size", "policy_delay", "target_update_interval")
        for name in (*counts, "early_assessment_episodes", "late_assessment_episodes"):
            check_range(name, getattr(self, name), 1, integer=True)
        check_range("gradient_steps", self.gradient_steps, -1, integer=True)
        check_range("gamma", self.gamma, 0, 1)
        check_range("checkpoint_reset_weight", self.checkpoint_reset_weight, 0, 1)
        noises = ("target_policy_noise", "target_noise_clip", "exploration_noise")
        for name in ("learning_starts", *noises, "lap_alpha", "lap_min_priority", "bc_coef", "updates_before_late_phase"):
            check_range(name, getattr(self, name), 0)
        for name in ("encoder_lr", "critic_lr", "actor_lr"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0)
        check_choice("checkpoint_reset_rule", self.checkpoint_reset_rule, ("scale", "relax"))
        check_choice("deploy", self.deploy, (None, "checkpoint", "learner"))
        if self.deploy == "checkpoint" and not self._has_checkpoints:
            raise ValueError("deploy must be 'learner' or None where use_checkpoints is off; got 'checkpoint'")
        if self.offline and self.use_checkpoints:
            raise ValueError("use_checkpoints must be None or False with offline=True: no episode assesses the policy")

    @property
    def _has_checkpoints(self) -> bool:
        return not self.offline if self.use_checkpoints is None else self.use_checkpoints

    def _convert_train_freq(self) -> None:
        super()._convert_train_freq()
        if self.train_freq != EVERY_STEP:  # type: ignore[comparison-overlap]
            raise ValueError(
                f"train_freq must be 1: {type(self).__name__} trains after an assessment of its policy, or with "
                f"use_checkpoints=False after each step; got {self.train_freq}. Set gradient_steps for more or fewer updates"
            )

    def _setup_model(self) -> None:
        self._check_arguments()
        given = self.replay_buffer_class
        self.replay_buffer_class = LAPReplayBuffer if given is None else given
        try:
            super()._setup_model()
        finally:
            self.replay_buffer_class = given
        self._setup_addresses()
        self._setup_parts()
        self._forget_episodes()

    def _setup_parts(self) -> None:
        """Build learner and assessment; also runs in ``load``, before their tensors are loaded."""
        self.learner = TD7Learner(self.policy, self._learner_settings())
        self.encoder, self.actor, self.critic = self.policy.encoder, self.policy.actor, self.policy.critic
        self.assessment = Assessment(self.assessment_state, self._assessment_settings(), self.n_envs)

    def _learner_settings(self) -> TD7Settings:
        own = ("policy_delay", "target_update_interval", "target_policy_noise", "target_noise_clip")
        values = {name: getattr(self, name) for name in (*own, "lap_alpha", "lap_min_priority")}
        return TD7Settings(gamma=self.gamma, bc_coef=self.bc_coef if self.offline else 0.0, **values)

    def _assessment_settings(self) -> AssessmentSettings:
        return AssessmentSettings(
            self.early_assessment_episodes,
            self.late_assessment_episodes,
            self.updates_before_late_phase,
            self.checkpoint_reset_weight,
            self.checkpoint_reset_rule,
        )

    # ---------------------------------------------------------------- the loop

    def learn(
        self,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Any:
        """
        Train for a number of environment steps, or, offline, of gradient updates.

        :param total_timesteps: environment steps (offline: updates); floats such as ``1e6`` are fine
        :param callback: called at every vector step (offline: after every update)
        :param log_interval: episodes (offline: thousands of updates) between two log tables
        :param tb_log_name: name of the TensorBoard run, the class name by default
        :param reset_num_timesteps: whether to count from 0 again
        :param progress_bar: show a progress bar (needs tqdm and rich)
        :return: the model
        :raises ValueError: if ``total_timesteps`` is not positive, the environment is none, closed, or gives wrong shapes or
            what is not finite; offline if the replay buffer is empty
        :raises WorkerError: if an environment in another process failed, see ``docs/faults.md``
        """
        check_learn(self, total_timesteps, callback, log_interval)
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        self._warn_about_moving_statistics()
        with environments_watched(self.env), self._learning():
            total_timesteps, callback = self._begin_learn(total_timesteps, callback, reset_num_timesteps, name, progress_bar)
            callback.on_training_start(locals(), globals())
            if self.offline:
                self._learn_offline(total_timesteps, callback, log_interval)
            else:
                self._learn_online(total_timesteps, callback, log_interval)
            callback.on_training_end()
        return self

    def _learn_online(self, total_timesteps: int, callback: BaseCallback, log_interval: int) -> None:
        assert self.env is not None and self.replay_buffer is not None
        if self.num_timesteps >= total_timesteps:  # killed after its last checkpoint
            return
        self._begin_rollouts()
        goes_on = self._resume(callback)
        while goes_on and self.num_timesteps < total_timesteps:
            self._between_steps()
            rollout = self.collect_rollouts(
                self.env, callback, EVERY_STEP, self.replay_buffer, None, int(self.learning_starts), log_interval
            )
            if not rollout.continue_training:
                break
            due = self._updates_due()
            if due is not None:
                self.train(due, self.batch_size)
                goes_on = self._after_training(callback)

    def _warn_about_moving_statistics(self) -> None:
        if self._has_checkpoints and self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs:
            warnings.warn(
                "use_checkpoints with VecNormalize(norm_obs=True): a checkpoint meets newer statistics than those it was "
                "scored with; consider norm_obs=False, TD7 normalizes its embeddings itself",
                stacklevel=3,
            )

    def _resume(self, callback: BaseCallback) -> bool:
        """Complete what the previous ``learn`` left undone between two assessments; returns whether training goes on."""
        return True

    @property
    def _deployed_is_learner(self) -> bool:
        return self.deploy == "learner" or not self._has_checkpoints

    def _keep_checkpoint(self) -> None:
        if not self._deployed_is_learner:
            self.policy.deploy(self.actor)

    def _after_training(self, callback: BaseCallback) -> bool:
        """After the updates that were due; returns whether training goes on."""
        if self._deployed_is_learner:
            self.policy.deploy(self.actor)
        return True

    def _updates_due(self) -> int | None:
        """Judge the policy; on acceptance it becomes the checkpoint, before any update. ``None``: nothing to do yet."""
        assessment = self.assessment
        if not self._has_checkpoints:
            owed, assessment.state["owed"] = assessment.owed, 0
            return self._payment(owed) if owed > 0 else None
        verdict = assessment.verdict
        if verdict is None:
            return None
        if verdict == "accept":
            self._keep_checkpoint()
        due = assessment.close(verdict, self.learner_updates, self._payment(assessment.owed))
        self._log_assessment(assessment)
        return due

    def _payment(self, owed: int) -> int:
        """Updates that pay for so many steps."""
        return owed if self.gradient_steps < 0 else self.gradient_steps

    def _log_assessment(self, assessment: Assessment) -> None:
        self.logger.record("checkpoint/score", assessment.score)
        self.logger.record("checkpoint/episodes_per_assessment", assessment.n_episodes)
        self.logger.record("checkpoint/n_accepted", assessment.state["n_accepted"])
        self.logger.record("checkpoint/n_rejected", assessment.state["n_rejected"])

    def _learn_offline(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        assert self.replay_buffer is not None
        if self.replay_buffer.size() == 0:
            raise ValueError(
                "replay_buffer must hold transitions for offline learning; it is empty. Fill it with load_replay_buffer(path) "
                "or sb3_erl.buffers.offline.fill_replay_buffer(model, dataset)"
            )
        callback.on_rollout_start()
        while self.num_timesteps < total_timesteps:
            self._at_boundary()
            self.train(1, self.batch_size)
            self.policy.deploy(self.actor)
            self.num_timesteps += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            callback.update_locals(locals())
            if not callback.on_step():
                return
            if log_interval is not None and self.num_timesteps % (1000 * log_interval) == 0:
                self.dump_logs()
        callback.on_rollout_end()

    # ---------------------------------------------------------------- what the assessment hears

    def _exploration(self) -> Explorer | None:
        n_actions = get_action_dim(self.action_space)
        noise = self.action_noise
        if noise is None:
            noise = NormalActionNoise(np.zeros(n_actions), np.full(n_actions, self.exploration_noise))
        return NoiseExploration(noise)

    def _episode_begins(self, index: int) -> None:
        self.assessment.begin(index)

    def _episode_is_cut(self, index: int) -> None:
        self.assessment.abandon(index)

    def _steps_taken(self, n_steps: int) -> None:
        self.assessment.step(n_steps)

    def _episode_ends(self, index: int, total_reward: float) -> None:
        if self.assessment.finish(index, total_reward):
            self._judge_return(total_reward)

    def _judge_return(self, total_reward: float) -> None:
        """A judged episode ended with this undiscounted return."""
        self.logger.record("rollout/learner_ep_rew_mean", total_reward)

    # ---------------------------------------------------------------- learning

    def _sample(self, batch_size: int) -> Any:
        buffer = self.replay_buffer
        if isinstance(buffer, LAPReplayBuffer):
            return buffer.sample(batch_size, self._vec_normalize_env, self.learner.priority_set)
        return super()._sample(batch_size)

    @property
    def optimizer_rates(self) -> dict[str, float]:
        """Learning rates of encoder, critic and actor that were given; see :attr:`LearnerHostMixin.optimizer_rates`."""
        rates = {f"{name}.optimizer": getattr(self, f"{name}_lr") for name in ("encoder", "critic", "actor")}
        return {name: rate for name, rate in rates.items() if rate is not None}

    @property
    def learner_agent(self) -> BasePolicy:
        """The live actor with the fixed encoder; has ``predict``, for ``evaluate_policy``."""
        return self.actor  # type: ignore[return-value]

    # ---------------------------------------------------------------- saving

    def _excluded_save_params(self) -> list[str]:
        own = ["encoder", "actor", "critic", "learner", "assessment"]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *self.learner.optimizers], []
