"""Functions with which workers make environments like the user's own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from sb3_erl.envs.behavior_wrapper import BehaviorWrapper
from sb3_erl.remote.likeness import difference
from sb3_erl.rollouts.slot_reset import base_of

MakeEnv = Callable[[], "gym.Env | VecEnv"]
WAY_OUT = (
    "Give the evaluator a function that makes one environment with all its wrappers, for example "
    "evaluator=ProcessEvaluator(make_env=...), or use evaluator='vec'"
)
SB3_WRAPPERS: dict[str, dict[str, str]] = {
    "stable_baselines3.common.monitor:Monitor": {"info_keywords": "info_keywords"},
    "stable_baselines3.common.atari_wrappers:StickyActionEnv": {"action_repeat_probability": "action_repeat_probability"},
    "stable_baselines3.common.atari_wrappers:NoopResetEnv": {"noop_max": "noop_max"},
    "stable_baselines3.common.atari_wrappers:MaxAndSkipEnv": {"skip": "_skip"},
    "stable_baselines3.common.atari_wrappers:EpisodicLifeEnv": {},
    "stable_baselines3.common.atari_wrappers:FireResetEnv": {},
    "stable_baselines3.common.atari_wrappers:WarpFrame": {"width": "width", "height": "height"},
    "stable_baselines3.common.atari_wrappers:ClipRewardEnv": {},
}
"""Arguments of SB3's wrappers, which do not record them, and the attributes from which they can be read."""
SHELLS = ("stable_baselines3.common.atari_wrappers:AtariWrapper",)
"""Wrappers that only combine other wrappers, which are recorded themselves."""

LEARNING = (
    "gymnasium.wrappers.stateful_observation:NormalizeObservation",
    "gymnasium.wrappers.stateful_reward:NormalizeReward",
)
"""Wrappers with running statistics, which each worker would learn for itself."""
WITHOUT_EFFECT = ("gymnasium.wrappers.rendering:RecordVideo",)
"""Wrappers that only watch, and of which several would write into one folder."""
COUNTING = (Monitor, TimeLimit, OrderEnforcing, PassiveEnvChecker)
"""Wrappers with which a time limit may change places."""

Layer = Callable[[VecEnv], VecEnv]


@dataclass(frozen=True)
class _Frames:
    n_stack: int
    order: str | dict[str, Any]

    def __call__(self, env: VecEnv) -> VecEnv:
        return VecFrameStack(env, self.n_stack, self.order)


@dataclass(frozen=True)
class _Transposed:
    skip: bool

    def __call__(self, env: VecEnv) -> VecEnv:
        return VecTransposeImage(env, self.skip)


@dataclass(frozen=True)
class _Extracted:
    key: str

    def __call__(self, env: VecEnv) -> VecEnv:
        return VecExtractDictObs(env, self.key)


@dataclass(frozen=True)
class _Monitored:
    keywords: tuple[str, ...]

    def __call__(self, env: VecEnv) -> VecEnv:
        return VecMonitor(env, info_keywords=self.keywords)


@dataclass(frozen=True)
class _Normalized:
    pickled: bytes

    def __call__(self, env: VecEnv) -> VecEnv:
        normalizer: VecNormalize = pickle.loads(self.pickled)
        normalizer.set_venv(env)
        return normalizer


@dataclass(frozen=True)
class EnvironmentMaker:
    """
    Makes a VecEnv of one environment, or of several alike; can be pickled.

    :param make_env: makes the environment, ``None`` to make it from ``spec``
    :param spec: gymnasium's description of it and its wrappers
    :param layers: SB3's vectorized wrappers, innermost first
    :param is_monitored: put SB3's Monitor around an environment of ``make_env`` that has none
    :param behavior: put a :class:`~sb3_erl.envs.BehaviorWrapper` with these arguments around one of ``make_env``
    """

    make_env: MakeEnv | None
    spec: EnvSpec | None
    layers: tuple[Layer, ...]
    is_monitored: bool
    behavior: dict[str, Any] | None = None

    def __call__(self, n_envs: int = 1) -> VecEnv:
        made = [self._make() for _ in range(n_envs)]
        single = iter([one for one in made if isinstance(one, gym.Env)])
        env = made[0] if isinstance(made[0], VecEnv) else DummyVecEnv([lambda: next(single)] * n_envs)
        for layer in self.layers:
            env = layer(env)
        return env

    def _make(self) -> gym.Env | VecEnv:
        made = _made(copy.deepcopy(self.spec)) if self.make_env is None else self.make_env()  # type: ignore[arg-type]
        if not isinstance(made, gym.Env | VecEnv):
            raise TypeError(f"make_env must return an environment; got {made!r}. Does it end with return?")
        if isinstance(made, gym.Env) and self.is_monitored and not is_wrapped(made, Monitor):
            made = Monitor(made)
        if isinstance(made, gym.Env) and self.behavior is not None:
            made = BehaviorWrapper(made, **self.behavior)
        return made


