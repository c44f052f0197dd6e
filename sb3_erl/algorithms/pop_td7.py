"""PopTD7: several TD7 learners explore with one replay buffer, then the best of them goes on alone."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.algorithms.td7 import EVERY_STEP, TD7
from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.arguments import known_to
from sb3_erl.core.checks import check_choice, check_range
from sb3_erl.learners.assessment import Assessment, AssessmentSettings
from sb3_erl.learners.base import Precision
from sb3_erl.learners.td7 import TD7Learner
from sb3_erl.policies.td7 import PopTD7Policy
from sb3_erl.rollouts.jobs import Explorer


class PopTD7(TD7):
    """
    A population of TD7 learners in two phases.

    Phase 1 (exploration): every individual, a complete TD7, is tried and trained in turns of one assessment; all
    transitions go into one replay buffer, with priorities per individual. Phase 2 (exploitation): the best individual
    alone goes on. The idea is that of a student's report on TD7 without code or numbers; what it leaves open is decided
    here:

    1. the turn goes to the individual with the fewest own steps, and an individual owes one update for each of its steps,
       so steps and updates add up to those of TD7;
    2. phase 1 ends with the first assessment after ``explore_fraction`` of the first ``learn`` call;
    3. the best individual has the highest mean of its last training returns; the choice is made once;
    4. no crossover, mutation or copying of individuals (``copy_interval`` allows copies).

    :param pop_size: number of individuals, at least 1 (with 1 it is TD7)
    :param explore_fraction: share of the first ``learn`` call's steps that phase 1 takes
    :param explore_steps: the same as a number of steps, overrides ``explore_fraction``
    :param update_budget: ``"own"``: an individual makes one update per step of its own; ``"population"``: one per step of
        anybody since its last training
    :param priorities: ``"individual"`` or ``"shared"`` (one set, the last writer wins)
    :param selection: the best individual by ``"training"`` returns, or by an ``"evaluation"`` without noise at the end of
        phase 1, whose steps count and are owed by the winner
    :param selection_window: training returns that count
    :param n_selection_episodes: episodes of that evaluation
    :param catch_up: share, in [0, 1], of the updates that the winner lags behind the steps taken which it makes at once
        when phase 2 begins
    :param copy_interval: assessments in phase 1 between two copies of the best individual over the worst, ``None`` for none
    :param keep_losers: keep the others' networks and priorities in phase 2
    :raises ValueError: if an argument is out of range or the environment's spaces are not supported

    All other arguments are those of :class:`~sb3_erl.algorithms.td7.TD7`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": PopTD7Policy}
    policy: PopTD7Policy  # type: ignore[assignment]

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
        early_assessment_episodes: int = 1,
        late_assessment_episodes: int = 20,
        updates_before_late_phase: int = 750_000,
        checkpoint_reset_weight: float = 0.9,
        checkpoint_reset_rule: Literal["scale", "relax"] = "scale",
        encoder_lr: float | None = None,
        critic_lr: float | None = None,
        actor_lr: float | None = None,
        deploy: Literal["checkpoint", "learner"] | None = None,
        pop_size: int = 3,
        explore_fraction: float = 0.25,
        explore_steps: int | None = None,
        update_budget: Literal["own", "population"] = "own",
        priorities: Literal["individual", "shared"] = "individual",
        selection: Literal["training", "evaluation"] = "training",
        selection_window: int = 10,
        n_selection_episodes: int = 5,
        catch_up: float = 0.0,
        copy_interval: int | None = None,
        keep_losers: bool = True,
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
        self.pop_size = pop_size
        self.explore_fraction, self.explore_steps = explore_fraction, explore_steps
        self.update_budget, self.priorities = update_budget, priorities
        self.selection, self.selection_window = selection, selection_window
        self.n_selection_episodes = n_selection_episodes
        self.catch_up, self.copy_interval, self.keep_losers = catch_up, copy_interval, keep_losers
        self.turn = 0
        """Individual that acts and learns now."""
        self.winner: int | None = None
        """Individual of phase 2, ``None`` in phase 1."""
        self.members = list(range(pop_size)) if isinstance(pop_size, int) else []
        """Individuals whose networks are kept."""
        self.switch_at: int | None = None
        """Step at which phase 1 ends, fixed by the first ``learn``."""
        self.n_assessments = 0
        self.own_steps = [0] * len(self.members)
        self.own_updates = [0] * len(self.members)
        self.paid_until = [0] * len(self.members)
        """Steps of anybody at each individual's last training."""
        self.last_returns: list[list[float]] = [[] for _ in self.members]
        self.assessment_states: list[dict[str, Any]] = [{} for _ in self.members]
        self.n_policy_steps = 0
        """Steps of all individuals, those of the evaluation that chooses the winner among them."""
        self.is_choosing = False
        """Whether phase 1 is over and the evaluation that chooses the winner is not."""
        self.owed_by_winner = 0
        self._noise_free = False
        super().__init__(**known_to(super().__init__, locals()))

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        for name in ("pop_size", "selection_window", "n_selection_episodes"):
            check_range(name, getattr(self, name), 1, integer=True)
        if len(self.members) != self.pop_size and (self.winner is None or len(self.members) > 1):
            raise ValueError(
                f"pop_size must stay as it was saved, {len(self.members)} individuals; got {self.pop_size} instead. "
                "Make a new model for another population size"
            )
        for name in ("explore_fraction", "catch_up"):
            check_range(name, getattr(self, name), 0, 1)
        for name in ("explore_steps", "copy_interval"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1, integer=True)
        check_choice("update_budget", self.update_budget, ("own", "population"))
        check_choice("priorities", self.priorities, ("individual", "shared"))
        check_choice("selection", self.selection, ("training", "evaluation"))

    def _setup_model(self) -> None:
        self._check_arguments()
        policy_kwargs, buffer_kwargs = self.policy_kwargs, self.replay_buffer_kwargs
        self.policy_kwargs = {**policy_kwargs, "n_members": len(self.members)}
        if issubclass(self.replay_buffer_class or LAPReplayBuffer, LAPReplayBuffer) and self.priorities == "individual":
            self.replay_buffer_kwargs = {**buffer_kwargs, "n_priorities": len(self.members)}
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs, self.replay_buffer_kwargs = policy_kwargs, buffer_kwargs

    def _setup_parts(self) -> None:
        settings = self._assessment_settings()
        self.individuals = self.policy.individuals
        self.learners, self.assessments = [], []
        for place, state in enumerate(self.assessment_states):
            priority_set = place if self.priorities == "individual" else 0
            member: Any = self.individuals[place]
            self.learners.append(TD7Learner(member, self._learner_settings(), priority_set))
            self.assessments.append(Assessment(state, settings, self.n_envs))
        self._give_turn(self.turn)

    def _give_turn(self, place: int) -> None:
        """The individual at this place among those that are kept acts and learns from now on."""
        member = self.policy.activate(place)
        self.turn = place
        self.learner, self.assessment = self.learners[place], self.assessments[place]
        self.encoder, self.actor, self.critic = member.encoder, member.actor, member.critic

    # ---------------------------------------------------------------- the phases

    def _learn_online(self, total_timesteps: int, callback: BaseCallback, log_interval: int) -> None:
        if self.switch_at is None:
            fraction = int(self.explore_fraction * total_timesteps)
            self.switch_at = fraction if self.explore_steps is None else self.explore_steps
        super()._learn_online(total_timesteps, callback, log_interval)

    def _resume(self, callback: BaseCallback) -> bool:
        goes_on = not self.is_choosing or self._begin_exploitation(callback)
        if not self._is_resumed:  # then it is the rest of a call that did so
            self._deploy_best()
        return goes_on

    def _after_training(self, callback: BaseCallback) -> bool:
        """After an assessment: whose turn it is, who is deployed, and whether phase 2 begins."""
        goes_on = True
        self.n_assessments += 1
        assert self.switch_at is not None
        if self.winner is None:
            if self.copy_interval is not None and self.n_assessments % self.copy_interval == 0:
                self._copy_best()
            if self.n_stored >= self.switch_at:
                goes_on = self._begin_exploitation(callback)
            else:
                self._give_turn(int(np.argmin(self.own_steps)))
        self._deploy_best()
        self._log_members()
        return goes_on

    def _deploy_best(self) -> None:
        best = self.individuals[self.best]
        self.policy.deploy(best.actor if self._deployed_is_learner else best.deployed)  # type: ignore[arg-type]

    @property
    def best(self) -> int:
        """Place of the individual with the highest mean of its last training returns, in phase 2 that of the winner."""
        return self.members.index(self.winner) if self.winner is not None else int(np.argmax(self._scores()))

    def _scores(self) -> list[float]:
        return [float(np.mean(returns)) if returns else -np.inf for returns in self.last_returns]

    def _begin_exploitation(self, callback: BaseCallback) -> bool:
        """Choose the winner; ``False`` if a callback or the budget came first, then the next ``learn`` begins it anew."""
        place = self.best
        if self.selection == "evaluation":
            self.is_choosing = True
            scores = self._evaluate_members(callback)
            if scores is None:
                return False
            place = int(np.argmax(scores))
        self.is_choosing = False
        self.winner = self.members[place]
        self._give_turn(place)
        self.assessment.step(self.owed_by_winner)
        self.owed_by_winner = 0
        lag = self.n_policy_steps - self.own_updates[place] - self.assessment.owed
        if not self.keep_losers:
            self._free_losers(place)
        n_updates = int(self.catch_up * lag)
        self.assessment.pass_updates(self.learner_updates, n_updates)
        self.train(n_updates, self.batch_size)
        return True

    def _evaluate_members(self, callback: BaseCallback) -> list[float] | None:
        """Mean noise-free returns of all live policies; the steps are counted, stored and owed by the winner."""
        assert self.env is not None and self.replay_buffer is not None
        judge, scores = AssessmentSettings(early_episodes=self.n_selection_episodes), []
        self._noise_free = True
        try:
            for place in range(len(self.members)):
                self._give_turn(place)
                self.assessment = Assessment({"score": -np.inf}, judge, self.n_envs)
                self._cut_episodes()
                self._trial_returns: list[float] = []
                while self.assessment.verdict is None:
                    if self.num_timesteps >= self._total_timesteps:
                        return None
                    starts = int(self.learning_starts)
                    rollout = self.collect_rollouts(self.env, callback, EVERY_STEP, self.replay_buffer, None, starts)
                    if not rollout.continue_training:
                        return None
                scores.append(float(np.mean(self._trial_returns)))
        finally:
            self._noise_free = False
            self._cut_episodes()
            self._give_turn(self.turn)
        return scores

    def _free_losers(self, place: int) -> None:
        self.policy.keep_only(place)
        if isinstance(self.replay_buffer, LAPReplayBuffer) and self.priorities == "individual":
            self.replay_buffer.trees = [self.replay_buffer.trees[place]]
        for name in ("members", "own_steps", "own_updates", "paid_until", "last_returns", "assessment_states"):
            setattr(self, name, [getattr(self, name)[place]])
        self.turn = 0
        self._setup_parts()

    def _copy_best(self) -> None:
        """Overwrite the networks and optimizers of the worst individual by those of the best; checkpoints stay."""
        scores = self._scores()
        best, worst = int(np.argmax(scores)), int(np.argmin(scores))
        if best != worst:
            self.policy.copy_member(best, worst)

    def _log_members(self) -> None:
        self.logger.record("population/phase", 1 if self.winner is None else 2)
        self.logger.record("population/winner", -1 if self.winner is None else self.winner)
        for place, member in enumerate(self.members):
            values = {
                "own_steps": self.own_steps[place],
                "n_updates": self.own_updates[place],
                "training_return": self._scores()[place],
                "checkpoint_score": self.assessments[place].score,
            }
            for name, value in values.items():
                self.logger.record(f"individual_{member}/{name}", value)

    # ---------------------------------------------------------------- accounts

    def _steps_taken(self, n_steps: int) -> None:
        self.n_policy_steps += n_steps
        if self._noise_free:
            self.owed_by_winner += n_steps
        else:
            self.own_steps[self.turn] += n_steps
        super()._steps_taken(n_steps)

    def _judge_return(self, total_reward: float) -> None:
        super()._judge_return(total_reward)
        if self._noise_free:
            self._trial_returns.append(total_reward)
        else:
            self.last_returns[self.turn] = [*self.last_returns[self.turn], total_reward][-self.selection_window :]

    def _payment(self, owed: int) -> int:
        last, self.paid_until[self.turn] = self.paid_until[self.turn], self.n_policy_steps
        return super()._payment(self.n_policy_steps - last if self.update_budget == "population" else owed)

    def _exploration(self) -> Explorer | None:
        return None if self._noise_free else super()._exploration()

    def _keep_checkpoint(self) -> None:
        self.individuals[self.turn].deploy(self.actor)  # type: ignore[operator]

    # ---------------------------------------------------------------- learning

    @property
    def learner_updates(self) -> int:
        """See :attr:`LearnerHostMixin.learner_updates`."""
        return self.own_updates[self.turn]

    def train(self, gradient_steps: int, batch_size: int | None = None) -> None:
        """See :meth:`LearnerHostMixin.train`; the individual whose turn it is learns."""
        before = self._n_updates
        super().train(gradient_steps, batch_size)
        self.own_updates[self.turn] += self._n_updates - before

    def individual(self, index: int) -> BasePolicy:
        """
        :param index: number of an individual that is kept, from 0
        :return: its live actor; has ``predict``
        """
        if index not in self.members:
            raise IndexError(f"index must be one of {self.members}; got {index}")
        return self.individuals[self.members.index(index)].actor  # type: ignore[return-value]

    # ---------------------------------------------------------------- saving

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """
        See ``OffPolicyAlgorithm.load_replay_buffer``.

        :param path: file name or open file
        :param truncate_last_traj: for HER buffers only
        :raises ValueError: if the file holds another number of priority sets; the model then keeps its buffer
        """
        kept = self.replay_buffer
        super().load_replay_buffer(path, truncate_last_traj)
        wanted = len(self.members) if self.priorities == "individual" else 1
        found = len(getattr(self.replay_buffer, "trees", range(wanted)))  # a buffer without priorities fits as well
        if wanted != found:
            self.replay_buffer = kept
            raise ValueError(
                f"path must hold a replay buffer with {wanted} sets of priorities, one per individual; got one with {found}. "
                "Load a buffer of a PopTD7 with the same pop_size, priorities and keep_losers"
            )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "individuals", "learners", "assessments"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = [f"individuals.{i}.{name}" for i in range(len(self.members)) for name in self.learner.optimizers]
        return ["policy", *names], []
