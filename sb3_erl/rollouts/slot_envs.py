"""The environments of a VecEnv, each of which begins its episodes at its own time and with its own seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, unwrap_vec_normalize
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

from sb3_erl.buffers.rollout_steps import TRUNCATED
from sb3_erl.core.observations import combine, copied, copy_info, several, shape_of
from sb3_erl.rollouts.slot_reset import (
    SlotResetter,
    base_of,
    is_unknown,
    normalizer_on_top,
    reset_arguments,
    text_of_order,
    wrappers_of,
)
from sb3_erl.rollouts.soundness import NormalizerGuard, check_shape

STEPPING = ("reset", "step", "step_async", "step_wait", "_save_obs", "_obs_from_buf")
"""Methods of SB3's VecEnvs that reset and step, as far as a class has them."""
NextSeed = Callable[[int], int | None]
"""Gives the seed of the next episode in an environment whose episode has ended; ``None`` if none follows yet."""


def has_singles(base: VecEnv) -> bool:
    """
    :param base: environments without wrappers
    :return: whether stepping and resetting single environments is all that it does
    """
    known = next((cls for cls in (DummyVecEnv, SubprocVecEnv) if isinstance(base, cls)), None)
    names = [name for name in STEPPING if hasattr(known, name)]
    return known is not None and all(
        getattr(type(base), name) is getattr(known, name) and name not in vars(base) for name in names
    )


def knows_method(env: VecEnv, name: str) -> bool:
    """
    :param env: environments, perhaps of a simulator that has no single ones
    :param name: of a method
    :return: whether all environments have it
    """
    if isinstance(base_of(env), DummyVecEnv | SubprocVecEnv):
        return env.has_attr(name)
    try:
        return all(callable(each) for each in env.get_attr(name))  # a simulator may answer None to whatever it is asked
    except Exception:  # or raise anything
        return False


