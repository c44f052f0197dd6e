"""The loop over generations, the line of verbs that makes up one generation, and what each verb does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from sb3_erl.core.parameters import write_parameters
from sb3_erl.core.registry import resolve
from sb3_erl.core.seeding import Stream, scoped_generators
from sb3_erl.engine.population import outcome_of_injection
from sb3_erl.engine.replace import pulled_networks
from sb3_erl.evolution.fitness.base import FitnessContext
from sb3_erl.evolution.rebuilt import CANDIDATES, BuiltWhenRead, built
from sb3_erl.remote.recipes import Renumbered
from sb3_erl.rollouts.jobs import EpisodeBatch, Job

Verb = Literal[
    "collect_reference", "show_members", "ask", "evaluate", "score", "revalidate", "explore", "tell", "soft_update", "learn",
    "exchange", "deploy", "log",
]  # fmt: skip
"""
What a generation consists of. Each system says in ``generation_order`` which of them it has and in which order; the method
``_<verb>`` of its class does it, or the function of that name in this module.
"""


@dataclass
class Generation:
    """
    What one generation works on: each verb fills in what later ones read.

    :param number: of this generation over the life of the model, from 1
    :param rng: random numbers of evolution
    :param callback: called at every vector step
    :param candidates: ``(pop_size, n_params)``, after ``ask``
    :param episodes: after ``evaluate``
    :param fitness: ``(pop_size,)``, higher is better, NaN is worst; ``None`` before ``score`` and where none was evaluated
    :param fitness_before: state of the fitness function before ``score``, if ``explore`` may stop the generation after it
    :param pulled: after ``explore``: parameters that ``soft_update`` gives to networks of the learner, by their names
    """

    number: int
    rng: np.random.Generator = field(repr=False)
    callback: BaseCallback = field(repr=False)
    candidates: BuiltWhenRead = field(default=CANDIDATES, repr=False)
    episodes: EpisodeBatch | None = None
    fitness: np.ndarray | None = None
    fitness_before: dict[str, Any] | None = field(default=None, repr=False)
    pulled: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def evaluated(self) -> EpisodeBatch:
        """
        The episodes of this generation.

        :raises ValueError: before ``evaluate``
        """
        if self.episodes is None:
            raise ValueError("episodes are there after the verb 'evaluate'; got none. Let the step come after it")
        return self.episodes

    @property
    def asked(self) -> Tensor:
        """
        ``(pop_size, n_params)``, the candidates of this generation.

        :raises ValueError: before ``ask``
        """
        return built(self.proposed)

    @property
    def proposed(self) -> Any:
        """
        :attr:`asked`, or what stands for these candidates if nobody has needed them in this process.

        :raises ValueError: before ``ask``
        """
        found = vars(self)["candidates"]
        if found is None:
            raise ValueError("candidates are there after the verb 'ask'; got none. Let the step come after it")
        return found


class GenerationStep(Protocol):
    """A step of a user's own in the generation of any system, see :mod:`sb3_erl.engine.steps`."""

    after: Verb
    """The verb that it follows."""

    def __call__(self, model: Any, generation: Generation) -> None:
        """
        :param model: the algorithm, with ``population``, ``learner`` and ``rng(name)``
        :param generation: what this generation has produced so far
        """


def make_steps(choices: Iterable[Any], order: Sequence[str]) -> list[GenerationStep]:
    """
    :param choices: steps, classes of steps, or their names; also a single one of these
    :param order: verbs of the generation that they are for
    :return: the steps
    :raises TypeError: if one of them is no step
    :raises ValueError: if one of them follows a verb that the generation does not have
    """
    steps = []
    for choice in [choices] if isinstance(choices, str | type) or callable(choices) else choices:
        step = resolve("step", choice, "generation_steps")
        step = step() if isinstance(step, type) else step
        if not callable(step) or not hasattr(step, "after"):
            raise TypeError(
                "generation_steps must be steps: objects with the attribute 'after' that are called with the model and the "
                f"generation; got {choice!r}. every(n, step, after=...) makes one of any function"
            )
        if step.after not in order:
            raise ValueError(f"generation_steps must follow one of the verbs {list(order)}; got after={step.after!r}")
        steps.append(step)
    return steps


