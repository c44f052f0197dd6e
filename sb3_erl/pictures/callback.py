"""``PopulationCallback``: what a population does, generation by generation, in the log, in a table and in a file."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from sb3_erl.core.extras import missing_extra
from sb3_erl.evolution.operators.origins import COPY, ORIGINS, Origins
from sb3_erl.pictures import measures
from sb3_erl.pictures.fixed_observations import FixedObservations
from sb3_erl.pictures.generation_files import GenerationFile
from sb3_erl.pictures.lineage import Lineage
from sb3_erl.runs.description import deployed, env_name
from sb3_erl.runs.run import Run
from sb3_erl.runs.run_state import numbered_callbacks

TABLE, ENDS = "population.csv", "endpoints.csv"
"""Files in the folder: a row per generation, and where episodes ended, if environments report a place."""
QUANTILES = {"min": 0.0, "q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "max": 1.0}
COLUMNS: tuple[str, ...] = (
    *("generation", "timesteps", "warm_up", "fitness_is_return", "n_scored", "fitness_mean"),
    *(f"fitness_{name}" for name in QUANTILES),
    *("population_return_mean", "population_return_max", "learner_return", "learner_beats", "deployed", "deployed_return"),
    *("parameter_diversity", "action_diversity", "n_elites", "elites_age", "oldest_age", "champion_age", "champion_origin"),
    *(f"elites_{kind}" for kind in ORIGINS),
    *(f"made_{kind}" for kind in ORIGINS),
    *("made_copy", "lines", "from_learner"),
)
"""Columns of the table, see :class:`PopulationCallback`."""
LOGGED = {
    **{f"fitness_{name}": f"population/fitness_{name}" for name in ("min", "q25", "median", "q75")},
    **{"learner_beats": "population/learner_beats", "population_return_mean": "population/whole_return_mean"},
    **{"parameter_diversity": "diversity/parameters", "action_diversity": "diversity/actions"},
    **{"elites_age": "lineage/elites_age", "champion_age": "lineage/champion_age", "lines": "lineage/lines"},
    **{"from_learner": "lineage/from_learner", **{f"elites_{kind}": f"lineage/elites_{kind}" for kind in ORIGINS}},
}
"""Columns that are also logged, and under which keys."""


class PopulationCallback(BaseCallback):
    """
    Shows what the population of any class with generations does; ``sb3-erl plot FOLDER`` draws it.

    Each generation becomes a row of :meth:`table` and of ``population.csv``, and its most telling numbers go to SB3's logger,
    so that TensorBoard and CSV files have them. The run is not changed: weights are the same, to the last bit, without the
    callback.

    ================================= ===================================================================================
    ``fitness_min`` to ``_max``       quantiles; ``fitness_is_return``: whether it is the return of whole episodes
    ``learner_return``                mean of the learner's episodes; ``learner_beats``: share of individuals below it
    ``deployed``, ``deployed_return`` what ``predict`` acts with, and its latest known return in training
    ``parameter_diversity``           mean Euclidean distance of two individuals' parameters
    ``action_diversity``              mean distance of their actions, in [-1, 1], on 64 observations of the beginning
    ``elites_age``, ``oldest_age``    generations that elites (mean) or the oldest have lived through unchanged
    ``elites_random`` and so on       how elites were made, as shares: at random, drawn from a distribution (``sample``),
                                      by ``mutation`` or ``crossover``, by the ``learner``, or ``unknown``
    ``made_random`` and so on         the same for what is new in a generation; ``made_copy``: share of unchanged copies
    ``lines``, ``from_learner``       lines of descent that are left, by first parents; share that descends from the learner
    ``warm_up``                       1 while the learner does not learn yet
    ================================= ===================================================================================

    Where environments report a place (mazes), ``endpoints.csv`` has where the population's episodes ended.

    :param folder: where the files are written; ``None`` for the folder of the environments' monitor files or of an
        ``EvalCallback``'s evaluations, as in the Zoo's ``callback: sb3_erl.PopulationCallback``, and for no file without such.
        A resumed run continues them
    :param n_observations: observations on which actions are compared, at least 1; 0 to compare none
    :param verbose: 1 to say where the file is
    :raises ValueError: at the start of training with a class that has no generations (``TD7``, ``PopTD7``)
    :raises TypeError: with a model of another package
    """

    def __init__(self, folder: str | pathlib.Path | None = None, n_observations: int = 64, verbose: int = 0):
        super().__init__(verbose)
        if isinstance(n_observations, bool) or not isinstance(n_observations, int | np.integer) or n_observations < 0:
            raise ValueError(f"n_observations must be a whole number, at least 0; got {n_observations!r}")
        self.folder = None if folder is None else pathlib.Path(folder)
        self.rows: list[dict[str, Any]] = []
        """A row per generation, with the keys :data:`COLUMNS`."""
        self._files: dict[str, GenerationFile] = {}
        self._observations = FixedObservations(int(n_observations))
        self._last, self._lineage = Lineage.empty(), Lineage.empty()
        """Of the last finished generation, and of the one that runs."""
        self._next: Origins | None = None
        """How the individuals of the next generation came about, if that is decided."""
        self._elite_since: tuple[Any, int] = (None, 0)
        self._epoch: Any = None

    # ---------------------------------------------------------------- a call of learn

    def _init_callback(self) -> None:
        run, name = getattr(self.model, "run", None), type(self.model).__name__
        if not isinstance(run, Run):
            raise TypeError(f"PopulationCallback needs a model of sb3_erl; got {name}, whose population it would not know")
        if not hasattr(self.model, "generation_order"):
            raise ValueError(
                f"callback must not have a PopulationCallback with {name}, which has no generations; leave it out, or train a "
                "class that has them, such as ERL"
            )
        run.observers.append(self)

    def _on_training_start(self) -> None:
        model: Any = self.model
        folder = self.folder or _monitor_folder(self.training_env) or _folder_of_others(self.locals["callback"])
        if model.n_generations == 0:
            self._last, self._next, self._elite_since = Lineage.empty(), None, (None, 0)
            self._observations = FixedObservations(self._observations.n)
        self._epoch = getattr(model.evolver, "epoch", None)
        self.rows = [row for row in self.rows if row["generation"] <= model.n_generations]
        self._files = {}
        if folder is None:
            return
        about = {"algorithm": type(model).__name__, "env": env_name(model.env), "seed": model.run_seed}
        about |= {"pop_size": model.pop_size, "fitness": str(model.fitness_class)}
        self._files[TABLE] = GenerationFile(folder / TABLE, COLUMNS)
        self.rows = self._files[TABLE].begin(about, model.n_generations)
        place = _place(model.env)
        if place is not None:
            self._files[ENDS] = GenerationFile(folder / ENDS, ("generation", "x", "y", "return"))
            self._files[ENDS].begin({**about, "map": place}, model.n_generations)
        if self.verbose >= 1:
            print(f"A row for each generation is written to {folder / TABLE}")

    def _on_training_end(self) -> None:
        for file in self._files.values():
            file.close()

    def run_state(self) -> dict[str, Any]:
        """:return: what a checkpoint keeps of this callback; rows only where no file has them"""
        rows = [] if self._files else self.rows
        kept = {"rows": rows, "lineage": vars(self._last), "elite_since": self._elite_since}
        origins = None if self._next is None else vars(self._next)
        return {**kept, "next": origins, "observations": self._observations.state()}

    def restore_run_state(self, state: dict[str, Any]) -> None:
        """:param state: from :meth:`run_state`, of the run that is resumed"""
        self.rows, self._last, self._elite_since = list(state["rows"]), Lineage(**state["lineage"]), state["elite_since"]
        self._next = None if state["next"] is None else Origins(**state["next"])
        self._observations.restore(state["observations"])

    # ---------------------------------------------------------------- steps and generations

    @property
    def observes_steps(self) -> bool:
        """Whether steps must be shown to this callback: until it has its fixed observations."""
        return not self._observations.is_complete

    def _on_step(self) -> bool:
        ended = self.locals["dones"][0]  # back-ends differ in what they show then
        if not self._observations.is_complete and "new_obs" in self.locals and not ended:
            self._observations.look(self.locals["new_obs"])
        return True

    def after_verb(self, verb: str, generation: Any) -> None:
        """See :class:`~sb3_erl.runs.run.Observer`."""
        if verb == "ask" and generation.candidates is not None:
            self._begin(generation)
        elif verb == "evaluate":
            self._observations.complete(self.model.observation_space)
            taught = getattr(self.model, "learned", None)  # individuals of CEM-RL that take gradient steps
            waiting = None if taught is None else taught.waiting
            if waiting is not None and self._lineage.kinds:
                self._lineage.kinds[: len(waiting)] = ["learner"] * len(waiting)
                self._lineage.outside[: len(waiting)] = [True] * len(waiting)
        elif verb == "log":
            self._end(generation)

    def _begin(self, generation: Any) -> None:
        """Take the lineage of the generation's individuals from that of their parents."""
        model: Any = self.model
        n, origins = len(generation.candidates), self._next or model.evolver.origins()
        if origins is None or len(origins.kinds) != n:
            origins = Origins.all_of("random" if generation.number == 1 else "unknown", n)
        self._lineage = self._last.next(origins, generation.number)

    def _end(self, generation: Any) -> None:
        model: Any = self.model
        self._last, self._next = self._lineage, self._origins_of_next(generation)
        row = dict.fromkeys(COLUMNS, float("nan")) | self._about_run(generation)
        fitness, candidates = generation.fitness, generation.candidates
        if candidates is not None:
            row["parameter_diversity"] = measures.parameter_diversity(candidates)
            if self._observations.batch is not None:
                row["action_diversity"] = measures.action_diversity(model, candidates, self._observations.batch)
            if fitness is not None:
                row |= self._about_fitness(fitness, row["learner_return"]) | self._about_lineage(fitness, generation.number)
        self.rows.append(row)
        for column, key in LOGGED.items():
            if np.isfinite(row[column]):
                self.logger.record(key, row[column])
        if self._files:
            self._files[TABLE].write([row])
        if ENDS in self._files:
            self._files[ENDS].write(_ends(model, generation))

    def _origins_of_next(self, generation: Any) -> Origins | None:
        """What is decided of the next generation; a population that was told nothing is evaluated as it is."""
        evolver: Any = self.model.evolver  # type: ignore[attr-defined]
        epoch = getattr(evolver, "epoch", None)
        is_told, self._epoch = generation.fitness is not None or epoch is not self._epoch, epoch
        if is_told or evolver.starts_from == "mean":
            return evolver.origins()
        n = len(self._lineage.kinds)
        return Origins((COPY,) * n, tuple(range(n))).with_outsiders(evolver.outsiders) if n else None

    def _about_run(self, generation: Any) -> dict[str, Any]:
        model: Any = self.model
        episodes = generation.evaluated.episodes
        of_population = [episode for episode in episodes if model.is_of_population(episode.job)]
        returns = [episode.total_reward for episode in of_population if not episode.failed and not episode.cut]
        name, value = deployed(model)
        return {
            "generation": generation.number,
            "timesteps": model.num_timesteps,
            "warm_up": int(hasattr(model, "learner") and not model._is_warm),
            "population_return_mean": measures.mean_return(of_population),
            "population_return_max": float(np.max(returns)) if returns else float("nan"),
            "learner_return": measures.mean_return([e for e in episodes if not model.is_of_population(e.job)]),
            "deployed": name,
            "deployed_return": float("nan") if value is None else value,
        }

    def _about_fitness(self, fitness: np.ndarray, learner: float) -> dict[str, Any]:
        model: Any = self.model
        finite, is_return = fitness[np.isfinite(fitness)], bool(model._fitness_is_return)
        found: dict[str, Any] = {"fitness_is_return": int(is_return), "n_scored": len(finite)}
        if len(finite):
            found |= {f"fitness_{name}": float(np.quantile(finite, share)) for name, share in QUANTILES.items()}
            found["fitness_mean"] = float(finite.mean())
        return found | ({"learner_beats": measures.learner_beats(fitness, learner)} if is_return else {})

    def _about_lineage(self, fitness: np.ndarray, number: int) -> dict[str, Any]:
        model, lineage = self.model, self._lineage
        if len(fitness) > len(lineage.kinds):  # further pairs were drawn to reach a number of steps
            lineage = lineage.next(Origins.all_of("sample", len(fitness)), number)
        best = measures.elites(model, fitness)
        ages = lineage.ages(number)
        new = [i for i in range(len(fitness)) if ages[i] == 0]
        found: dict[str, Any] = {
            "n_elites": len(best),
            "elites_age": float(ages[best].mean()),
            "oldest_age": int(ages.max()),
            "champion_age": self._age_of_elite(int(ages[best[0]]), number),
            "champion_origin": lineage.kinds[best[0]],
            "made_copy": 1 - len(new) / len(fitness),
        }
        found |= {f"elites_{kind}": share for kind, share in lineage.shares(best).items()}
        found |= {f"made_{kind}": share for kind, share in lineage.shares(new).items()}
        if hasattr(model, "learner"):
            found["from_learner"] = float(np.mean(lineage.outside))
        return found if lineage.n_alive == 0 else {**found, "lines": lineage.n_alive}

    def _age_of_elite(self, age: int, number: int) -> int:
        """Age of the champion; of an elite that is kept apart from the population, generations since it became the elite."""
        genome = getattr(getattr(self.model, "evolver", None), "elite", None)
        offsets = getattr(genome, "offsets", None)
        if offsets is None:
            return age
        if self._elite_since[0] != offsets:
            self._elite_since = (offsets, number)
        return number - self._elite_since[1]

    # ---------------------------------------------------------------- the table

    def table(self) -> Any:
        """
        :return: a ``pandas.DataFrame`` with a row per generation and the columns of :class:`PopulationCallback`
        :raises ImportError: without pandas
        """
        try:
            import pandas
        except ImportError as error:
            raise missing_extra("PopulationCallback.table() needs pandas", "plots", "or read .rows") from error
        return pandas.DataFrame(self.rows, columns=list(COLUMNS))


