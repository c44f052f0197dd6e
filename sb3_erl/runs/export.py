"""Policies as files that act without this package: TorchScript, torch.export and ONNX, checked before they are written."""

from __future__ import annotations

import copy
import io
import logging
import pathlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor, nn

from sb3_erl.core.atomic_files import replacing
from sb3_erl.core.extras import missing_extra
from sb3_erl.policies.observation_statistics import ObservationStatistics
from sb3_erl.rollouts.slot_reset import UNCHANGING, wrappers_of

N_CHECKED = 1000
"""Observations on which a file has to act as ``predict`` does."""
TOLERANCE = 1e-5
"""Largest difference between two equal actions, as a share of the span of the action space: float32 sums in another order."""
N_TIES = 2
"""Checked observations on which actions may differ: where two actions have the same value, rounding decides between them."""
N_BATCHES = 4
"""Batches of all checked observations."""
SMALL_BATCHES = (1, 3)
"""Sizes of further batches, of the first observations."""
UNBOUNDED = 1e6
"""Bounds of observations that are as good as none."""

Act = Callable[[np.ndarray], np.ndarray]
"""Observations ``(batch, *obs_shape)`` to actions of the environment ``(batch, *action_shape)``."""


class Normalization(nn.Module):
    """
    What a ``VecNormalize`` does to observations, with its present statistics.

    :param normalizer: which normalizes observations
    """

    mean: Tensor
    std: Tensor

    def __init__(self, normalizer: VecNormalize):
        super().__init__()
        statistics: Any = normalizer.obs_rms
        self.clip = float(normalizer.clip_obs)
        self.register_buffer("mean", torch.as_tensor(statistics.mean, dtype=torch.float64).clone())
        self.register_buffer("std", torch.as_tensor(statistics.var + normalizer.epsilon, dtype=torch.float64).sqrt())

    def forward(self, observation: Tensor) -> Tensor:
        """
        :param observation: ``(batch, *obs_shape)``
        :return: float32, the same shape; computed in float64, as ``VecNormalize`` does
        """
        return ((observation.double() - self.mean) / self.std).clamp(-self.clip, self.clip).float()


class ActionMap(nn.Module):
    """
    What SB3's ``predict`` does to the output of a network.

    :param space: of the actions
    :param squashed: whether outputs are in [-1, 1] and are scaled to the bounds; otherwise they are clipped to the bounds
    :param dtype: of the actions that ``predict`` gives
    """

    low: Tensor
    high: Tensor
    first: Tensor

    def __init__(self, space: spaces.Space, squashed: bool, dtype: torch.dtype):
        super().__init__()
        self.is_box, self.squashed, self.shape = isinstance(space, spaces.Box), squashed, tuple(space.shape or ())
        self.dtype = dtype
        self.is_whole = not dtype.is_floating_point
        self.register_buffer("first", torch.as_tensor(getattr(space, "start", 0)).clone())
        """Added to the numbers of discrete actions."""
        if isinstance(space, spaces.Box):
            kind = np.result_type(space.dtype, np.float32) if self.is_whole else space.dtype  # in which predict clips
            self.register_buffer("low", torch.as_tensor(space.low.astype(kind)))
            self.register_buffer("high", torch.as_tensor(space.high.astype(kind)))

    def forward(self, outputs: Tensor) -> Tensor:
        """
        :param outputs: of the acting network, one row per observation
        :return: ``(batch, *action_shape)``
        """
        actions = outputs.reshape(-1, *self.shape)
        if not self.is_box:
            return actions.to(self.dtype) + self.first.to(self.dtype)
        if self.squashed:
            actions = self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        actions = actions.to(self.low.dtype if self.is_whole else self.dtype)
        clipped = torch.minimum(torch.maximum(actions, self.low.to(actions)), self.high.to(actions))
        return clipped.round().to(self.dtype) if self.is_whole else clipped  # before the cast, which wraps around


class ExportedPolicy(nn.Module):
    """
    From observations of the environment to its actions: normalization, the network with which ``predict`` acts, scaling.

    :param policy: of a model; its ``deployed`` network is copied
    :param normalizations: of observations, the one next to the environment first
    :param dtype: of the actions that ``predict`` gives
    """

    def __init__(self, policy: Any, normalizations: list[Normalization], dtype: torch.dtype):
        super().__init__()
        self.normalizations = nn.ModuleList(normalizations)
        self.network = copy.deepcopy(policy.deployed).to("cpu").eval().requires_grad_(False)
        self.actions = ActionMap(policy.action_space, policy.squash_output, dtype)

    def forward(self, observation: Tensor) -> Tensor:
        """
        :param observation: ``(batch, *obs_shape)`` in the dtype of the observation space
        :return: ``(batch, *action_shape)``
        """
        for normalization in self.normalizations:
            observation = normalization(observation)
        if hasattr(self.network, "get_action_dist_params"):  # a squashed Gaussian, without SB3's distribution objects
            return self.actions(torch.tanh(self.network.get_action_dist_params(observation)[0]))
        return self.actions(self.network._predict(observation, deterministic=True))


