"""TD7: TD3 with learned state-action embeddings, policy checkpoints and prioritized replay."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.engine.stepwise import StepwiseAlgorithm
from sb3_erl.learners.assessment import Assessment, AssessmentSettings
from sb3_erl.learners.td7 import TD7Learner, TD7Settings
from sb3_erl.policies.td7 import TD7_POLICIES, TD7Policy
from sb3_erl.rollouts.exploration import NoiseExploration
from sb3_erl.rollouts.jobs import Explorer


class TD7(StepwiseAlgorithm):
    """
    TD7: TD3 with state-action learned embeddings (SALE), policy checkpoints, LAP replay and, offline, behavior cloning.

    For continuous actions: ``TD7("HalfCheetah-v5", verbose=1).learn(300_000)``.

    Fujimoto, Chang, Smith, Gu, Precup, Meger (NeurIPS 2023), https://arxiv.org/abs/2306.02451; authors' code: sfujim/TD7.
    The policy is frozen while its training episodes assess it; then one update is made per environment step. The policy
    with the best worst return is kept as checkpoint, with which ``predict(deterministic=True)`` acts.

    Differences from the authors' code:

    1. a true terminal that falls on the time limit's step is stored as terminal;
    2. several environments: an assessment has at least as many episodes as there are environments, counted in the order
       in which they start; episodes that run while the weights change are stored and updates are made for them, but their
       returns do not count;
    3. every episode is reset with a seed of its own, and ``learn`` begins with new episodes, interrupted ones being
       stored as truncated; so a run that is saved and loaded continues bit for bit;
    4. if ``learn`` ends inside an assessment, its updates are made when the next ``learn`` has completed it.

    :param replay_buffer_class: :class:`~sb3_erl.buffers.lap.LAPReplayBuffer` if ``None``; with another SB3 buffer there are
        no priorities
    :param action_noise: exploration noise in place of ``exploration_noise``
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
    :param policy_kwargs: arguments of :class:`~sb3_erl.policies.td7.TD7Policy`
    :raises ValueError: if an argument is out of range or the environment's spaces are not supported

    All other arguments are those of :class:`~sb3_erl.engine.stepwise.StepwiseAlgorithm`.
    """

    reported_candidates = ("checkpoint",)
    policy_aliases = TD7_POLICIES
    policy: TD7Policy
    learner: TD7Learner

    @inherits_arguments()
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
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
        **kwargs: Any,
    ):
        self.policy_delay, self.target_update_interval = policy_delay, target_update_interval
        self.target_policy_noise, self.target_noise_clip = target_policy_noise, target_noise_clip
        self.exploration_noise = exploration_noise
        self.lap_alpha, self.lap_min_priority = lap_alpha, lap_min_priority
        self.offline, self.bc_coef, self.use_checkpoints = offline, bc_coef, use_checkpoints
        self.early_assessment_episodes = early_assessment_episodes
        self.late_assessment_episodes = late_assessment_episodes
        self.updates_before_late_phase = updates_before_late_phase
        self.checkpoint_reset_weight, self.checkpoint_reset_rule = checkpoint_reset_weight, checkpoint_reset_rule
        self.encoder_lr, self.critic_lr, self.actor_lr = encoder_lr, critic_lr, actor_lr
        self.deploy = deploy
        self.assessment_state: dict[str, Any] = {}
        super().__init__(policy, env, learning_rate, **kwargs)

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        counts = ("policy_delay", "target_update_interval", "early_assessment_episodes", "late_assessment_episodes")
        for name in counts:
            check_range(name, getattr(self, name), 1, integer=True)
        check_range("checkpoint_reset_weight", self.checkpoint_reset_weight, 0, 1)
        noises = ("target_policy_noise", "target_noise_clip", "exploration_noise")
        for name in (*noises, "lap_alpha", "lap_min_priority", "bc_coef", "updates_before_late_phase"):
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

    def _setup_parts(self) -> None:
        self.learner = TD7Learner(self.policy, self._learner_settings())
        self.encoder, self.actor, self.critic = self.policy.encoder, self.policy.actor, self.policy.critic
        self.assessment = Assessment(self.assessment_state, self._assessment_settings(), self.n_envs)

    def _default_buffer_class(self) -> type[ReplayBuffer]:
        return LAPReplayBuffer

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

    # ---------------------------------------------------------------- training

    def _train_loop(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        if self._has_checkpoints and self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs:
            warnings.warn(
                "use_checkpoints with VecNormalize(norm_obs=True): a checkpoint acts on newer statistics than those it was "
                "scored with; consider norm_obs=False, TD7 normalizes its embeddings itself",
                stacklevel=3,
            )
        loop = self._train_offline if self.offline else super()._train_loop
        loop(total_timesteps, callback, log_interval)

    @property
    def _deployed_is_learner(self) -> bool:
        return self.deploy == "learner" or not self._has_checkpoints

    def _keep_checkpoint(self) -> None:
        if not self._deployed_is_learner:
            self.policy.deploy(self.actor)

    def _after_training(self, callback: BaseCallback) -> bool:
        if self._deployed_is_learner:
            self.policy.deploy(self.actor)
        return True

    def _exploration(self) -> Explorer | None:
        n_actions = get_action_dim(self.action_space)
        noise = self.action_noise
        if noise is None:
            noise = NormalActionNoise(np.zeros(n_actions), np.full(n_actions, self.exploration_noise))
        return NoiseExploration(noise)

    def _sample(self, batch_size: int) -> Any:
        buffer = self.replay_buffer
        if isinstance(buffer, LAPReplayBuffer):
            return buffer.sample(batch_size, self._vec_normalize_env, self.learner.priority_set)
        return super()._sample(batch_size)

    @property
    def _optimizer_rates(self) -> dict[str, float]:
        rates = {name: getattr(self, name.replace(".optimizer", "_lr")) for name in self.learner.optimizers}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def candidates_for_report(self) -> dict[str, Any]:
        """See :meth:`~sb3_erl.engine.model.EvolvingModel.candidates_for_report`."""
        checkpoint = {} if self._deployed_is_learner else {"checkpoint": in_space(self.policy.deployed)}
        return {"learner": self.learner_agent, **checkpoint}

    # ---------------------------------------------------------------- saving

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "encoder", "critic"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *self.learner.optimizers], []