def _made(spec: EnvSpec) -> gym.Env:
    """``gym.make``, where the wrappers of a description are those around what an entry point makes."""
    made: Any = gym.make(replace(spec, additional_wrappers=()))
    for wrapper in spec.additional_wrappers:
        made = load_env_creator(wrapper.entry_point)(env=made, **(wrapper.kwargs or {}))
    return made


def environment_maker(env: VecEnv, make_env: MakeEnv | None) -> EnvironmentMaker:
    """
    :param env: the model's own environments
    :param make_env: the user's factory, whose environment only needs the vectorized wrappers of ``env``; or ``None``
    :return: makes one such environment
    :raises ValueError: if a part of ``env`` cannot be made again in another process, or its environments are not all alike
    """
    layers: list[Layer] = []
    inner = env
    while isinstance(inner, VecEnvWrapper):
        layer = _layer(inner)
        layers += [layer] if layer is not None else []
        inner = inner.venv
    spec = _complete_spec(env) if make_env is None else None
    is_monitored = bool(env.env_is_wrapped(Monitor, indices=[0])[0])
    own = inner.envs[0] if isinstance(inner, DummyVecEnv) else None
    behavior = own._saved_kwargs if make_env is not None and isinstance(own, BehaviorWrapper) else None
    return EnvironmentMaker(make_env, spec, tuple(reversed(layers)), is_monitored, behavior)


def _layer(wrapper: VecEnvWrapper) -> Layer | None:
    if isinstance(wrapper, VecFrameStack):
        return _Frames(wrapper.stacked_obs.n_stack, _channels_order(wrapper.stacked_obs))
    if isinstance(wrapper, VecTransposeImage):
        return _Transposed(wrapper.skip)
    if isinstance(wrapper, VecExtractDictObs):
        return _Extracted(wrapper.key)
    if isinstance(wrapper, VecMonitor):
        return _Monitored(tuple(wrapper.info_keywords))
    if isinstance(wrapper, VecCheckNan):
        return None
    if not isinstance(wrapper, VecNormalize):
        raise ValueError(
            f"env must have vectorized wrappers of SB3's only for an evaluator with workers; got {type(wrapper).__name__}. "
            "Do the same in a gymnasium wrapper around each environment, or use evaluator='vec'"
        )
    if wrapper.training:
        raise ValueError(
            "env must not have a VecNormalize that is still learning for an evaluator with workers, which cannot share its "
            "statistics; got VecNormalize(training=True). Set training=False, normalize inside the policy where the algorithm "
            "can (OpenAIES: normalize_obs=True), or use evaluator='vec'"
        )
    return _Normalized(pickle.dumps(wrapper))  # without its environments


def _channels_order(stacked: StackedObservations) -> str | dict[str, Any]:
    """The argument of ``VecFrameStack``; one per key for a Dict space."""
    if isinstance(stacked.observation_space, gym.spaces.Dict):
        return {key: _channels_order(part) for key, part in stacked.sub_stacked_observations.items()}
    return "first" if stacked.channels_first else "last"


