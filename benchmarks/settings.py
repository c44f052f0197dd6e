"""From an algorithm name and an environment id to a class, its Zoo settings and its environments."""

import ast
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml  # type: ignore[import-untyped,unused-ignore]
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

REPOSITORY = Path(__file__).resolve().parent.parent

# Written as Python expressions in the Zoo's files
EXPRESSIONS = (
    "policy_kwargs",
    "replay_buffer_kwargs",
    "env_kwargs",
    "monitor_kwargs",
    "normalize",
    "learner_kwargs",
    "evolver_kwargs",
)
# Keys of the Zoo that this benchmark does not imitate: better to stop than to measure something else
UNSUPPORTED = ("callback", "vec_env_wrapper", "replay_buffer_class")


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """
    Find an algorithm by its Zoo name: first in this package, then in stable_baselines3 and sb3_contrib (baselines).

    :param name: lower-case name, for example ``erl_re2`` or ``td3``
    :raises ValueError: if no package knows the name
    """
    import sb3_contrib
    import stable_baselines3

    try:
        from sb3_erl import ALGOS
    except ImportError:  # the baselines also run from a bare checkout
        ALGOS = {}
    known: dict[str, type[BaseAlgorithm]] = {}
    for package in (sb3_contrib, stable_baselines3):
        for attribute in vars(package).values():
            if inspect.isclass(attribute) and issubclass(attribute, BaseAlgorithm):
                known[attribute.__name__.lower()] = attribute
    known.update(ALGOS)
    if name not in known:
        raise ValueError(f"--algo must be one of {', '.join(sorted(known))}; got {name!r}")
    return known[name]


def settings_file(algo: str) -> Path | None:
    """Return the Zoo file with the settings of ``algo``: ours, else the one of the installed ``rl_zoo3``, else None."""
    folders = [REPOSITORY / "hyperparams"]
    spec = importlib.util.find_spec("sb3_erl")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "hyperparams")
    spec = importlib.util.find_spec("rl_zoo3")  # located, not imported: rl_zoo3 takes seconds to import
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "hyperparams")
    return next((folder / f"{algo}.yml" for folder in folders if (folder / f"{algo}.yml").is_file()), None)


def is_atari(env_id: str) -> bool:
    """Whether the Zoo would take its entry ``atari`` for this environment."""
    try:
        import ale_py
    except ImportError:
        return False
    gym.register_envs(ale_py)
    return env_id in gym.registry and "AtariEnv" in str(gym.registry[env_id].entry_point)


def load_settings(algo: str, env_id: str) -> tuple[dict[str, Any], str]:
    """
    Read the entry of one environment, as the Zoo does, falling back to another version of the same environment.

    :return: the entry as written in the file, and a sentence that says where it comes from
    """
    path = settings_file(algo)
    if path is None:
        return {}, "no settings file, defaults of the class"
    entries = yaml.safe_load(path.read_text())
    atari = ["atari"] if is_atari(env_id) else []
    same_task = [key for key in sorted(entries, reverse=True) if key.rsplit("-v", 1)[0] == env_id.rsplit("-v", 1)[0]]
    for key in [env_id, *same_task, *atari, "default"]:
        if key in entries:
            return dict(entries[key]), f"{path.parent.parent.name}/{path.parent.name}/{path.name}, entry {key!r}"
    return {}, f"no entry for {env_id} in {path.name}, defaults of the class"


