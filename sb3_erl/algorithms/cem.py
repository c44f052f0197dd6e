"""CEM: the cross-entropy method on policy parameters, CEM-RL without its gradients."""

from __future__ import annotations

class CEMPolicy(ActorOnlyPolicy):
    """The actor of CEM-RL alone."""

    actor_class = CEMRLActor
    default_net_arch = (400, 300)


class CEMCnnPolicy(CEMPolicy, ActorOnlyCnnPolicy):
    """:class:`CEMPolicy` behind SB3's ``NatureCNN``."""


class CEM(EvolutionaryAlgorithm):
    """
    The cross-entropy method on policy parameters: CEM-RL without its gradients.

    Pourchot & Sigaud (ICLR 2019), https://arxiv.org/abs/1810.01222, the baseline "CEM"; see
    :class:`~sb3_erl.evolution.cem.CEM` for the distribution and its differences from the authors' code. No replay buffer,
    no gradients. The network is CEM-RL's actor.

    :param learning_rate: SB3's third argument; not used, because the distribution is refitted in closed form
    :param n_parents: candidates that the distribution is refitted on, ``None`` for half of them
    :param sigma_init: initial variance of every parameter
    :param antithetic: mirrored sampling, ``None`` for yes if ``pop_size`` is even
    :param elitism: the last candidate is the best of the last generation
    :param evolver_kwargs: further arguments of the evolver, such as ``damping_init`` or ``covariance_rule``
    :param deploy: who acts in ``predict``: the ``"mean"`` of the distribution or the ``"champion"`` of the last generation
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": CEMPolicy, "CnnPolicy": CEMCnnPolicy}

    def __init__(
        self,
        policy: str | type[BasePolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule = 0.0,
        pop_size: int = 10,
        n_eval_episodes: int = 1,
        n_parents: int | None = None,
        sigma_init: float = 1e-3,
        antithetic: bool | None = None,
        elitism: bool = False,
        evolver_kwargs: dict[str, Any] | None = None,
        deploy: Literal["mean", "champion"] = "mean",
        evaluator: EvaluatorChoice = "vec",
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        self.n_parents, self.sigma_init, self.antithetic, self.elitism = n_parents, sigma_init, antithetic, elitism
        self.evolver_kwargs, self.deploy = evolver_kwargs, deploy
        super().__init__(**known_to(super().__init__, locals()))

    def _setup_model(self) -> None:
        check_choice("deploy", self.deploy, ("mean", "champion"))
        super()._setup_model()

    def _make_evolver(self, candidates: th.Tensor, layout: ParameterLayout) -> Evolver:
        own = {name: getattr(self, name) for name in ("n_parents", "sigma_init", "antithetic", "elitism")}
        return CEMDistribution(
            read_parameters(self.policy.deployed), len(candidates), **{**own, **(self.evolver_kwargs or {})}
        )

    def _deployed_vector(self, candidates: th.Tensor, fitness: np.ndarray) -> th.Tensor:
        evolver: Any = self.evolver
        return evolver.elite if self.deploy == "champion" else evolver.mean

    def _log_population(self, fitness: np.ndarray) -> None:
        super()._log_population(fitness)
        evolver: Any = self.evolver
        self.logger.record("population/sigma", float(evolver.variance.sqrt().mean()))
