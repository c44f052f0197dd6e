"""When TD7 trains, and which policy it keeps: assessment of a frozen policy by its training episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["accept", "reject"]

EMPTY = 1e8
"""Running minimum of an assessment without finished episodes."""
NONE_YET = -1e8
"""Score before a policy is stored, as in the authors' code, where a policy below it is never stored."""
RENAMED = {"owed": "untrained_steps"}
"""Keys of the state in files of earlier versions."""


@dataclass(frozen=True)
class AssessmentSettings:
    """
    Constants of an assessment.

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
    Says after each vector step whether the frozen policy has had enough episodes, and how many updates then follow.

    Fujimoto et al. (2023), https://arxiv.org/abs/2306.02451, section 4.2; authors' code: sfujim/TD7,
    ``TD7.py: maybe_train_and_checkpoint``. The score of a policy is its worst undiscounted return; an assessment ends at
    the first return below the stored score, or when all its episodes are finished, and one update follows for each
    environment step. With several environments, episodes count in the order in which they start, at least as many as there
    are environments; updates are made for the steps of the others too, but their returns do not count.

    :param state: plain values that the algorithm saves; an empty dict is filled
    :param settings: constants
    :param n_envs: number of environments
    """

    def __init__(self, state: dict[str, Any], settings: AssessmentSettings, n_envs: int = 1):
        self.state, self.settings = state, settings
        for old, new in RENAMED.items():
            if old in state:
                state[new] = state.pop(old)
        fresh = {"score": NONE_YET, "worst": EMPTY, "n_finished": 0, "untrained_steps": 0, "is_late": False}
        for key, value in {**fresh, "n_accepted": 0, "n_rejected": 0}.items():
            state.setdefault(key, value)
        self._counts = [False] * n_envs
        """Whether the episode that runs in each environment counts."""
        self._n_begun = int(state["n_finished"])

    @property
    def n_episodes(self) -> int:
        """Episodes of an assessment in this phase, without regard to the number of environments."""
        return self.settings.late_episodes if self.state["is_late"] else self.settings.early_episodes

    @property
    def _n_needed(self) -> int:
        return max(self.n_episodes, len(self._counts))

    @property
    def score(self) -> float:
        """Worst return of the stored policy."""
        return self.state["score"]

    @property
    def is_first(self) -> bool:
        """Whether no policy is stored yet, so that any is better."""
        return self.state["n_accepted"] == 0 and self.score <= NONE_YET / 2  # ERL-Re2 did not always count

    @property
    def untrained_steps(self) -> int:
        """Environment steps for which no update was made yet."""
        return self.state["untrained_steps"]

    def begin(self, env: int) -> None:
        """An episode begins; it counts if the assessment needs it."""
        self.abandon(env)
        self._counts[env] = self._n_begun < self._n_needed
        self._n_begun += self._counts[env]

    def abandon(self, env: int) -> None:
        """An episode is cut off from outside; another one may count in its place."""
        self._n_begun -= self._counts[env]
        self._counts[env] = False

    def step(self, n_steps: int) -> None:
        """Environment steps with the frozen policy."""
        self.state["untrained_steps"] += n_steps

    def finish(self, env: int, total_reward: float) -> bool:
        """
        An episode ends.

        :param env: in this environment
        :param total_reward: with this undiscounted return
        :return: whether it counts
        """
        counts, self._counts[env] = self._counts[env], False
        if counts:
            is_first, total = self.state["n_finished"] == 0, float(total_reward)
            self.state["worst"] = total if is_first else min(self.state["worst"], total)
            self.state["n_finished"] += 1
        return counts

    @property
    def outcome(self) -> Outcome | None:
        """Whether the policy replaces the stored one; ``None`` while more episodes are needed."""
        if self.state["n_finished"] > 0 and not self.is_first and self.state["worst"] < self.score:
            return "reject"
        return "accept" if self.state["n_finished"] >= self._n_needed else None

    def close(self, outcome: Outcome, n_before: int, n_updates: int | None = None) -> int:
        """
        End the assessment; the caller stores the policy on ``"accept"`` and runs the updates.

        :param outcome: what :attr:`outcome` said
        :param n_before: gradient updates made so far
        :param n_updates: updates that follow, by default one for each step without an update
        :return: updates that follow
        """
        state = self.state
        state[f"n_{outcome}ed"] += 1
        if outcome == "accept":
            state["score"] = state["worst"]
        n_updates = state["untrained_steps"] if n_updates is None else n_updates
        self.pass_updates(n_before, n_updates)
        state["worst"], state["n_finished"], state["untrained_steps"] = EMPTY, 0, 0
        self._n_begun, self._counts = 0, [False] * len(self._counts)
        return n_updates

    def pass_updates(self, n_before: int, n_updates: int) -> None:
        """
        Begin the late phase, and lower the demands on the next policy a little, if its update is among those that follow.

        :param n_before: gradient updates made so far
        :param n_updates: updates that follow
        """
        state, settings = self.state, self.settings
        if not state["is_late"] and n_before <= settings.updates_before_late < n_before + n_updates:
            state["is_late"] = True
            score, weight = state["score"], settings.reset_weight
            state["score"] = score * weight if settings.reset_rule == "scale" else score - (1 - weight) * abs(score)
