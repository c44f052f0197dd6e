"""Several learners with one replay buffer, of which one acts and learns at a time: what each of them has done, and trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from sb3_erl.core.checks import check_range
from sb3_erl.learners.assessment import Assessment, AssessmentSettings
from sb3_erl.learners.base import Learner


class Member:
    """
    One of several learners: networks, learner, assessment, and counts of what it has done.

    :param state: plain values that the algorithm saves, with the individual's ``number``; the rest is filled in
    :param networks: policy with its networks and optimizers
    :param learner: trains them
    :param settings: of its assessments
    :param n_envs: number of environments
    """

    def __init__(self, state: dict[str, Any], networks: Any, learner: Learner, settings: AssessmentSettings, n_envs: int):
        self.state, self.networks, self.learner = state, networks, learner
        fresh: dict[str, Any] = {"own_steps": 0, "own_updates": 0, "trained_at": 0, "last_returns": [], "assessment": {}}
        for key, value in fresh.items():
            state.setdefault(key, value)
        self.assessment = Assessment(state["assessment"], settings, n_envs)

    @property
    def number(self) -> int:
        """The individual's number, from 0; it stays when others are removed."""
        return self.state["number"]

    @property
    def own_steps(self) -> int:
        """Environment steps with its policy, without those of an evaluation."""
        return self.state["own_steps"]

    @property
    def own_updates(self) -> int:
        """Gradient updates of its networks."""
        return self.state["own_updates"]

    @property
    def last_returns(self) -> list[float]:
        """Its last training returns, oldest first."""
        return self.state["last_returns"]

    @property
    def score(self) -> float:
        """Mean of its last training returns, minus infinity without any."""
        return float(np.mean(self.last_returns)) if self.last_returns else -np.inf

    def add_return(self, total_reward: float, window: int) -> None:
        """
        :param total_reward: undiscounted return of a training episode
        :param window: how many returns are kept
        """
        self.state["last_returns"] = [*self.last_returns, total_reward][-window:]

    def steps_since_training(self, n_steps: int) -> int:
        """
        :param n_steps: of all members until now, which counts as the time of a training
        :return: those since this member was trained
        """
        last, self.state["trained_at"] = self.state["trained_at"], n_steps
        return n_steps - last


class Members:
    """
    The learners that are kept, in the order of their numbers.

    :param states: of the members, see :class:`Member`
    :param policy: has the members' networks as ``individuals``
    :param make_learner: makes the learner of the networks at a place
    :param settings: of the assessments
    :param n_envs: number of environments
    """

    def __init__(
        self,
        states: list[dict[str, Any]],
        policy: Any,
        make_learner: Callable[[Any, int], Learner],
        settings: AssessmentSettings,
        n_envs: int,
    ):
        self._policy = policy
        self._members = []
        for place, (state, networks) in enumerate(zip(states, policy.individuals, strict=True)):
            self._members.append(Member(state, networks, make_learner(networks, place), settings, n_envs))

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, place: int) -> Member:
        return self._members[place]

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    def place_of(self, number: int) -> int:
        """
        :param number: of an individual
        :return: its place among those that are kept
        :raises IndexError: if it is not kept
        """
        numbers = [member.number for member in self]
        if number not in numbers:
            raise IndexError(f"index must be one of {numbers}; got {number}")
        return numbers.index(number)

    @property
    def best(self) -> int:
        """Place of the member with the highest mean of its last training returns, the first of equals."""
        return int(np.argmax([member.score for member in self]))

    @property
    def least_trained(self) -> int:
        """Place of the member with the fewest own steps, the first of equals."""
        return int(np.argmin([member.own_steps for member in self]))

    def copy_best_over_worst(self) -> None:
        """Overwrite the networks and optimizers of the worst member by those of the best; its checkpoint stays."""
        best, worst = self.best, int(np.argmin([member.score for member in self]))
        if best != worst:
            self._policy.copy_member(best, worst)

    def log(self, logger: Logger, winner: int | None) -> None:
        """
        Record the phase and what each member has done.

        :param logger: of the model
        :param winner: number of the member that was chosen, ``None`` before
        """
        logger.record("population/phase", 1 if winner is None else 2)
        logger.record("population/winner", -1 if winner is None else winner)
        for member in self:
            logger.record(f"individual_{member.number}/own_steps", member.own_steps)
            logger.record(f"individual_{member.number}/n_updates", member.own_updates)
            logger.record(f"individual_{member.number}/training_return", member.score)
            logger.record(f"individual_{member.number}/checkpoint_score", member.assessment.score)


class Trials:
    """
    Noise-free episodes of all members, one member after the other, whose steps are counted and stored as in training.

    :param model: step-wise algorithm with ``members``
    :param n_episodes: per member
    """

    def __init__(self, model: Any, n_episodes: int):
        self._model, self._n_episodes = model, n_episodes
        self.returns: list[float] = []
        """Undiscounted returns of the member that acts."""
        self.is_running = False

    def run(self, callback: BaseCallback) -> list[float] | None:
        """
        :param callback: called at every vector step
        :return: each member's mean return, ``None`` if a callback or the budget ended training before
        """
        model, scores = self._model, []
        settings = AssessmentSettings(early_episodes=self._n_episodes)
        before, self.is_running = model.active, True
        try:
            for place in range(len(model.members)):
                model._activate(place)
                model.assessment, self.returns = Assessment({"score": -np.inf}, settings, model.n_envs), []
                model._cut_episodes()
                while model.assessment.outcome is None:
                    if model.num_timesteps >= model._total_timesteps or not model._collect_step(callback):
                        return None
                scores.append(float(np.mean(self.returns)))
        finally:
            self.is_running = False
            model._cut_episodes()
            model._activate(before)
        return scores


def new_states(pop_size: Any) -> list[dict[str, Any]]:
    """:return: states of members that have done nothing yet; none if their number is no integer, which is an error later"""
    return [{"number": number} for number in range(pop_size)] if isinstance(pop_size, int) else []


def check_pop_size(pop_size: int, n_kept: int, has_winner: bool) -> None:
    """
    :param pop_size: of the model, at least 1
    :param n_kept: members that were saved
    :param has_winner: whether a single one may have been kept
    :raises ValueError: if they do not agree
    """
    check_range("pop_size", pop_size, 1, integer=True)
    if n_kept != pop_size and not (has_winner and n_kept == 1):
        raise ValueError(
            f"pop_size must stay as it was saved, {n_kept} individuals; got {pop_size} instead. "
            "Make a new model for another population size"
        )


OLD_LISTS = {
    "members": "number",
    "own_steps": "own_steps",
    "own_updates": "own_updates",
    "paid_until": "trained_at",
    "last_returns": "last_returns",
    "assessment_states": "assessment",
}
"""Attribute of a model in files of earlier versions, a list over the members -> key of a member's state."""
OLD_NAMES = {"turn": "active", "owed_by_winner": "trial_steps"}
"""Attribute of a model in files of earlier versions -> its name now."""


def read_old_attributes(attributes: dict[str, Any]) -> None:
    """
    :param attributes: of a model that was loaded; those of earlier versions become ``member_states`` and others
    """
    if not {*OLD_LISTS, *OLD_NAMES} <= set(attributes):
        return
    lists = {key: attributes.pop(name) for name, key in OLD_LISTS.items()}
    states = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    attributes.pop("_noise_free", None)
    attributes.update({new: attributes.pop(old) for old, new in OLD_NAMES.items()}, member_states=states)
