"""TD7's checkpoints: a frozen policy is assessed by its training episodes before it is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["accept", "reject"]

EMPTY = 1e8
"""Running minimum of an assessment without finished episodes."""


@dataclass(frozen=True)
class AssessmentSettings:
    """
    :param early_episodes: episodes per assessment in the early phase
    :param late_episodes: episodes per assessment in the late phase
    :param updates_before_late: gradient updates after which the late phase begins
    :param reset_weight: factor on the stored score at that moment
    :param reset_rule: ``"scale"`` multiplies the score (authors' code; it raises a negative score), ``"relax"`` lowers it
        by the same share of its absolute value
    """

    early_episodes: int = 1
    late_episodes: int = 20
    updates_before_late: int = 750_000
    reset_weight: float = 0.9
    reset_rule: Literal["scale", "relax"] = "scale"


class Assessment:
    """
    Decides after each vector step whether the frozen policy was tried long enough, and how many updates are then due.

    Fujimoto et al. (2023), https://arxiv.org/abs/2306.02451, section 4.2; authors' code: sfujim/TD7,
    ``TD7.py: maybe_train_and_checkpoint``. The score of a policy is its worst undiscounted return; an assessment ends at
    the first return below the stored score, or when all its episodes are finished, and one update follows per
    environment step. With several environments, episodes are counted in the order in which they start, at least as many
    as there are environments; the steps of others count, their returns do not.

    :param state: plain values that the algorithm saves; an empty dict is filled
    :param settings: constants
    :param n_envs: number of environments
    """

    def __init__(self, state: dict[str, Any], settings: AssessmentSettings, n_envs: int = 1):
        self.state, self.settings = state, settings
        fresh = {"score": -1e8, "worst": EMPTY, "n_finished": 0, "owed": 0, "is_late": False, "n_accepted": 0, "n_rejected": 0}
        for key, value in fresh.items():
            state.setdefault(key, value)
        self._counted = [False] * n_envs
        self._n_begun = int(state["n_finished"])

    @property
    def n_episodes(self) -> int:
        """Episodes of an assessment in this phase, without regard to the number of environments."""
        return self.settings.late_episodes if self.state["is_late"] else self.settings.early_episodes

    @property
    def _n_needed(self) -> int:
        return max(self.n_episodes, len(self._counted))

    @property
    def score(self) -> float:
        """Worst return of the stored policy."""
        return self.state["score"]

    @property
    def owed(self) -> int:
        """Environment steps for which no update was made yet."""
        return self.state["owed"]

    def begin(self, env: int) -> None:
        """An episode begins; its return counts if the assessment needs it."""
        self.abandon(env)
        self._counted[env] = self._n_begun < self._n_needed
        self._n_begun += self._counted[env]

    def abandon(self, env: int) -> None:
        """An episode is cut off from outside; another one may take its place."""
        self._n_begun -= self._counted[env]
        self._counted[env] = False

    def step(self, n_steps: int) -> None:
        """Environment steps with the frozen policy."""
        self.state["owed"] += n_steps

    def finish(self, env: int, total_reward: float) -> bool:
        """
        An episode ends.

        :param env: in this environment
        :param total_reward: with this undiscounted return
        :return: whether its return counts
        """
        counts, self._counted[env] = self._counted[env], False
        if counts:
            self.state["n_finished"] += 1
            self.state["worst"] = min(self.state["worst"], float(total_reward))
        return counts

    @property
    def verdict(self) -> Verdict | None:
        """Whether the policy replaces the stored one; ``None`` while more episodes are needed."""
        if self.state["worst"] < self.score:
            return "reject"
        return "accept" if self.state["n_finished"] >= self._n_needed else None

    def close(self, verdict: Verdict, n_updates: int, due: int | None = None) -> int:
        """
        End the assessment; the caller stores the policy on ``"accept"`` and runs the updates.

        :param verdict: see :attr:`verdict`
        :param n_updates: gradient updates done so far
        :param due: updates that follow, by default one per step since the last assessment
        :return: updates that are due now
        """
        state = self.state
        state[f"n_{verdict}ed"] += 1
        if verdict == "accept":
            state["score"] = state["worst"]
        due = state["owed"] if due is None else due
        self.pass_updates(n_updates, due)
        state["worst"], state["n_finished"], state["owed"] = EMPTY, 0, 0
        self._n_begun, self._counted = 0, [False] * len(self._counted)
        return due

    def pass_updates(self, n_before: int, n_updates: int) -> None:
        """Begin the late phase, with a lower score to beat, if one of these updates is the one that it begins with."""
        state, settings = self.state, self.settings
        if not state["is_late"] and n_before <= settings.updates_before_late < n_before + n_updates:
            state["is_late"] = True
            score, weight = state["score"], settings.reset_weight
            state["score"] = score * weight if settings.reset_rule == "scale" else score - (1 - weight) * abs(score)
