"""A model in a few lines of text."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper


def env_name(env: VecEnv | None) -> str:
    """:return: the id of an environment, else the name of its class; without asking other processes"""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if env is None:
        return "no env"
    if not isinstance(env, DummyVecEnv):
        return type(env).__name__
    spec = getattr(env.envs[0], "spec", None)
    return type(env.envs[0].unwrapped).__name__ if spec is None else spec.id


def describe(model: Any) -> str:
    """
    :param model: of this package
    :return: system, policy, environment, population and learner where there are any, steps and generations; a line each
    """
    policy, env = getattr(model, "policy", None), getattr(model, "env", None)
    lines = [type(model).__name__]
    if policy is None:
        return f"{lines[0]} (not set up)"
    n_weights = sum(parameter.numel() for parameter in policy.parameters())
    lines.append(f"  policy:      {type(policy).__name__}, {n_weights:,} weights on {model.device}")
    size = "" if env is None else f", {env.num_envs} in parallel" if env.num_envs > 1 else ""
    spaces = f"observations {_space(model.observation_space)}, actions {_space(model.action_space)}"
    lines.append(f"  environment: {env_name(env)}{size}, {spaces}")
    if hasattr(model, "pop_size"):
        evolver = getattr(model, "evolver", None)
        kind = "" if evolver is None else f", {type(evolver).__name__}"
        lines.append(f"  population:  {model.pop_size}{kind}")
    if hasattr(model, "learner"):
        rule = getattr(model.learner, "rule", None)
        kind = "" if rule is None else f" ({type(rule).__name__})"
        lines.append(f"  learner:     {type(model.learner).__name__}{kind}, {model._n_updates:,} updates")
    trained = f"{model.num_timesteps:,} steps"
    if hasattr(model, "n_generations"):
        trained += f", {model.n_generations:,} generation{'s' * (model.n_generations != 1)}"
    lines.append(f"  trained:     {trained}, seed {model.run_seed}")
    return "\n".join(lines)


def _space(space: Any) -> str:
    return f"{type(space).__name__}{space.shape}" if space.shape else str(space)
