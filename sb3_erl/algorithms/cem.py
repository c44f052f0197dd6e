"""CEM: the cross-entropy method on policy parameters, CEM-RL without its gradients."""

from __future__ import annotations

from typing import Any, Literal

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_erl.core.arguments import inherits_arguments
from sb3_erl.core.checks import check_choice
from sb3_erl.engine.generation import Generation
from sb3_erl.engine.population import candidates_of, cem_arguments
from sb3_erl.engine.pure_evolution import EvolutionaryAlgorithm
from sb3_erl.policies.cem_rl import CEM_POLICIES


class CEM(EvolutionaryAlgorithm):
    """
    The cross-entropy method on policy parameters: CEM-RL without its gradients.

    Without gradients, for continuous actions: ``CEM("Swimmer-v5", verbose=1).learn(500_000)``.

    Pourchot & Sigaud (ICLR 2019), https://arxiv.org/abs/1810.01222, the baseline "CEM"; see
    :class:`~sb3_erl.evolution.cem.DiagonalCEM` for the distribution and its differences from the authors' code. No replay
    buffer, no gradients. The network is CEM-RL's actor.

    Parameters that are not listed here are those of :class:`~sb3_erl.engine.pure_evolution.EvolutionaryAlgorithm`.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"`` or a policy class; or, without ``env``, the environment or its id
    :param env: environment, vectorized or not, its id, or ``None`` for loading
    :param learning_rate: SB3's third argument; not used, because the distribution is refitted in closed form
    :param n_parents: candidates that the distribution is refitted on, ``None`` for half of them
    :param sigma_init: initial variance of every parameter
    :param antithetic: mirrored sampling, ``None`` for yes if ``pop_size`` is even
    :param elitism: the last candidate is the best of the last generation
    :param deploy: who acts in ``predict``: the ``"mean"`` of the distribution or the ``"champion"`` of the last generation
    """

    policy_aliases = CEM_POLICIES
    reported_candidates = ("mean",)

    @inherits_arguments()
    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.0,
        evolver: Any = "cem",
        n_parents: int | None = None,
        sigma_init: float = 1e-3,
        antithetic: bool | None = None,
        elitism: bool = False,
        deploy: Literal["mean", "champion"] = "mean",
        **kwargs: Any,
    ):
        self.n_parents, self.sigma_init, self.antithetic, self.elitism = n_parents, sigma_init, antithetic, elitism
        self.deploy = deploy
        super().__init__(policy, env, learning_rate, evolver=evolver, **kwargs)

    def _check_arguments(self) -> None:
        check_choice("deploy", self.deploy, ("mean", "champion"))
        super()._check_arguments()

    def _evolver_arguments(self) -> dict[str, Any]:
        return {**cem_arguments(self), **super()._evolver_arguments()}

    def candidates_for_report(self) -> dict[str, Any]:
        """See :meth:`~sb3_erl.engine.model.EvolvingModel.candidates_for_report`."""
        return candidates_of(self, ["champion"] if self.evolver.center() is None else ["mean", "champion"])

    def _deploy(self, generation: Generation) -> None:
        center, best = self.evolver.center(), self.evolver.best()
        vector = center if self.deploy == "mean" and center is not None else best
        if vector is None:  # an evolver that keeps nobody; what was evaluated is known all the same
            return super()._deploy(generation)
        self.population.representation.write(vector, self.policy.deployed)
