"""``EvolvingModel``: what a user calls on every model of this package."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_erl.core.checks import check_learn, check_range
from sb3_erl.rollouts.soundness import environments_watched
from sb3_erl.runs.copying import EnvironmentState
from sb3_erl.runs.description import EarlyTables, Progress, describe, env_name, last_line
from sb3_erl.runs.export import export_policy
from sb3_erl.runs.loading import load_model, saved_class
from sb3_erl.runs.moved_modules import renamed_tensors
from sb3_erl.runs.resuming import resume
from sb3_erl.runs.run import Run
from sb3_erl.runs.safe_files import family
from sb3_erl.runs.saving import save_model

SelfModel = TypeVar("SelfModel", bound="EvolvingModel")

OWN_INTERVAL = -1
"""Value of ``log_interval`` that stands for the class's own."""


class EvolvingModel(BaseAlgorithm):
    """A model of this package; stands before an SB3 base class in the method resolution order."""

    own_log_interval: ClassVar[int] = 1
    """``log_interval`` of :meth:`learn` where the call names none."""
    reported_candidates: ClassVar[tuple[str, ...]] = ()
    """
    Names among :meth:`candidates_for_report` of which the authors publish the best; empty for what ``predict`` acts with.
    """
    _searched_network: ClassVar[str | None] = None
    """Attribute with the network from whose weights evolution begins; ``None`` where these are a learner's."""
    run: Run
    run_seed: int | None
    phase: int
    """Part of every random address; generational algorithms count begun generations here."""
    algorithm: str
    """Name of the class of this package that the model is of, saved so that no other class loads it."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.run = Run(self)
        self.run_seed, self.phase, self.algorithm = None, 0, family(type(self))
        super().__init__(*args, **kwargs)

    # ---------------------------------------------------------------- training

    def learn(
        self: SelfModel,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int | None = OWN_INTERVAL,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfModel:
        """
        Train for a number of environment steps, counted over population and learner.

        Stops exactly at ``total_timesteps`` with one environment, also inside an episode; an unfinished generation is then
        discarded: its transitions stay in the replay buffer and its steps count, but nothing is learned from it. ``TD7`` with
        ``offline=True`` takes no environment steps and counts gradient updates instead.

        :param total_timesteps: environment steps (offline: updates); floats such as ``1e6`` are fine
        :param callback: called at every vector step (offline: after every update)
        :param log_interval: generations between two log tables, with ``TD7`` and ``PopTD7`` episodes (offline: thousands of
            updates); ``None`` for no automatic log, -1 for every generation, or every four episodes
        :param tb_log_name: name of the TensorBoard run, the class name by default
        :param reset_num_timesteps: whether to count from 0 again
        :param progress_bar: show a progress bar (needs tqdm and rich)
        :return: the model
        :raises ValueError: if ``total_timesteps`` is not positive, the environment is none, closed, or gives wrong shapes (to
            ``TD7``: or values that are not finite), or an offline replay buffer is empty
        :raises WorkerError: if an environment in another process failed, see ``docs/faults.md``
        :raises FailedEpisodesError: if as many episodes in a row failed as a generation has
        """
        log_interval = self.own_log_interval if log_interval == OWN_INTERVAL else log_interval
        check_learn(self, total_timesteps, callback, log_interval)
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        with environments_watched(self.env), self.run.learning():
            total_timesteps, callback = self.run.begin(total_timesteps, callback, reset_num_timesteps, name, progress_bar)
            self.run.tables = EarlyTables(self) if self.verbose >= 1 and log_interval is not None else None
            callback.on_training_start(locals(), globals())
            if self._searched_network is not None and self.n_generations == 0:  # type: ignore[attr-defined]
                self.population.follow(attrgetter(self._searched_network)(self))  # type: ignore[attr-defined]
            progress = Progress(self)
            self._train_loop(total_timesteps, callback, log_interval)
            callback.on_training_end()
            progress.warn_of_none(total_timesteps)
            if self.verbose >= 1:
                print(last_line(self, callback))
        return self

    def _train_loop(self, total_timesteps: int, callback: BaseCallback, log_interval: int | None) -> None:
        """
        Train until ``num_timesteps`` has reached ``total_timesteps`` or a callback says stop.

        :param total_timesteps: step at which training ends
        :param callback: all callbacks, whose training has begun
        :param log_interval: see :meth:`learn`
        """
        raise NotImplementedError

    # ---------------------------------------------------------------- what a paper would report

    def candidates_for_report(self) -> dict[str, Any]:
        """
        Everything that could be tested and published as the result so far, for example learner and champion.

        A model deploys one policy and plays no test episodes. Published curves are often the maximum over several policies,
        each tested in episodes of its own; ``python -m benchmarks.learning`` does so. Nothing of a run is changed: generators,
        buffers and counters are as they were, and so is what follows.

        :return: by name (``"learner"``, ``"champion"``, ``"mean"``, ``"checkpoint"``), the same names throughout a run; each
            has ``predict`` and holds until the next generation. Before there is a champion or checkpoint, what is deployed
            stands for it. :attr:`reported_candidates` says which of them the authors report
        """
        return {"deployed": self.policy}

    # ---------------------------------------------------------------- random numbers

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Give the run another seed, from which the next :meth:`learn` draws; see ``BaseAlgorithm.set_random_seed``.

        :param seed: as the argument of the constructor; ``None`` changes nothing
        :raises ValueError: if it is out of range
        :raises TypeError: if it is no integer
        """
        if seed is not None:
            check_range("seed", seed, 0, 2**32 - 1, integer=True)
            self.seed = int(seed)
            self.run.choose_seed()
            seed = self.seed
        super().set_random_seed(seed)

    def rng(self, name: str) -> np.random.Generator:
        """
        A generator of one's own, so that what a callback or a subclass draws is part of the run.

        It depends on the run's seed, the generation and the name only, so a run that is killed and resumed draws the same
        numbers. Asked for again in the same generation (with ``TD7``: in the same episode) it goes on where it was.

        :param name: any name, different ones for different purposes
        :return: the generator
        :raises TypeError: if ``name`` is no string
        """
        return self.run.rng(name)

    @property
    def _phase_key(self) -> tuple[int, ...]:
        """What besides :attr:`phase` has changed when a stream of random numbers starts anew."""
        return ()

    # ---------------------------------------------------------------- files

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save everything but transitions to an SB3 zip file; a crash while saving leaves the previous file whole.

        An attribute of your own that cannot be pickled, such as an open file, is left out with a warning.

        :param path: file name (``.zip`` is added) or open file
        :param exclude: attributes to leave out
        :param include: attributes to save although they are excluded by default
        """
        save_model(self, path, exclude, include, self._plain_state())

    def export(self, path: str | pathlib.Path, normalize: bool = True) -> pathlib.Path:
        """
        Write what ``predict(observation, deterministic=True)`` does to a file that acts without this package.

        The file takes a batch of any size of observations as the environment gives them and returns actions of the
        environment: normalization (``VecNormalize``, statistics inside the network, virtual batch norms) and the scaling of
        actions are part of it. Images have channels first, as in ``observation_space``. Before anything is written, the file
        has to act as ``predict`` does on 1000 observations. See ``docs/export.md``.

        :param path: ends in ``.pt2`` (``torch.export``), ``.onnx`` (ONNX, with the extra ``onnx``) or ``.pt`` (TorchScript)
        :param normalize: whether the statistics of ``VecNormalize`` become part of the file; ``False``: the file takes what
            ``predict`` takes. A model that was loaded without its environment knows no statistics
        :return: the file
        :raises ValueError: if the ending is unknown, the network has a step that the format cannot express, the file would
            act otherwise than ``predict``, or a wrapper above ``VecNormalize`` changes observations
        :raises ImportError: if the packages of an optional format are missing
        """
        return export_policy(self, path, normalize)

    def _plain_state(self) -> dict[str, Any]:
        """
        State of parts that are not saved themselves, as plain values (numbers, strings, lists, dicts).

        :return: values by the names of attributes, which a loaded model has before ``_setup_model`` runs
        """
        return {}

    @classmethod
    def load(
        cls: type[SelfModel],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfModel:
        """
        Load a model, see ``BaseAlgorithm.load``. Pickles, which may run any code, are read for what stands in no other form
        only (``verbose=1`` says what); ``trusted=False`` reads none, as :func:`load_safe`.

        :param path: file name (``.zip`` may be left out) or open file
        :param env: environment to go on in or its id, ``None`` to predict only
        :param device: where the networks shall be
        :param custom_objects: replace what cannot be unpickled, by name
        :param print_system_info: also of the system that saved the model
        :param force_reset: whether ``env`` is reset before the next ``learn``
        :param kwargs: attributes to change; and ``trusted``, whether pickles in the file may be read. Without,
            ``tensorboard_log`` is ``None``, since it is a folder that a file would choose
        :return: the model
        :raises FileNotFoundError: if there is no such file
        :raises ModelFileError: a ValueError, if a file that is not trusted is damaged, or holds what only a pickle can
        :raises ValueError: if the file is damaged, or not a model of this class and version, or the id unknown
        :raises TypeError: if there is no such attribute to change
        """
        arguments = {"device": device, "print_system_info": print_system_info, "force_reset": force_reset}
        trusted = kwargs.pop("trusted", True)  # no argument of its own, as this method takes what SB3's takes
        return load_model(cls, super().load, path, env, custom_objects, trusted, arguments, **kwargs)

    def set_parameters(
        self, load_path_or_dict: str | dict[str, Any], exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters into the networks, see ``BaseAlgorithm.set_parameters``; those of earlier versions fit, too.

        :param load_path_or_dict: file name, or state dicts by name as :func:`~sb3_erl.runs.loading.load_parameters` gives them
        :param exact_match: whether each of the model's state dicts must be there, and each of their tensors
        :param device: where tensors of a file go
        :raises ValueError: if there is one that the model does not have, or, with ``exact_match``, one is missing
        """
        if not isinstance(load_path_or_dict, dict):
            load_path_or_dict = load_from_zip_file(load_path_or_dict, load_data=False, device=device)[1]
        super().set_parameters(renamed_tensors(load_path_or_dict, self.get_parameters()), exact_match, device)
        if self._searched_network is not None and "policy" in load_path_or_dict:
            population: Any = self.population  # type: ignore[attr-defined]
            take = population.know if "evolver" in load_path_or_dict else population.move_to
            take(attrgetter(self._searched_network)(self))

    @classmethod
    def resume_from(
        cls: type[SelfModel],
        path: str | pathlib.Path,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        **kwargs: Any,
    ) -> SelfModel:
        """
        The model of an interrupted run, with replay buffer and ``VecNormalize`` statistics.

        Its next ``learn`` is the interrupted call: give it the same ``total_timesteps``, of which it makes what is left, and
        the same callbacks. From a :class:`~sb3_erl.runs.callbacks.GenerationCheckpoint` the run goes on bit for bit (CPU),
        and the files of its logger go on where they stood then. From the files of SB3's ``CheckpointCallback`` (with
        ``save_replay_buffer`` and ``save_vecnormalize``) it goes on with the next generation. Checkpoints hold pickles:
        resume your own runs only.

        :param path: folder of checkpoints, of which the newest whole one is taken; or one checkpoint in it
        :param env: environment as in the interrupted run, ``None`` to make it again from its id
        :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``
        :param kwargs: attributes of the model to be changed, see ``load``
        :return: the model
        :raises ValueError: if there is no whole checkpoint, it is of another class, or ``env`` is needed or does not fit
        """
        return resume(cls, pathlib.Path(path).absolute(), env, device, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "run"]

    def __getstate__(self) -> dict[str, Any]:
        """
        What ``pickle`` and ``copy.deepcopy`` take: everything, replay buffer and environments included, but the logger.

        Loggers hold open files; the copy's next ``learn`` makes one, as it does for a model that was loaded from a file.

        :raises TypeError: if the environments live in other processes
        """
        state = {name: value for name, value in vars(self).items() if name not in ("_logger", "_vec_normalize_env")}
        env = None if self.env is None else EnvironmentState(self.env)
        return {**state, "env": env, "_custom_logger": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        env = None if state["env"] is None else state["env"].restored()
        vars(self).update(state, env=env, _vec_normalize_env=None if env is None else unwrap_vec_normalize(env))
        buffer: Any = state.get("replay_buffer")
        if env is not None and hasattr(buffer, "set_env"):  # hindsight asks the environments for rewards
            buffer.set_env(env)

    # ---------------------------------------------------------------- text

    def __repr__(self) -> str:
        policy = getattr(self, "policy_class", None)
        words = [getattr(policy, "__name__", "no policy"), env_name(getattr(self, "env", None))]
        return f"{type(self).__name__}({', '.join(words)}, num_timesteps={getattr(self, 'num_timesteps', 0)})"

    def __str__(self) -> str:
        return describe(self)


def load_safe(path: str | pathlib.Path | io.BufferedIOBase, env: GymEnv | str | None = None, **kwargs: Any) -> EvolvingModel:
    """
    Load a model of any class of this package from a file that need not be trusted: no code in it is run.

    Reads only the JSON and the tensors that ``save`` writes beside SB3's pickles; ``docs/safe_files.md`` says what they hold.
    The model is that of ``load``, except that its ``tensorboard_log`` is ``None``: no file chooses where files are written.

    :param path: file name (``.zip`` may be left out) or open file
    :param env: environment to go on in or its id, ``None`` to predict only
    :param kwargs: further arguments of :meth:`EvolvingModel.load`, such as ``device``, or attributes to change
    :return: the model
    :raises FileNotFoundError: if there is no such file
    :raises ModelFileError: a ValueError, if the file is damaged, was made to do harm, is of another package or an earlier
        version, or holds something that only a pickle can, which is named
    """
    return saved_class(path, EvolvingModel).load(path, env, trusted=False, **kwargs)
