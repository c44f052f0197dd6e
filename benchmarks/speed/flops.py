"""
Useful arithmetic of the published updates, from the widths of their layers.

Matrix products only, a multiplication and an addition being two operations. A layer that is trained costs its forward pass
three times (output, gradient of the weights, gradient of the input), and one that only passes a gradient on twice. The
gradient of an observation is not needed, so that the first layer of a trained network costs two.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Layers:
    """
    Linear layers in a row.

    :param widths: of the input and after each layer
    """

    widths: tuple[int, ...]

    @property
    def forward(self) -> int:
        """Multiplications per sample of a forward pass."""
        return sum(a * b for a, b in pairwise(self.widths))

    @property
    def trained(self) -> int:
        """Of a forward pass and the gradient of all weights, the input needing none."""
        return 3 * self.forward - self.widths[0] * self.widths[1]

    @property
    def passed(self) -> int:
        """Of a forward pass and the gradient of the input."""
        return 2 * self.forward


def td7(obs: int = 17, act: int = 6, batch: int = 256, width: int = 256) -> float:
    """
    :return: operations of one iteration of TD7, the policy step at every second one

    >>> round(td7() / 1e9, 2)
    2.65
    """
    state = Layers((obs, width, width, width)).forward
    trained_state = Layers((obs, width, width, width)).trained
    pair = Layers((width + act, width, width, width)).forward
    first = obs * width
    actor = first + Layers((2 * width, width, width, act)).forward
    critic = (obs + act) * width + Layers((3 * width, width, width, 1)).forward
    encoder_step = state + trained_state + 3 * pair
    targets = state + actor + pair + 2 * critic
    critic_step = targets + state + pair + 2 * (3 * critic - (obs + act) * width)
    policy_step = (3 * actor - first) + 2 * pair + 2 * 2 * critic  # through both critics
    return 2.0 * batch * (encoder_step + critic_step + policy_step / 2)


def td3(obs: int = 17, act: int = 6, batch: int = 256, hidden: tuple[int, ...] = (400, 300)) -> float:
    """:return: operations of one iteration of TD3, the policy step at every second one"""
    actor, critic = Layers((obs, *hidden, act)), Layers((obs + act, *hidden, 1))
    critic_step = actor.forward + 2 * critic.forward + 2 * critic.trained
    return 2.0 * batch * (critic_step + (actor.trained + critic.passed) / 2)


def cem_rl(obs: int = 17, act: int = 6, batch: int = 100, n_learned: int = 5, hidden: tuple[int, ...] = (400, 300)) -> float:
    """:return: operations for one environment step in CEM-RL: a critic step and an actor step of each learned individual"""
    actor, critic = Layers((obs, *hidden, act)), Layers((obs + act, *hidden, 1))
    critic_step = actor.forward + 2 * critic.forward + 2 * critic.trained
    return 2.0 * batch * (critic_step + n_learned * (actor.trained + critic.passed))


def erl_re2(obs: int = 17, act: int = 6, batch: int = 128, hidden: tuple[int, int] = (400, 300)) -> float:
    """
    :return: operations of one iteration of ERL-Re2 with one head in the PeVFA's step and one in the encoder's loss, heads and
        encoder being stepped at every second one; without what is done once per batch and not for each sample of it, the
        embedding of the head
    """
    encoder, critic = Layers((obs, *hidden)), Layers((obs + act, *hidden, 1))
    head = hidden[-1] * act
    pevfa_step = encoder.forward + head + 2 * critic.forward + 2 * critic.trained
    critic_step = encoder.forward + head + 2 * critic.forward + 2 * critic.trained
    head_step = 2 * head + critic.passed
    encoder_step = encoder.trained + 2 * (2 * head + critic.passed)  # the learner's term and the PeVFA's
    return 2.0 * batch * (pevfa_step + critic_step + (head_step + encoder_step) / 2)