def _complete_spec(env: VecEnv) -> EnvSpec:
    """The description of each environment, which has to be that of the first."""
    try:
        specs = [spec for spec in env.get_attr("spec")]
    except (EOFError, OSError):  # of a process that died
        raise
    except Exception as error:  # a VecEnv of its own kind may answer in any way
        raise ValueError(
            "env must be a VecEnv of single environments for an evaluator with workers, which make one of them again; "
            f"get_attr('spec') of {type(base_of(env)).__name__} raised {error!r}. {WAY_OUT}"
        ) from error
    first, *others = (_completed(spec, env, index) for index, spec in enumerate(specs))
    for index, other in enumerate(others, 1):
        if (found := difference(first, other)) is not None:
            raise ValueError(
                "env must have environments that were all made alike for an evaluator with workers, which make one of them "
                f"again; got, of environments 0 and {index}, {found}. {WAY_OUT}"
            )
    return copy.deepcopy(first)


def _completed(spec: EnvSpec | None, env: VecEnv, index: int) -> EnvSpec:
    if spec is None:
        raise ValueError(
            "env must be made by gymnasium.make, or be registered, for an evaluator with workers, which make it again from "
            f"its spec; got an environment without a spec. {WAY_OUT}"
        )
    outer = spec.additional_wrappers[_n_wrappers_of_the_entry_point(spec) :]
    _check_time_limits(env, index, len(outer))
    wrappers = [w for w in outer if w.entry_point not in (*SHELLS, *WITHOUT_EFFECT)]
    return replace(spec, additional_wrappers=tuple(_complete(wrapper, env, index) for wrapper in wrappers))


def _n_wrappers_of_the_entry_point(spec: EnvSpec) -> int:
    """How many of the wrappers in a description are made where the environment is made."""
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    if isinstance(creator, type) or not spec.additional_wrappers:
        return 0
    hidden = {"render_mode": None} if "render_mode" in spec.kwargs else {}
    made = gym.make(replace(spec, additional_wrappers=(), kwargs={**spec.kwargs, **hidden}))
    try:
        return 0 if made.spec is None else len(made.spec.additional_wrappers)
    finally:
        made.close()


def _check_time_limits(env: VecEnv, index: int, n_outer: int) -> None:
    """
    A description has one time limit, that of the outermost ``TimeLimit``, and says nothing of where that is.

    :param n_outer: wrappers in the description that are not those of the entry point
    :raises ValueError: if ``gym.make`` with that limit would make other episodes; not known of other processes
    """
    base = base_of(env)
    if not isinstance(base, DummyVecEnv):
        return
    one: Any = base.envs[index]
    found: list[gym.Wrapper] = []
    while isinstance(one, gym.Wrapper) and (n_outer > 0 or isinstance(one, TimeLimit | OrderEnforcing)):
        n_outer -= not isinstance(one, TimeLimit | OrderEnforcing | PassiveEnvChecker)
        found.append(one)
        one = one.env
    limits = [place for place, wrapper in enumerate(found) if isinstance(wrapper, TimeLimit)]
    if not limits:
        return
    steps: list[Any] = [found[place]._max_episode_steps for place in limits]  # type: ignore[attr-defined]
    if min(steps) < steps[0] or not all(isinstance(wrapper, COUNTING) for wrapper in found[limits[0] :]):
        raise ValueError(
            "env must have the time limit of gymnasium.make, directly around the environment, for an evaluator with workers, "
            f"which make it again from its spec; got {found[limits[0]]}. Give gymnasium.make(..., max_episode_steps=...) the "
            f"limit. {WAY_OUT}"
        )


def _complete(wrapper: WrapperSpec, env: VecEnv, index: int) -> WrapperSpec:
    if wrapper.entry_point in LEARNING:
        raise ValueError(
            "env must not have a wrapper that learns statistics for an evaluator with workers, which cannot share them; got "
            f"{wrapper.entry_point}. Use a VecNormalize with training=False, normalize inside the policy where the algorithm "
            "can (OpenAIES: normalize_obs=True), or use evaluator='vec'"
        )
    if wrapper.kwargs is not None:
        return wrapper
    if wrapper.entry_point not in SB3_WRAPPERS:
        raise ValueError(
            "env must have wrappers that record their arguments (gymnasium.utils.RecordConstructorArgs) for an evaluator with "
            f"workers, which make them again; got {wrapper.entry_point}. {WAY_OUT}"
        )
    names = SB3_WRAPPERS[wrapper.entry_point]
    kwargs: dict[str, Any] = {key: env.get_attr(name, indices=[index])[0] for key, name in names.items()}
    return WrapperSpec(wrapper.name, wrapper.entry_point, kwargs)
