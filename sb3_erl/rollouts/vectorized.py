"""The default back-end: jobs on the slots of the user's own VecEnv."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_erl.core.seeding import Address
from sb3_erl.rollouts.jobs import ActionMap, EpisodeBatch, Job, PopulationActor, Recorder
from sb3_erl.rollouts.phase import Phase
from sb3_erl.rollouts.slot_reset import SlotResetter
from sb3_erl.rollouts.soundness import NormalizerGuard


class VectorizedEvaluator:
    """
    One job per environment slot; a freed slot takes the next job; one batched forward serves all running jobs.

    Transitions are stored in job order. Fitness reads raw rewards although VecNormalize scales what the learner sees.

    The environments of a bare ``DummyVecEnv`` are stepped one by one, without the copies that its ``step`` makes; those of
    slots without a job rest. Of any other VecEnv, slots without a job are stepped too, because it steps all its environments,
    but neither counted, stored nor shown to callbacks as finished.

    A job that meets a reward or an observation that is not finite ends there and has failed: its fitness is NaN and nothing of
    it is stored. A VecNormalize that learns forgets that step.

    :param env: any SB3 VecEnv
    :param vec_normalize: the VecNormalize wrapper in ``env``, if there is one
    :param unscale_action: from [-1, 1] to the environment's box
    :param action_shape: shape of one action
    """

    def __init__(
        self, env: VecEnv, vec_normalize: VecNormalize | None, unscale_action: ActionMap, action_shape: tuple[int, ...]
    ):
        self.env = env
        self.vec_normalize = vec_normalize
        self.unscale_action = unscale_action
        self.action_shape = action_shape
        self.reset_slot = SlotResetter(env)
        self.guard = NormalizerGuard(vec_normalize)
        self.knows_behavior = env.has_attr("current_behavior")

    @property
    def inner_envs(self) -> list[gym.Env] | None:
        """The environments, if stepping them one by one is all that ``env.step`` does."""
        env = self.env
        is_plain = type(env) is DummyVecEnv and env.keys == [None] and "step" not in vars(env)
        return env.envs if isinstance(env, DummyVecEnv) and is_plain else None

    def evaluate(
        self, jobs: Sequence[Job], actor: PopulationActor, address: Address, recorder: Recorder
    ) -> EpisodeBatch | None:
        """See :class:`~sb3_erl.rollouts.jobs.Evaluator`."""
        return Phase(self, jobs, actor, address, recorder).run()
