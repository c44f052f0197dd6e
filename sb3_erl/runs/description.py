"""A model in a few lines of text."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_erl.runs.early_tables import deployed, warm_up


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
    :return: system, policy, environment, population and learner where there are any, steps and generations, and what
        ``predict`` acts with; a line each
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
        waits = warm_up(model)
        note = "" if waits is None else f", begins after a warm-up: {waits}"
        lines.append(f"  learner:     {learner_name(model.learner)}, {model._n_updates:,} updates{note}")
    trained = f"{model.num_timesteps:,} steps"
    if hasattr(model, "n_generations"):
        trained += f", {model.n_generations:,} generation{'s' * (model.n_generations != 1)}"
    lines.append(f"  trained:     {trained}, seed {model.run_seed}")
    name, value = deployed(model)
    lines.append(f"  predict:     acts with the {name}" + ("" if value is None else f", return {value:,.1f} in training"))
    return "\n".join(lines)


def learner_name(learner: Any) -> str:
    """
    :param learner: of a model
    :return: by what rule it learns, such as "TD3"; of several learners those of all
    """
    members = getattr(learner, "members", None)
    if members is not None:
        names = [learner_name(member) for member in members]
        return ", ".join(name if names.count(name) == 1 else f"{names.count(name)} {name}" for name in dict.fromkeys(names))
    rule = getattr(learner, "rule", getattr(learner, "model", None))
    name = type(learner if rule is None else rule).__name__
    return name.removeprefix("Shared").removesuffix("Learner").removesuffix("Rule") or name


def _space(space: Any) -> str:
    return f"{type(space).__name__}{space.shape}" if space.shape else str(space)
