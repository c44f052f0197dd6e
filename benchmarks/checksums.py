"""
Checksums of what every class learns in a short run, to compare two versions of the package.

    python -m benchmarks.checksums --output before.json
    python -m benchmarks.checksums --output after.json --compare before.json

A checksum covers all parameters of a model (networks, optimizers' states, evolver), its replay buffer and its actions on
fixed observations. It does not depend on the names of tensors, only on their values. This file uses nothing of the package
but its classes, and settings of its own, so that it can be copied to another version and means the same there.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env

from sb3_erl import ALGOS

SMALL: dict[str, Any] = {
    "pop_size": 4,
    "learning_starts": 100,
    "batch_size": 16,
    "buffer_size": 3000,
    "fitness_horizon": 20,
    "policy_embedding_dim": 8,
    "explore_steps": 600,
    "late_assessment_episodes": 3,
    "gammas": (0.9, 0.99),
    "rollout_size": 2,
    "min_elites": 1,
    "sync_period": 2,
    "crossover_prob": 0.5,
    "genetic_memory_size": 400,
    "distill_epochs": 2,
    "distill_batch_size": 8,
    "target_update_interval": 20,
    "train_freq": 4,
    "n_pairs": 2,
    "n_gradient_bases": 1,
    "sac_interval": 1,
    "sac_episodes": 1,
    "noise_table_size": 1_000_000,
    "obs_stat_prob": 0.5,
    "truncation": 2,
    "n_finalists": 2,
    "n_finalist_episodes": 1,
    "meta_population_size": 2,
    "novelty_k": 3,
    "archive_prob": 0.3,
    "behavior": "final_observation",
}
"""Handed to every class as far as its constructor knows the arguments."""

DISCRETE = "CartPole-v1"
"""The environment of classes that take discrete actions only."""
LEARNERS: dict[str, list[Any]] = {
    "cem_rl": ["td3", "ddpg", "td7", "sac"],
    "cerl": ["td3", ["td3", "sac"], ["td7", "td3"]],
    "erl": ["ddpg", "td3", "td7", "sac", "stable_baselines3:SAC"],
    "erl_re2": ["td3", "ddpg", "td7"],
    "evo_rainbow": ["td3", "sac"],
    "evo_rainbow_exp": ["td3", "sac"],
    "pderl": ["ddpg", "td7", "sac"],
}
FURTHER: list[tuple[str, dict[str, Any]]] = [
    ("cem_rl", {"importance_mixing": True}),
    ("cem_rl", {"elitism": True, "deploy": "champion", "reward_mode": "episodic", "n_noisy_episodes": 1}),
    ("erl", {"n_migrants": 1, "n_eval_episodes": 2, "deploy": "learner"}),
    ("erl_re2", {"evolution": False}),
    ("erl_re2", {"deploy": "champion", "evolve_during_warmup": True, "mc_fitness_prob": 1.0, "pevfa_heads_per_step": "all"}),
    ("pderl", {"crossover": "rows", "mutation": "gaussian"}),
    ("pderl", {"parent_matching": "distance"}),
    ("openai_es", {"min_timesteps": 1300, "n_eval_episodes": 2}),
]
"""Settings beside the defaults that take another way through the code."""


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, key in ALGOS and arguments of each run."""
    for key in ALGOS:
        for learner in LEARNERS.get(key, [None]):
            arguments = {} if learner is None else {"learner": learner}
            yield f"{key} {learner or ''}".strip(), key, arguments
    for key, arguments in FURTHER:
        yield f"{key} {json.dumps(arguments)}", key, arguments


def arguments_of(key: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a class: :data:`SMALL` as far as it knows them, then ``arguments``."""
    known = inspect.signature(ALGOS[key].__init__).parameters
    small = {name: value for name, value in SMALL.items() if name in known}
    if key in ("td7", "pop_td7"):
        small.pop("train_freq", None)
        small["policy_kwargs"] = {"net_arch": [16], "zs_dim": 8}
    else:
        small["policy_kwargs"] = {"net_arch": [16]}
    return {**small, "seed": 5, "device": "cpu", **arguments}


def checksum(model: Any) -> str:
    """:return: a hexadecimal number that stands for everything the model has learned and stored"""
    digests = []

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous().numpy()
            digests.append(hashlib.sha256(array.tobytes()).hexdigest())
        elif isinstance(value, dict):
            for item in value.values():
                add(item)
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)

    add(model.get_parameters())
    whole = hashlib.sha256("".join(sorted(set(digests))).encode())
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        for name in ("observations", "actions", "rewards", "dones"):
            whole.update(np.ascontiguousarray(getattr(buffer, name)[: buffer.size()]).tobytes())
    low, high = model.observation_space.low, model.observation_space.high
    draws = np.random.default_rng(0).random((20, *low.shape))
    observations = (np.maximum(low, -2) + draws * (np.minimum(high, 2) - np.maximum(low, -2))).astype(low.dtype)
    whole.update(np.ascontiguousarray(model.predict(observations, deterministic=True)[0]).tobytes())
    return whole.hexdigest()[:16]


def run(key: str, arguments: dict[str, Any], env_id: str, steps: int, n_envs: int) -> str:
    """Train a new model and return its checksum."""
    torch.manual_seed(0)
    if not getattr(ALGOS[key], "takes_continuous_actions", True):
        env_id = DISCRETE
    model = ALGOS[key]("MlpPolicy", make_vec_env(env_id, n_envs=n_envs), **arguments_of(key, arguments))
    return checksum(model.learn(steps))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checksums", description=__doc__)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--n-envs", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="keys in ALGOS")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--compare", type=Path, help="file of another version; the exit status is 1 if anything differs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    found: dict[str, str] = {}
    other = {} if args.compare is None else json.loads(args.compare.read_text())
    for name, key, arguments in cases():
        if args.only and key not in args.only:
            continue
        found[name] = run(key, arguments, args.env, args.steps, args.n_envs)
        verdict = "" if name not in other else ("equal" if other[name] == found[name] else "DIFFERS")
        print(f"{found[name]}  {name}  {verdict}", flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(other.get(name, value) != value for name, value in found.items()))


if __name__ == "__main__":
    raise SystemExit(main())
