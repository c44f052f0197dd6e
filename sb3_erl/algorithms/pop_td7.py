"""PopTD7: several TD7 learners explore with one replay buffer, then the best of them goes on alone."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.algorithms.td7 import TD7
from sb3_erl.buffers.lap import LAPReplayBuffer
from sb3_erl.core.action_spaces import in_space
from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_choice, check_range, warn_caller
from sb3_erl.engine.members import Member, Members, Trials, check_pop_size, new_states, read_old_attributes
from sb3_erl.learners.td7 import TD7Learner
from sb3_erl.policies.td7 import POP_TD7_POLICIES, PopTD7Policy
from sb3_erl.rollouts.jobs import Explorer


class PopTD7(TD7):
    """
    A population of TD7 learners in two phases.

    For continuous actions and unlucky seeds: ``PopTD7("Hopper-v5", verbose=1).learn(1_000_000)``. Parameters not listed here
    are those of :class:`~sb3_erl.algorithms.td7.TD7`.

    Phase 1 (exploration): the individuals, each a complete TD7, act and train one after the other, for one assessment each;
    all transitions go into one replay buffer, with priorities per individual. Phase 2 (exploitation): the best individual
    goes on alone. The idea is from a student's report on TD7 without code or numbers; what it leaves open is decided here:

    1. the individual with the fewest own steps is next, and makes one update for each of its steps, so steps and updates
       add up to those of TD7;
    2. phase 1 ends with the first assessment after ``explore_fraction`` of the first ``learn`` call, warm-up included, but
       not before each individual has a training return;
    3. the best individual has the highest mean of its last training returns; the choice is made once;
    4. no crossover, mutation or copying of individuals (``copy_interval`` allows copies).

    :param pop_size: number of individuals, at least 1 (with 1 it is TD7)
    :param explore_fraction: share of the first ``learn`` call's steps that phase 1 takes
    :param explore_steps: the same as a number of steps, overrides ``explore_fraction``
    :param update_budget: ``"own"``: an individual makes one update per step of its own; ``"population"``: one per step of
        any individual since its last training
    :param priorities: ``"individual"`` or ``"shared"`` (one set, the last writer wins)
    :param selection: the best individual by ``"training"`` returns, or by an ``"evaluation"`` without noise at the end of
        phase 1, whose steps count and for which the winner makes the updates
    :param selection_window: training returns that count
    :param n_selection_episodes: episodes of that evaluation
    :param catch_up: share, in [0, 1], of the updates missing to one per step that the winner makes when phase 2 begins
    :param copy_interval: assessments in phase 1 between two copies of the best individual over the worst, ``None`` for none
    :param keep_losers: keep the others' networks and priorities in phase 2
    :raises ValueError: if an argument is out of range or the environment's spaces are not supported
    """

    policy_aliases = POP_TD7_POLICIES
    policy: PopTD7Policy  # type: ignore[assignment]

    @inherits_arguments("offline", "bc_coef", "use_checkpoints")
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 3e-4,
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
        **kwargs: Any,
    ):
        self.pop_size, self.explore_fraction, self.explore_steps = pop_size, explore_fraction, explore_steps
        self.update_budget, self.priorities = update_budget, priorities
        self.selection, self.selection_window, self.n_selection_episodes = selection, selection_window, n_selection_episodes
        self.catch_up, self.copy_interval, self.keep_losers = catch_up, copy_interval, keep_losers
        self.active = 0
        """Place, among those that are kept, of the individual that acts and learns now."""
        self.winner: int | None = None
        """Number of the individual of phase 2, ``None`` in phase 1."""
        self.member_states = new_states(pop_size)
        """What is saved of the individuals that are kept, beside their networks."""
        self.switch_at: int | None = None
        """Step at which phase 1 ends, fixed by the first ``learn``."""
        self.n_assessments, self.n_policy_steps = 0, 0
        """Assessments, and steps of all individuals, with those of the evaluation that chooses the winner."""
        self.is_choosing, self.trial_steps = False, 0
        """Whether that evaluation is not over, and its steps, for which the winner has to make updates."""
        super().__init__(policy, env, learning_rate, **kwargs)

    # ---------------------------------------------------------------- set-up

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_pop_size(self.pop_size, len(self.member_states), self.winner is not None)
        optional = [name for name in ("explore_steps", "copy_interval") if getattr(self, name) is not None]
        for name in ("selection_window", "n_selection_episodes", *optional):
            check_range(name, getattr(self, name), 1, integer=True)
        for name in ("explore_fraction", "catch_up"):
            check_range(name, getattr(self, name), 0, 1)
        check_choice("update_budget", self.update_budget, ("own", "population"))
        check_choice("priorities", self.priorities, ("individual", "shared"))
        check_choice("selection", self.selection, ("training", "evaluation"))

    def _setup_model(self) -> None:
        read_old_attributes(vars(self))
        super()._setup_model()

    def _policy_arguments(self) -> dict[str, Any]:
        return {"n_members": len(self.member_states)}

    @property
    def _n_priorities(self) -> int:
        return len(self.member_states) if self.priorities == "individual" else 1

    def _setup_parts(self) -> None:
        def make_learner(networks: Any, place: int) -> TD7Learner:
            return TD7Learner(networks, self._learner_settings(), place if self.priorities == "individual" else 0)

        self.members = Members(self.member_states, self.policy, make_learner, self._assessment_settings(), self.n_envs)
        self.individuals, self._trials = self.policy.individuals, Trials(self, self.n_selection_episodes)
        self._activate(self.active)

    @property
    def _member(self) -> Member:
        """The individual that acts and learns now."""
        return self.members[self.active]

    def _activate(self, place: int) -> None:
        """The individual at this place among those that are kept acts and learns from now on."""
        self.active, networks = place, self.policy.activate(place)
        self.learner, self.assessment = self._member.learner, self._member.assessment  # type: ignore[assignment]
        self.encoder, self.actor, self.critic = networks.encoder, networks.actor, networks.critic

    def _begin_online(self, callback: BaseCallback) -> bool:
        if self.switch_at is None:
            self.switch_at = self.explore_steps or int(self.explore_fraction * self._total_timesteps)
            if self.pop_size > 1 and self.switch_at <= self.learning_starts:
                warn_caller(
                    f"phase 1 ends at step {self.switch_at}, within the warm-up of learning_starts={self.learning_starts}: "
                    "each individual explores in one assessment only. Lower learning_starts or set explore_steps above it"
                )
        goes_on = not self.is_choosing or self._begin_exploitation(callback)
        if not self.run.is_resumed:  # then it is the rest of a call that did so
            self._deploy_best()
        return goes_on

    def _after_training(self, callback: BaseCallback) -> bool:
        assert self.switch_at is not None
        goes_on, self.n_assessments = True, self.n_assessments + 1
        if self.winner is None:
            if self.copy_interval is not None and self.n_assessments % self.copy_interval == 0:
                self.members.copy_best_over_worst()
            if self.n_stored >= self.switch_at and all(member.last_returns for member in self.members):
                goes_on = self._begin_exploitation(callback)
            else:
                self._activate(self.members.least_trained)
        self._deploy_best()
        self.members.log(self.logger, self.winner)
        return goes_on

    def _deploy_best(self) -> None:
        networks = self.members[self.best].networks
        self.policy.deploy(networks.actor if self._deployed_is_learner else networks.deployed)

    @property
    def best(self) -> int:
        """Place of the individual with the highest mean of its last training returns, in phase 2 that of the winner."""
        return self.members.best if self.winner is None else self.members.place_of(self.winner)

    def _begin_exploitation(self, callback: BaseCallback) -> bool:
        """Choose the winner; ``False`` if a callback or the budget came first, then the next ``learn`` begins it anew."""
        self.is_choosing = self.selection == "evaluation"
        scores = self._trials.run(callback) if self.is_choosing else [member.score for member in self.members]
        if scores is None:
            return False
        self._activate(int(np.argmax(scores)))
        self.is_choosing, self.winner = False, self._member.number
        self.assessment.step(self.trial_steps)
        self.trial_steps = 0
        n_updates = int(self.catch_up * max(0, self.n_policy_steps - self._learner_updates - self.assessment.untrained_steps))
        if not self.keep_losers:
            self._free_losers(self.active)
        self.assessment.pass_updates(self._learner_updates, n_updates)
        self.train(n_updates, self.batch_size)
        self._member.state["trained_at"] = min(self.n_policy_steps, self._member.state["trained_at"] + n_updates)
        return True

    def _free_losers(self, place: int) -> None:
        self.policy.keep_only(place)
        if isinstance(self.replay_buffer, LAPReplayBuffer) and self.priorities == "individual":
            self.replay_buffer.trees = [self.replay_buffer.trees[place]]
        self.member_states, self.active = [self.member_states[place]], 0
        self._setup_parts()

    # ---------------------------------------------------------------- steps, returns and updates of the individuals

    def _count_steps(self, n_steps: int) -> None:
        self.n_policy_steps += n_steps
        if self._trials.is_running:
            self.trial_steps += n_steps
        else:
            self._member.state["own_steps"] += n_steps
        super()._count_steps(n_steps)

    def _count_return(self, total_reward: float) -> None:
        super()._count_return(total_reward)
        if self._trials.is_running:
            self._trials.returns.append(total_reward)
        else:
            self._member.add_return(total_reward, self.selection_window)

    def _updates_for(self, n_steps: int) -> int:
        n_steps_of_all = self._member.steps_since_training(self.n_policy_steps)
        return super()._updates_for(n_steps_of_all if self.update_budget == "population" else n_steps)

    def _exploration(self) -> Explorer | None:
        return None if self._trials.is_running else super()._exploration()

    def _keep_checkpoint(self) -> None:
        self._member.networks.deploy(self.actor)

    @property
    def _learner_updates(self) -> int:
        return self._member.own_updates

    def _count_updates(self, n_updates: int) -> None:
        super()._count_updates(n_updates)
        self._member.state["own_updates"] += n_updates

    def individual(self, index: int) -> BasePolicy:
        """
        :param index: number of an individual that is kept, from 0
        :return: its live actor; has ``predict``
        :raises IndexError: if it is not kept
        """
        return in_space(self.members[self.members.place_of(index)].networks.actor)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "individuals", "members", "_trials"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = [f"individuals.{i}.{name}" for i in range(len(self.members)) for name in self.learner.optimizers]
        return ["policy", *names], []