class SlotEnvs:
    """
    Environments, one in each slot, of which every reset is played.

    A VecEnv resets an environment whose episode ends, and ``reset`` resets all. Between :meth:`attached` and its end, a
    ``DummyVecEnv`` or ``SubprocVecEnv`` below any wrappers does so with the seed of the episode that follows there, or not at
    all if none follows yet: an environment then sleeps, is not stepped, and what stands in its row are the numbers of another
    one, so that running statistics see nothing strange. First observations pass the wrappers as in SB3.

    A subclass of ``DummyVecEnv`` with steps of its own is stepped as it is, and the environments in it are reset with the same
    seeds. Any other VecEnv is used as it is, in one of two ways. If ``env_method("reset", seed=..., indices=[i])`` resets
    environment i and returns ``[(observation, info)]``, every episode begins so, and those with which the VecEnv itself goes
    on are not played. Otherwise all its environments begin together by ``reset``, with seeds if it takes them from ``_seeds``
    as SB3's do, and an episode that ends is followed by the one with which the VecEnv goes on. Rows without an episode are
    stepped, too.

    :param env: environments in their wrappers
    """

    def __init__(self, env: VecEnv):
        self.env, self.base = env, base_of(env)
        is_one_to_one = env.num_envs == self.base.num_envs  # no wrapper adds agents, or puts environments together
        self.has_singles = is_one_to_one and has_singles(self.base)
        self.normalizer = normalizer_on_top(env)
        """Whose ``get_original_obs`` gives what replay buffers store; ``None`` if policies see that."""
        self.guard = NormalizerGuard(unwrap_vec_normalize(env))
        self._resetter = SlotResetter(env, self._reset_single if self.has_singles else None)
        self.has_hooks = is_one_to_one and isinstance(self.base, DummyVecEnv) and not self.has_singles
        self.by_method = is_one_to_one and self._resetter.is_possible and not self.has_singles and not self.has_hooks
        """Whether each episode begins by ``env_method``; found out when the first one begins."""
        self._has_begun = False
        self._shape = shape_of(env.observation_space)
        self._next_seed: NextSeed = _none
        self._seeds: Sequence[int | None] | None = None
        self._sleeps = np.ones(env.num_envs, dtype=bool)
        self._actions: Any = None
        self.is_own: Callable[[], bool] = _never
        """
        Whether a step that is taken now is one of the episodes here. Any other, such as those of a callback that evaluates a
        policy in the same environments, is the VecEnv's own; what runs here goes on in whatever state that has left.
        """

    # ---------------------------------------------------------------- beginning episodes

    @contextmanager
    def attached(self, next_seed: NextSeed) -> Iterator[None]:
        """
        Context in which the environments are stepped.

        :param next_seed: called for each environment whose episode ends, in the order of their numbers
        """
        self._next_seed = next_seed
        base: Any = self.base
        replaced: list[tuple[Any, dict[str, Any]]] = []
        if self.has_singles:
            own: dict[str, Callable[..., Any]] = {"reset": self._reset_all, "step_async": self._step_async}
            own["step_wait"] = self._step_wait
            replaced = [(base, {name: Replaced(method) for name, method in own.items()})]
        elif self.has_hooks:
            replaced = [(one, {"reset": Replaced(self._hook(index, one.reset))}) for index, one in enumerate(base.envs)]
        for thing, methods in replaced:
            vars(thing).update(methods)
        try:
            yield
        finally:
            for thing, methods in replaced:
                for name in methods:
                    vars(thing).pop(name, None)

    def _hook(self, index: int, reset: Callable[..., Any]) -> Callable[..., Any]:
        """``reset`` of an environment, with the seed of its next episode where it is called without one in a step."""

        def seeded(**arguments: Any) -> Any:
            if self._seeds is None and self.is_own() and arguments.get("seed") is None:
                arguments["seed"] = self._next_seed(index)
            return reset(**arguments)

        return seeded

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Context of a step of the episodes here."""
        self.is_own = _always
        try:
            yield
        finally:
            self.is_own = _never

    def begin_all(self, seeds: Sequence[int | None]) -> tuple[Any, Any]:
        """
        Begin an episode in each environment at once.

        :param seeds: one per environment; ``None`` where none begins, so that it sleeps if it can
        :return: ``(n_envs, *obs_shape)`` first observations as policies see them, and as replay buffers store them
        :raises ValueError: if an observation has another shape, or the original of observations is not known
        """
        if self.by_method:
            begun = self._begin_by_method(seeds)
            if begun is not None:
                return begun
        if not self.has_singles:
            self.base._seeds = [seeds[index] if index < len(seeds) else None for index in range(self.base.num_envs)]
        self._seeds = seeds
        self.guard.keep()
        try:
            seen: Any = self.env.reset()
        finally:
            self._seeds = None
        check_shape("observations", seen, several(self._shape, len(seeds)))
        if self.guard.restore() and self.normalizer is not None:
            seen = self.normalizer.normalize_obs(self.normalizer.get_original_obs())
        return seen, self.originals(seen)

    def begin(self, index: int, seed: int) -> tuple[Any, Any] | None:
        """
        Begin an episode in one environment, whose episode need not have ended.

        :param index: of the environment
        :param seed: of the episode
        :return: first observation as the policy sees it, and as replay buffers store it; ``None`` if only all environments
            can begin together
        """
        if not (self.by_method or (self.has_singles and self._resetter.is_possible)):
            return None
        try:
            return self._resetter(index, seed)
        except ValueError as error:
            if not self.by_method or error.__cause__ is None:
                raise
            self.by_method = False
            return None

    def _begin_by_method(self, seeds: Sequence[int | None]) -> tuple[Any, Any] | None:
        """:meth:`begin` for each environment; rows that were never reset are, too, because they will be stepped."""
        rows: list[tuple[Any, Any]] = []
        for index, seed in enumerate(seeds):
            is_idle = seed is None and self._has_begun
            row = rows[0] if is_idle else self.begin(index, seed or 0)
            if row is None:
                return None
            check_shape("observations", row[0], self._shape)
            rows.append(row)
        self._has_begun = True
        seen, stored = (combine(lambda *parts: np.stack(parts), *column) for column in zip(*rows, strict=True))
        return seen, stored

    def sleep(self, index: int) -> None:
        """The episode in an environment is left as it is."""
        self._sleeps[index] = True

    # ---------------------------------------------------------------- observations

    def originals(self, seen: Any) -> Any:
        """
        :param seen: ``(n_envs, *obs_shape)`` what :meth:`begin_all` or a step gave
        :return: the same as replay buffers store it
        """
        return seen if self.normalizer is None else self.normalizer.get_original_obs()

    def check_originals(self, seen: Any) -> None:
        """
        :param seen: ``(n_envs, *obs_shape)`` that were just given
        :raises ValueError: if they are not the normalized originals, because a wrapper around VecNormalize has changed them
        """
        for wrapper in wrappers_of(self.env):
            if self.normalizer is None or wrapper is self.normalizer:
                return
            if is_unknown(wrapper) and not _equal(seen, self.normalizer.normalize_obs(self.normalizer.get_original_obs())):
                raise ValueError(text_of_order([type(wrapper).__name__]))

    # ---------------------------------------------------------------- in the place of SB3's methods

    def _reset_single(self, index: int, seed: int) -> Any:
        return self._reset_singles({index: seed})[index]

    def _reset_singles(self, seeds: dict[int, int]) -> dict[int, Any]:
        """Reset some environments, those in other processes at the same time."""
        base, infos = self.base, list(self.base.reset_infos)
        arguments = {index: reset_arguments(base, index, seed) for index, seed in seeds.items()}
        self._sleeps[list(seeds)] = False
        if isinstance(base, DummyVecEnv):
            answers = {index: base.envs[index].reset(**given) for index, given in arguments.items()}
        else:
            remotes: Any = base.remotes
            for index, given in arguments.items():
                remotes[index].send(("env_method", ("reset", (), given)))
            answers = {index: remotes[index].recv() for index in arguments}
        for index, (_, info) in answers.items():
            infos[index] = info
        base.reset_infos = infos
        return {index: observation for index, (observation, _) in answers.items()}

    def _reset_all(self) -> Any:
        if self._seeds is None:
            return type(self.base).reset(self.base)
        seeds = {index: seed for index, seed in enumerate(self._seeds) if seed is not None}
        self._sleeps[:] = True
        begun = self._reset_singles(seeds)
        first = next(iter(begun.values()))
        return self._put_together([begun.get(index, first) for index in range(self.env.num_envs)])

    def _step_async(self, actions: np.ndarray) -> None:
        if not self.is_own():
            return type(self.base).step_async(self.base, actions)
        self._actions = actions
        if isinstance(self.base, SubprocVecEnv):
            for index in self._awake():
                self.base.remotes[index].send(("env_method", ("step", (actions[index],), {})))
            self.base.waiting = True

    def _step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        base, awake, n_envs = self.base, self._awake(), self.env.num_envs
        if not self.is_own():
            return type(base).step_wait(base)
        if isinstance(base, DummyVecEnv):  # whose environments may use their memory again
            answers = [base.envs[index].step(self._actions[index]) for index in awake]
            answers = [(*answer[:4], copy_info(answer[4])) for answer in answers]
        else:
            answers = [base.remotes[index].recv() for index in awake]
            base.waiting = False
        stand_in = answers[0][0] if len(awake) == n_envs else copied(answers[0][0])
        observations, rewards = [stand_in] * n_envs, [answers[0][1]] * n_envs
        dones, infos = np.zeros(n_envs, dtype=bool), [dict[str, Any]() for _ in range(n_envs)]
        for index, (observation, reward, terminated, truncated, info) in zip(awake, answers, strict=True):
            observations[index], rewards[index], infos[index] = observation, reward, info
            info[TRUNCATED] = truncated and not terminated
            dones[index] = terminated or truncated
            if dones[index]:
                info["terminal_observation"] = copied(observation)
        if dones.any():
            observations = self._go_on(observations, dones)
        if isinstance(base, DummyVecEnv):
            for index, reward in enumerate(rewards):
                base.buf_rews[index] = reward
            return self._put_together(observations), np.copy(base.buf_rews), dones, infos
        return self._put_together(observations), np.stack([np.asarray(reward) for reward in rewards]), dones, infos

    def _go_on(self, observations: list[Any], dones: np.ndarray) -> list[Any]:
        """Begin the next episode, or sleep, where one has ended; returns the observations after that."""
        ended = [int(index) for index in np.flatnonzero(dones)]
        seeds = {index: self._next_seed(index) for index in ended}
        for index in ended:
            self._sleeps[index] = seeds[index] is None
        begun = self._reset_singles({index: seed for index, seed in seeds.items() if seed is not None})
        return [begun.get(index, observation) for index, observation in enumerate(observations)]

    def _put_together(self, observations: list[Any]) -> Any:
        base = self.base
        if isinstance(base, DummyVecEnv):
            for index, observation in enumerate(observations):
                base._save_obs(index, observation)
            return base._obs_from_buf()
        return _stack_obs(observations, base.observation_space)

    def _awake(self) -> list[int]:
        return [int(index) for index in np.flatnonzero(~self._sleeps)]


class Replaced:
    """Stands in the place of a method of an environment while episodes run."""

    def __init__(self, method: Callable[..., Any]):
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, **kwargs)


def _none(index: int) -> None:
    return None


def _never() -> bool:
    return False


def _always() -> bool:
    return True


def _equal(seen: Any, other: Any) -> bool:
    if isinstance(seen, dict):
        return all(np.array_equal(part, other[key], equal_nan=True) for key, part in seen.items())
    return np.array_equal(seen, other, equal_nan=True)
