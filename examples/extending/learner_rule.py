"""
A learner rule of your own, after REDQ: five critics, of which two at random give the target, and the actor follows their mean.

Chen et al. (2021), https://arxiv.org/abs/2101.05982. The same class serves ERL, PDERL, CEM-RL and ERL-Re2.

    python -m examples.extending.learner_rule
"""

import torch

from sb3_erl import ERL, ERLRe2, TDRule


class RandomPairRule(TDRule):
    """The target is the smaller value of two critics that are drawn at random in each update."""

    n_critics = 5  # learner_kwargs={"n_critics": 10} makes it ten
    actor_towers = None  # the actor reads all critics
    use_graphs = False  # because the rule draws random numbers

    def target(self, next_values: torch.Tensor) -> torch.Tensor:
        pair = torch.randperm(len(next_values), device=next_values.device)[:2]
        return next_values[pair].amin(dim=0)

    def actor_value(self, values: torch.Tensor) -> torch.Tensor:
        return values.mean(dim=0)


def main(steps: float = 2_000) -> int:
    """:return: updates of the learner of ERL-Re2"""
    ERL("Pendulum-v1", learner=RandomPairRule, learner_kwargs={"n_critics": 3}, pop_size=4, seed=1).learn(steps)
    model = ERLRe2("Pendulum-v1", learner="examples.extending.learner_rule:RandomPairRule", learning_starts=400, seed=1)
    return model.learn(steps).learner.n_updates


if __name__ == "__main__":
    main()
