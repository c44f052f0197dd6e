"""The whole state of an environment, which is saved and restored without making another environment."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from gymnasium.envs.registration import EnvSpec

from sb3_erl.planning.base import layers_of, physics_of

KEPT_TYPES = (
    gym.spaces.Space,
    EnvSpec,
    MujocoRenderer,
    mujoco.MjModel,
    mujoco.MjData,
    partial,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
)
"""What steps do not change."""
KEPT_NAMES = {"render_mode", "metadata", "_metadata", "_cached_spec", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
"""Attributes that say what an environment is, not what state it is in."""
PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None), np.generic)
"""What cannot be changed in place."""


@dataclass
class Layer:
    """
    State of one layer of an environment: attributes by the way in which they are copied.

    :param plain: what cannot be changed in place
    :param flat: arrays, lists, dicts and sets of plain values, with copies. They are restored in place, so that what
        refers to them elsewhere, such as a view of an array, still does
    :param random: generators and their states
    :param deep: all others
    """

    plain: dict[str, Any] = field(default_factory=dict)
    flat: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    random: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    deep: dict[str, Any] = field(default_factory=dict)


@dataclass
class Snapshot:
    """
    State of an environment, see :meth:`Simulation.save`; can be sent to another process.

    :param layers: of the environment and its wrappers, outermost first
    :param data: the whole ``MjData``, ``None`` if it is no MuJoCo environment
    :param model: numbers of the ``MjModel`` that tasks change at a reset, such as where a target stands
    """

    layers: list[Layer]
    data: Any
    model: dict[str, np.ndarray]


class Simulation:
    """
    One environment whose state is saved, restored and stepped on from.

    ``mujoco.mj_copyData`` is the way to restore MuJoCo: position, velocity and time alone, or even ``mjSTATE_INTEGRATION``,
    lack fields that rewards are computed of (Ant, Humanoid) or that the solver starts from (Hopper, Walker2d).

    :param env: a Gymnasium environment with any wrappers
    :raises TypeError: when it is saved, if its state cannot be copied
    """

    def __init__(self, env: gym.Env):
        self.env, self.layers = env, layers_of(env)
        self._kept = {id(layer): layer for layer in self.layers}
        for owner in self.layers:  # dm_control's physics, which holds MuJoCo's memory
            values = vars(owner).values()
            self._kept |= {id(value): value for value in values if hasattr(value, "model") and hasattr(value, "data")}
        if self.physics is not None:
            self._kept |= {id(part): part for part in self.physics[:2]}

    @property
    def physics(self) -> tuple[Any, Any, int] | None:
        """MuJoCo's model and data, which a reset may replace, see :func:`~sb3_erl.planning.base.physics_of`."""
        return physics_of(self.layers)

    def _is_kept(self, name: str, value: Any) -> bool:
        if name in KEPT_NAMES or isinstance(value, KEPT_TYPES):
            return True
        return id(value) in self._kept

    def save(self) -> Snapshot:
        """
        :return: the state of now, of physics, wrappers and random generators
        :raises TypeError: if an attribute cannot be copied
        """
        layers = [Layer() for _ in self.layers]
        for owner, layer in zip(self.layers, layers, strict=True):
            for name, value in vars(owner).items():
                if not self._is_kept(name, value):
                    self._save_attribute(owner, layer, name, value)
        self._copy_deep(layers)
        physics = self.physics
        if physics is None:
            return Snapshot(layers, None, {})
        model, current, _ = physics
        data = mujoco.MjData(model)
        mujoco.mj_copyData(data, model, current)
        arrays = {name: getattr(model, name) for name in MODEL_ARRAYS}
        return Snapshot(layers, data, {name: array.copy() for name, array in arrays.items() if array.size})

    @staticmethod
    def _save_attribute(owner: Any, layer: Layer, name: str, value: Any) -> None:
        if isinstance(value, PLAIN_TYPES):
            layer.plain[name] = value
        elif isinstance(value, np.random.Generator):
            layer.random[name] = (value, value.bit_generator.state)
        elif isinstance(value, np.random.RandomState):
            layer.random[name] = (value, value.get_state())
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            layer.flat[name] = (value, value.copy())
        elif type(value) in (list, dict, set) and all(isinstance(part, PLAIN_TYPES) for part in _parts(value)):
            layer.flat[name] = (value, value.copy())
        else:
            layer.deep[name] = value

    def _copy_deep(self, layers: list[Layer]) -> None:
        """Replace what has to be copied deeply by copies, which refer to each other as the originals do."""
        if not any(layer.deep for layer in layers):
            return
        try:
            copies = copy.deepcopy([layer.deep for layer in layers], dict(self._kept))
        except Exception as error:  # an object of the user's may raise anything
            names = [
                f"{type(owner).__name__}.{name} ({type(value).__name__})"
                for owner, layer in zip(self.layers, layers, strict=True)
                for name, value in layer.deep.items()
            ]
            raise TypeError(
                f"env must be an environment whose state can be copied; one of {names} cannot: {type(error).__name__}: "
                f"{error}. "
                "Give a model of the task instead: FunctionModel(f, r) or LearnedModel"
            ) from error
        for layer, copied in zip(layers, copies, strict=True):
            layer.deep = copied

    def restore(self, state: Snapshot) -> None:
        """
        :param state: what :meth:`save` returned for this environment, or for another one like it in another process
        """
        physics = self.physics
        for name, array in state.model.items():
            own = getattr(physics[0], name)  # type: ignore[index]
            if not np.array_equal(own, array):
                own[...] = array
        self._restore_steps(state)

    def _restore_steps(self, state: Snapshot) -> None:
        """Restore what steps change, which is all but the numbers of the ``MjModel``."""
        layers = state.layers
        if any(layer.deep for layer in layers):
            layers = [Layer(layer.plain, layer.flat, layer.random, layer.deep) for layer in layers]
            self._copy_deep(layers)
        for owner, layer in zip(self.layers, layers, strict=True):
            attributes = vars(owner)
            attributes.update(layer.plain)
            for name, (value, content) in layer.flat.items():
                _write(value, content)
                attributes[name] = value
            attributes.update(layer.deep)
            for name, (generator, words) in layer.random.items():
                if isinstance(generator, np.random.Generator):
                    generator.bit_generator.state = words
                else:
                    generator.set_state(words)
                attributes[name] = generator
            n_saved = len(layer.plain) + len(layer.flat) + len(layer.random) + len(layer.deep)
            if len(attributes) > n_saved:
                self._forget_new(attributes, layer)
        physics = self.physics
        if physics is not None:
            mujoco.mj_copyData(physics[1], physics[0], state.data)

    def _forget_new(self, attributes: dict[str, Any], layer: Layer) -> None:
        """Delete attributes that steps have made since."""
        saved = layer.plain.keys() | layer.flat.keys() | layer.random.keys() | layer.deep.keys()
        for name in attributes.keys() - saved:
            if not self._is_kept(name, attributes[name]):
                del attributes[name]

    @contextmanager
    def not_rendered(self) -> Iterator[None]:
        """Within the block steps show nothing on the screen."""
        shown = [layer for layer in self.layers if vars(layer).get("render_mode") == "human"]
        for layer in shown:
            layer.render_mode = None
        try:
            yield
        finally:
            for layer in shown:
                layer.render_mode = "human"

    def run(self, state: Snapshot, actions: np.ndarray) -> np.ndarray:
        """
        Step through sequences of actions, each of them from the same state; the environment is left where the last one ended.

        :param state: where they start
        :param actions: ``(n_candidates, n_steps, action_dim)`` in units of the environment
        :return: rewards ``(n_candidates, n_steps)``, 0 after the end of an episode, also by a time limit
        """
        rewards = np.zeros(actions.shape[:2])
        actions = actions.astype(self.env.action_space.dtype)
        self.restore(state)
        for sequence, row in zip(actions, rewards, strict=True):
            self._restore_steps(state)
            for t, action in enumerate(sequence):
                _, row[t], terminated, truncated, _ = self.env.step(action)
                if terminated or truncated:
                    break
        return rewards


def _write(value: Any, content: Any) -> None:
    """Give an array, a list, a dict or a set its former content back."""
    if isinstance(value, np.ndarray):
        if value.flags.writeable:
            value[...] = content
    elif isinstance(value, list):
        value[:] = content
    else:
        value.clear()
        value.update(content)


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


MODEL_ARRAYS = tuple(
    name
    for name in dir(mujoco.MjModel)
    if name.startswith(
        ("body_", "jnt_", "dof_", "geom_", "site_", "tendon_", "actuator_", "eq_", "mocap_", "pair_", "hfield_")
    )
)
"""Fields of an ``MjModel`` that tasks change at a reset."""