def run_generation(model: Any, callback: BaseCallback) -> bool:
    """
    Do the verbs of a generation in their order, and after each of them the steps that follow it.

    :param model: with ``generation_order`` and ``extra_steps``
    :param callback: called at every vector step
    :return: whether training goes on; ``False`` if a callback or the budget stopped it inside this generation
    """
    generation = Generation(model.n_generations + 1, model.run.rng(Stream.EVOLUTION), callback)
    for verb in model.generation_order:
        own = getattr(model, f"_{verb}", None)
        goes_on = DEFAULTS[verb](model, generation) if own is None else own(generation)
        if goes_on is False:
            return False
        for step in model.extra_steps:
            if step.after == verb:
                step(model, generation)
        for observer in model.run.observers:
            observer.after_verb(verb, generation)
    return True


def run_generations(model: Any, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
    """
    Run generations until the budget is spent or a callback says stop.

    :param model: see :func:`run_generation`
    :param total_timesteps: where ``num_timesteps`` ends
    :param callback: called at every vector step
    :param log_interval: generations between two log tables, ``None`` for no automatic log
    """
    model.rollouts.begin()
    while model.num_timesteps < total_timesteps:
        model.run.at_boundary()
        model.phase += 1
        if not run_generation(model, callback):
            return
        model.n_generations += 1
        if log_interval is not None and model.n_generations % log_interval == 0:
            for part, share in model.rollouts.stopwatch.shares(rest="evolution").items():
                model.logger.record(f"time/{part}_share", share)
            model.dump_logs()


# -------------------------------------------------------------------- what the verbs do where a system does not say otherwise


def evolves(model: Any) -> bool:
    """Whether there is a population beside the learner; ``evolution=False`` is for ablations."""
    return getattr(model, "evolution", True)


def ask(model: Any, generation: Generation) -> None:
    """The evolver proposes candidates."""
    generation.candidates = model.population.ask(generation.rng)


def evaluate(model: Any, generation: Generation) -> bool:
    """
    Candidates act in the environment, and the learner where there is one that does not ``explore`` after them.

    :return: ``False`` if a callback or the budget stopped it
    """
    jobs, actor = model._plan_rollouts(generation.asked)
    if not evolves(model):
        jobs = [job for job in jobs if not model.is_of_population(job)]
    needs, is_last = model.fitness.needs | model.episode_needs, "explore" not in model.generation_order
    if jobs or is_last:
        episodes = model.rollouts.run(jobs, actor, generation.callback, model._step_store(), needs, is_last=is_last)
    else:
        episodes = EpisodeBatch((), 0)
    generation.episodes = episodes
    return episodes is not None


def score(model: Any, generation: Generation) -> None:
    """Episodes of the population become one number per candidate; none without evolution."""
    if not evolves(model):
        return
    generation.fitness = fitness_of(model, generation, generation.evaluated.of(range(len(generation.proposed))))


def fitness_of(model: Any, generation: Generation, episodes: EpisodeBatch, individuals: Tensor | None = None) -> np.ndarray:
    """
    :param model: has ``fitness``, and ``gamma`` where rewards are discounted
    :param generation: whose candidates are scored
    :param episodes: of the individuals, numbered from 0
    :param individuals: ``(n, n_params)``, the candidates of the generation if ``None``
    :return: ``(pop_size,)``, higher is better, NaN is worst
    """
    candidates = generation.proposed if individuals is None else individuals
    rng, gamma = model.run.rng(Stream.FITNESS), getattr(model, "gamma", 1.0)
    return model.fitness.checked(episodes, FitnessContext(len(candidates), candidates, gamma, generation.number, rng))


def explore(model: Any, generation: Generation) -> bool:
    """
    The learner acts in an episode of its own, after those of the population, as ``soft_update`` will leave it.

    Its networks are written once the episode is over, so that an unfinished generation leaves them as they were.

    :return: ``False`` if a callback or the budget stopped it
    """
    generation.pulled = pulled_networks(model, generation)
    vector = generation.pulled.get("actor", model.population.representation.from_learner())
    jobs = [Job(model.pop_size, explorer=model._learner_explorer(vector))]
    actor = Renumbered(model.population.act(vector[None]), model.pop_size)
    needs, before, episodes = model.fitness.needs | model.episode_needs, generation.evaluated, None
    try:
        phase = {"is_first": not before.episodes}
        episodes = model.rollouts.run(jobs, actor, generation.callback, model._step_store(), needs, **phase)
    finally:
        if episodes is None and generation.fitness_before is not None:
            model.fitness.load_state_dict(generation.fitness_before)
    if episodes is None:
        return False
    both = (*before.episodes, *episodes.episodes)
    generation.episodes = EpisodeBatch(both, before.n_timesteps + episodes.n_timesteps)
    return True


def tell(model: Any, generation: Generation) -> None:
    """The evolver is told the fitness, if there is any, and the champion is kept as it was evaluated."""
    if generation.fitness is not None:
        model.population.tell(generation.proposed, generation.fitness, generation.rng, model._migrants(generation))
        log_champion(model)


def soft_update(model: Any, generation: Generation) -> None:
    """Networks of the learner get what :func:`pulled_networks` has found."""
    for name, vector in generation.pulled.items():
        write_parameters(vector, model.population.representation.own_part(getattr(model.policy, name)))
    if generation.fitness is not None:
        model.logger.record("population/soft_update", float(bool(generation.pulled)))


def learn(model: Any, generation: Generation) -> None:
    """The learner makes the updates that the steps of this generation pay for."""
    if model._is_warm:
        episodes = generation.evaluated
        model.train(model._updates_for(episodes.n_timesteps, len(episodes.episodes)))


def exchange(model: Any, generation: Generation) -> None:
    """The learner's network goes into the population, if the exchange says so."""
    if model.exchange is None or not model._is_warm or not evolves(model):
        return
    fitness = np.zeros(model.pop_size) if generation.fitness is None else generation.fitness
    with scoped_generators(model.run.address.sequence(Stream.LEARNING, 1)):
        slot = model.exchange(model.population, fitness, generation.number, model._stored_observations)
    if slot is not None:
        model._injected_slot = slot
        model._n_injections += 1


def deploy(model: Any, generation: Generation) -> None:
    """Write ``policy.deployed``; nothing else does."""
    champion = model.population.champion
    if model.deploy != "learner" and champion is not None:
        center = model.evolver.center() if model.deploy == "mean" else None
        model.population.representation.write(champion.vector if center is None else center, model.policy.deployed)
    elif model.deploy == "learner" or (model.population_policy_kwargs is None and model.champion_fitness is None):
        model.policy.deploy(model._deployed_learner)


def log(model: Any, generation: Generation) -> None:
    """Fitness, returns of population and learner, and what the evolver says of itself."""
    record, episodes = model.logger.record, [e for e in generation.evaluated.episodes if not e.failed]
    record("time/generations", generation.number, exclude="tensorboard")
    learner = [e.total_reward for e in episodes if not model.is_of_population(e.job)]
    if learner:
        record("rollout/learner_ep_rew_mean", float(np.mean(learner)))
    log_scores(model, generation)
    for name, value in model.evolver.metrics().items():
        record(f"population/{name}", value)


DEFAULTS = {verb.__name__: verb for verb in (ask, evaluate, score, explore, tell, soft_update, learn, exchange, deploy, log)}


def log_scores(model: Any, generation: Generation) -> None:
    """
    Log the fitness of the population, and its returns where these are not the fitness.

    :param model: of whose population a generation was evaluated
    :param generation: after ``score``
    """
    if generation.fitness is None:
        return
    log_fitness(model.logger, generation.fitness)
    episodes = [e for e in generation.evaluated.episodes if not e.failed and model.is_of_population(e.job)]
    if model.fitness_class != "return" and episodes:
        returns = [e.total_reward for e in episodes]
        model.logger.record("population/return_mean", float(np.mean(returns)))
        model.logger.record("population/return_max", float(np.max(returns)))


def log_fitness(logger: Any, fitness: np.ndarray) -> None:
    """
    :param logger: of the model
    :param fitness: ``(pop_size,)``, NaN where nothing was measured
    """
    finite = fitness[np.isfinite(fitness)]
    for name in ("max", "mean", "std"):
        value = getattr(finite, name)() if len(finite) else np.nan
        logger.record(f"population/fitness_{name}", float(value))


def log_champion(model: Any) -> None:
    """
    Note the champion of a generation, and log it and what became of the individual that was injected last.

    :param model: whose ``population`` was told the fitness
    """
    population, record = model.population, model.logger.record
    if model._injected_slot is not None:
        outcome = outcome_of_injection(model.evolver, model._injected_slot, population.ranking)
        for name in ("elite", "selected", "discarded") if outcome is not None else ():
            record(f"population/injected_{name}", float(outcome == name))
    model._injected_slot = None
    model.champion_fitness = population.champion.fitness
    if model._fitness_is_return:
        model.champion_return = model.champion_fitness
    if model.champion_return is not None:  # of the last generation that was measured in whole episodes
        record("population/champion_return", model.champion_return)