def parse_hyperparams(arguments: list[str]) -> dict[str, Any]:
    """
    Parse ``name:value`` arguments; a value that is no Python literal is kept as a string.

    >>> parse_hyperparams(["evolution:False", "learner:sac", "policy_kwargs:dict(a=1)"])
    {'evolution': False, 'learner': 'sac', 'policy_kwargs': 'dict(a=1)'}
    """
    parsed: dict[str, Any] = {}
    for argument in arguments:
        name, colon, value = argument.partition(":")
        if not colon or not name:
            raise ValueError(f"--hyperparams expects name:value, for example gamma:0.98; got {argument!r}")
        try:
            parsed[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            parsed[name] = value
    return parsed


class Experiment:
    """
    The parts of one run that follow from its settings.

    :param algo: Zoo name of the algorithm
    :param env_id: registered environment id
    :param settings: a Zoo entry, already merged with what the command line overrides
    :param steps: training steps; the replay buffer is never made larger than this (it could not fill up)
    """

    def __init__(self, algo: str, env_id: str, settings: dict[str, Any], steps: int) -> None:
        self.env_id = env_id
        self.steps = steps
        is_atari(env_id)  # registers the games
        self.algorithm = algorithm_class(algo)
        settings = dict(settings)
        refused = [key for key in UNSUPPORTED if settings.get(key)]
        if refused:
            raise ValueError(f"the learning benchmark does not support the settings {refused} of {algo} on {env_id}")
        for key in EXPRESSIONS:
            if isinstance(settings.get(key), str):
                settings[key] = _evaluate(settings[key])
        settings.pop("n_timesteps", None)
        settings.pop("monitor_kwargs", None)
        self.n_envs: int = settings.pop("n_envs", 1)
        self.env_kwargs: dict[str, Any] = settings.pop("env_kwargs", None) or {}
        self.wrapper = _wrapper(settings.pop("env_wrapper", None))
        self.n_stack: int | None = settings.pop("frame_stack", None)
        self.normalize: dict[str, Any] | None = _normalize_kwargs(settings)
        self.noise: tuple[str, float] | None = None
        if settings.get("noise_type") is not None:
            self.noise = (settings["noise_type"].strip(), settings["noise_std"])
        settings.pop("noise_type", None)
        settings.pop("noise_std", None)
        self.model_kwargs = {key: _schedule(value) for key, value in settings.items()}
        self.model_kwargs.setdefault("policy", "MlpPolicy")
        if isinstance(self.model_kwargs.get("train_freq"), list):
            self.model_kwargs["train_freq"] = tuple(self.model_kwargs["train_freq"])

    def make_env(self, seed: int, n_envs: int | None = None) -> VecEnv:
        """Build environments without normalization: ``n_envs`` copies, by default as many as the settings ask for."""
        env = make_vec_env(
            self.env_id, n_envs=n_envs or self.n_envs, seed=seed, env_kwargs=self.env_kwargs, wrapper_class=self.wrapper
        )
        return env if self.n_stack is None else VecFrameStack(env, self.n_stack)

    def make_training_env(self, seed: int, statistics: Path | None = None) -> VecEnv:
        """Build the training environments, normalized if the settings say so; ``statistics`` continues a saved run."""
        env = self.make_env(seed)
        if self.normalize is None:
            return env
        return VecNormalize.load(str(statistics), env) if statistics is not None else VecNormalize(env, **self.normalize)

    def make_model(self, env: VecEnv, seed: int, device: str) -> BaseAlgorithm:
        """Build a fresh model on ``env``."""
        kwargs = dict(self.model_kwargs)
        accepted = inspect.signature(self.algorithm).parameters
        if self.noise is not None:
            kwargs["action_noise"] = _action_noise(*self.noise, env.action_space)
        if "buffer_size" in accepted:
            size = kwargs.get("buffer_size", accepted["buffer_size"].default)
            kwargs["buffer_size"] = int(min(size, self.steps + self.n_envs))
        return self.algorithm(env=env, seed=seed, device=device, **kwargs)


def _evaluate(text: str) -> Any:
    import torch as th
    from torch import nn

    return eval(text, {"nn": nn, "th": th, "torch": th, "np": np})


def _normalize_kwargs(settings: dict[str, Any]) -> dict[str, Any] | None:
    value = settings.pop("normalize", False)
    if not value:
        return None
    kwargs = dict(value) if isinstance(value, dict) else {}
    if "gamma" in settings:
        kwargs["gamma"] = settings["gamma"]
    return kwargs


def _wrapper(name: Any) -> Callable[[gym.Env], gym.Env] | None:
    if not name:
        return None
    from rl_zoo3.utils import get_wrapper_class  # slow import, rarely needed

    return get_wrapper_class({"env_wrapper": name})


def _schedule(value: Any) -> Any:
    """Turn the Zoo's ``lin_3e-4`` into SB3's linear schedule; leave everything else alone."""
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return value


def _action_noise(kind: str, std: float, space: gym.Space) -> ActionNoise:
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(f"noise_type needs continuous actions (a Box action space); got {space}")
    mean, sigma = np.zeros(space.shape), std * np.ones(space.shape)
    if "normal" in kind:
        return NormalActionNoise(mean, sigma)
    if "ornstein-uhlenbeck" in kind:
        return OrnsteinUhlenbeckActionNoise(mean, sigma)
    raise ValueError(f"noise_type must be 'normal' or 'ornstein-uhlenbeck'; got {kind!r}")