# -------------------------------------------------------------------- formats


def to_torchscript(policy: ExportedPolicy, example: Tensor) -> bytes:
    """
    :param policy: to be traced
    :param example: observations ``(2, *obs_shape)``
    :return: contents of a ``.pt`` file
    """
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(policy, example, check_trace=False), file)
    return file.getvalue()


def to_torch_export(policy: ExportedPolicy, example: Tensor) -> bytes:
    """As :func:`to_torchscript`, a ``.pt2`` file."""
    file = io.BytesIO()
    torch.export.save(_program(policy, example), file)
    return file.getvalue()


def to_onnx(policy: ExportedPolicy, example: Tensor) -> bytes:
    """As :func:`to_torchscript`, an ``.onnx`` file; :raises ImportError: without the extra ``onnx``"""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("ONNX files need the packages onnx, onnxruntime and onnxscript", "onnx") from error
    program, inputs, outputs = _program(policy, example), ["observation"], ["action"]
    made = torch.onnx.export(program, (example,), dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    assert made is not None
    return made.model_proto.SerializeToString()


def _program(policy: ExportedPolicy, example: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(policy, (example,), dynamic_shapes={"observation": {0: torch.export.Dim("batch")}})


def torchscript_act(contents: bytes) -> Act:
    """How the contents of a ``.pt`` file act."""
    module = torch.jit.load(io.BytesIO(contents))
    return lambda observations: module(torch.from_numpy(observations)).numpy()


def torch_export_act(contents: bytes) -> Act:
    """How the contents of a ``.pt2`` file act."""
    module = torch.export.load(io.BytesIO(contents)).module()
    return lambda observations: module(torch.from_numpy(observations)).numpy()


def onnx_act(contents: bytes) -> Act:
    """How the contents of an ``.onnx`` file act."""
    import onnxruntime

    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    return lambda observations: session.run(None, {"observation": observations})[0]


FORMATS: dict[str, tuple[Callable[[ExportedPolicy, Tensor], bytes], Callable[[bytes], Act]]] = {
    ".onnx": (to_onnx, onnx_act),
    ".pt": (to_torchscript, torchscript_act),
    ".pt2": (to_torch_export, torch_export_act),
}
"""By the ending of files: who makes the contents, and who reads them."""


# -------------------------------------------------------------------- export


def export_policy(model: Any, path: str | pathlib.Path, normalize: bool = True) -> pathlib.Path:
    """
    See :meth:`~sb3_erl.engine.model.EvolvingModel.export`.

    :param model: of this package
    :param path: file name with the ending of a format
    :param normalize: whether the statistics of ``VecNormalize`` become part of the file
    :return: the file
    """
    path = pathlib.Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(
            f"path must end in {', '.join(sorted(FORMATS))} (ONNX, TorchScript, torch.export); got {str(path)!r}. save() "
            "writes the whole model"
        )
    normalizers = normalizers_of(model.env) if normalize else []
    space = normalizers[0].venv.observation_space if normalizers else _space_of_predict(model)
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(
            f"{type(model).__name__} cannot be exported with observations of {space}: they are no array, and a file has one "
            "input. save() writes the whole model; FlattenObservation around the env makes one array"
        )
    normalizations = [Normalization(each) for each in normalizers]
    centers = _centers([*normalizations, *model.policy.deployed.modules()])
    observations = _observations(space, centers, np.random.default_rng(0))
    expected = _predictions(model, normalizers, observations)
    policy = ExportedPolicy(model.policy, normalizations, torch.from_numpy(expected).dtype)
    make, read = FORMATS[path.suffix]
    name = f"{type(model).__name__} with {type(model.policy).__name__}"
    with torch.no_grad(), _quiet():
        try:
            contents = make(policy, torch.from_numpy(observations[:2]))
            act = read(contents)
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"{name} cannot be exported as {path.suffix}: {type(policy.network).__name__} has a step that the format "
                f"cannot express ({type(error).__name__}: {str(error).strip()[:300]})"
            ) from error
        _check(name, path.suffix, act, observations, expected, model.action_space)
    with replacing(path, path.suffix) as temporary:
        temporary.write_bytes(contents)
    return path


def _space_of_predict(model: Any) -> spaces.Space:
    """Observations that ``predict`` is given; ``VecNormalize`` gives float32, whatever its observation space says."""
    space, normalizer = model.observation_space, model.get_vec_normalize_env()
    if isinstance(space, spaces.Box) and normalizer is not None and normalizer.norm_obs:
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return space


def normalizers_of(env: VecEnv | None) -> list[VecNormalize]:
    """
    :param env: of a model
    :return: those that normalize observations, the one next to the environment first
    :raises ValueError: if a wrapper above one of them may change what it gives
    """
    wrappers = [] if env is None else wrappers_of(env)
    found = [each for each in reversed(wrappers) if isinstance(each, VecNormalize) and each.norm_obs]
    above = wrappers[: wrappers.index(found[0])] if found else []
    others = [each for each in above if not isinstance(each, (VecNormalize, *UNCHANGING))]
    if others:
        raise ValueError(
            f"env must have no {type(others[0]).__name__} above its VecNormalize, so that normalization can be part of the "
            "file. Wrap the environments in another order, or export(path, normalize=False)"
        )
    return found


def _centers(modules: list[nn.Module]) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and standard deviation of the observations in training, where a module keeps them."""
    kept = (each for each in modules if isinstance(each, Normalization | ObservationStatistics))
    first = next(kept, None)
    return None if first is None else (first.mean.cpu().numpy(), first.std.cpu().numpy())


def _observations(space: spaces.Space, centers: tuple[np.ndarray, np.ndarray] | None, rng: np.random.Generator) -> np.ndarray:
    """Observations ``(1000, *obs_shape)`` all over a space; every other one near those in training if they are known."""
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high, shape = space.low.astype(np.float64), space.high.astype(np.float64), (N_CHECKED, *space.shape)
        bounded = (np.abs(low) < UNBOUNDED) & (np.abs(high) < UNBOUNDED)
        drawn = np.where(bounded, 0.0, rng.standard_normal(shape))
        drawn += np.where(bounded, rng.uniform(np.where(bounded, low, 0.0), np.where(bounded, high, 1.0), shape), 0.0)
        if centers is not None:
            mean, std = (each.reshape(space.shape) for each in centers)
            drawn[::2] = mean + std * rng.standard_normal(drawn[::2].shape)
        return np.clip(drawn, low, high).astype(space.dtype)
    if isinstance(space, spaces.Box):
        return rng.integers(space.low, space.high, (N_CHECKED, *space.shape), dtype=space.dtype, endpoint=True)
    space = copy.deepcopy(space)
    space.seed(int(rng.integers(2**31)))
    return np.stack([space.sample() for _ in range(N_CHECKED)])


def _predictions(model: Any, normalizers: list[VecNormalize], observations: np.ndarray) -> np.ndarray:
    """Actions of ``predict`` on observations of the environment."""
    found = []
    for seen in np.split(observations, N_BATCHES):
        for normalizer in normalizers:
            seen = normalizer.normalize_obs(seen)  # type: ignore[assignment]
        found.append(model.predict(seen, deterministic=True)[0])
    return np.concatenate(found)


def _check(name: str, ending: str, act: Act, observations: np.ndarray, expected: np.ndarray, space: spaces.Space) -> None:
    """:raises ValueError: if actions are not those of ``predict``"""
    whole = np.concatenate([act(batch) for batch in np.split(observations, N_BATCHES)])
    parts = [act(observations[:size]) for size in SMALL_BATCHES]
    same_form = whole.dtype == expected.dtype and whole.shape == expected.shape
    if same_form and all(part.shape == expected[: len(part)].shape for part in parts):
        off = ~_close(whole, expected, space)
        for part in parts:
            off[: len(part)] |= ~_close(part, expected[: len(part)], space)
        if off.sum() <= N_TIES:
            return
        found = f"other actions for {int(off.sum())} of {len(expected)} observations"
    else:
        found = f"actions of {whole.dtype} with the shape {whole.shape}, where predict gives {expected.dtype} {expected.shape}"
    raise ValueError(f"{name} cannot be exported as {ending}: the file gives {found}. Nothing was written")


def _close(actions: np.ndarray, expected: np.ndarray, space: spaces.Space) -> np.ndarray:
    """``(batch,)``: whether rows are equal but for rounding."""
    if isinstance(space, spaces.Box):
        span = np.maximum(space.high.astype(np.float64) - space.low, 1e-12)
        differences = np.abs(actions.astype(np.float64) - expected) / span
        equal = (differences <= TOLERANCE) | (np.isnan(actions) & np.isnan(expected))
    else:
        equal = actions == expected
    return equal.reshape(len(equal), -1).all(axis=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns about every step of an export that it might not follow; what matters here is what comes out."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