def _monitor_folder(env: Any) -> pathlib.Path | None:
    """The folder in which the first environment's ``Monitor`` writes, if it does."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if not isinstance(env, DummyVecEnv):
        return None
    inner: Any = env.envs[0]
    while inner is not None:
        file = getattr(vars(inner).get("results_writer"), "file_handler", None)
        if file is not None:
            return pathlib.Path(file.name).parent
        inner = vars(inner).get("env")
    return None


def _folder_of_others(root: BaseCallback) -> pathlib.Path | None:
    """The folder in which an ``EvalCallback`` writes its evaluations, if there is one that does."""
    found = (getattr(each, "log_path", None) for _, each in numbered_callbacks(root) if isinstance(each, EvalCallback))
    return next((pathlib.Path(path).parent for path in found if path), None)


def _place(env: Any) -> dict[str, Any] | None:
    """The map of environments in which an episode ends at a place: walls, start and goal."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    domain: Any = env.envs[0].unwrapped if isinstance(env, DummyVecEnv) else env
    place = getattr(domain, "maze", domain)
    if not hasattr(place, "lines"):
        return None
    goal = None if place.goal is None else [float(x) for x in place.goal]
    lines = [np.asarray(line).tolist() for line in place.lines]
    return {"lines": lines, "start": [float(x) for x in place.start], "goal": goal, "y_points_down": place.y_points_down}


def _ends(model: Any, generation: Any) -> list[dict[str, Any]]:
    """Where the episodes of the population ended."""
    chosen = [e for e in generation.evaluated.episodes if model.is_of_population(e.job) and np.shape(e.behavior) == (2,)]
    ends = ((episode.behavior, episode.total_reward) for episode in chosen)
    return [{"generation": generation.number, "x": float(at[0]), "y": float(at[1]), "return": total} for at, total in ends]
