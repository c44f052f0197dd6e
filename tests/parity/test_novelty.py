"""Novelty search, the Hard Maze and the deceptive cup against stored numbers."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from sb3_erl.envs.deceptive_cup import CupAgents
from sb3_erl.envs.hard_maze import REACH, VecHardMaze
from sb3_erl.envs.maze import MazeMap, MazePicture, MazeRobots
from sb3_erl.evolution.es import ESUpdate, MirroredES
from sb3_erl.evolution.fitness.novelty import NoveltyArchive, behavior_distances
from sb3_erl.evolution.fitness.shaping import centered_ranks
from sb3_erl.evolution.novelty import (
    AdaptiveWeight,
    member_probabilities,
    mix_ranks,
    reward_weight,
    select_by_novelty,
)
from tests.parity.cases import Case, dispatch
from tests.parity.test_openai_es import GivenOffsets, GivenTable, adam_slack, compare

SYSTEM = "novelty"


def kind_of(case: Case) -> str:
    """What a case fixes, told from its arrays."""
    for kind, array in (
        ("sequences", "archive_padded"),
        ("update", "noise_table"),
        ("generation", "population_bc"),
        ("cup", "blocked"),
        ("frames", "frame"),
        ("robots", "ang_vel"),
        ("points", "queries"),
    ):
        if array in case.arrays:
            return kind
    return "weights" if any(name.endswith("_params") for name in case.arrays) else str(case["kind"])


def named(case: Case, pattern: str) -> dict[str, np.ndarray]:
    """Arrays whose whole name fits, by the group of the pattern; there must be some."""
    found = {match[1]: array for name, array in case.arrays.items() if (match := re.fullmatch(pattern, name))}
    assert found, f"no array like {pattern} in {case.name}"
    return found


def filled(entries: object) -> NoveltyArchive:
    archive = NoveltyArchive()
    archive.extend(entries)
    return archive


# ------------------------------------------------------------------ novelty


def check_points(case: Case) -> None:
    entries, queries = case.array("archive"), case.array("queries")
    n_small = re.search(r"first (\d+) archive", str(case.settings.get("notes", "")))
    small = entries[: int(case.settings["config"].get("small_archive", n_small[1] if n_small else 4))]
    compared = 0
    for name, expected in case.arrays.items():
        if match := re.fullmatch(r"(novelty|novelty_small_archive|parent_probs)_k(\d+)", name):
            novelty = filled(small if "small" in name else entries).novelty(queries, int(match[2]))
            case.close(member_probabilities(novelty) if "probs" in name else novelty, expected)
            compared += 1
    assert compared


def check_sequences(case: Case) -> None:
    parts = {}
    for name in ("archive", "query"):
        padded, lengths = case.array(f"{name}_padded"), case.array(f"{name}_lengths")
        parts[name] = [sequence[:length] for sequence, length in zip(padded, lengths, strict=True)]
    case.close(behavior_distances(parts["query"], parts["archive"]), case.array("distance"))
    for k, expected in named(case, r"novelty_k(\d+)").items():
        case.close(filled(parts["archive"]).novelty(parts["query"], int(k)), expected)


def check_generation(case: Case) -> None:
    c = case["config"]
    for name, distance in (("squared", "sqeuclidean"), ("euclid", "euclidean")):
        archive = NoveltyArchive(distance)
        archive.extend(case.array("archive"))
        selection = select_by_novelty(
            archive,
            case.array("population_bc"),
            case.array("uniform"),
            k=c["k"],
            n_parents=c["T"],
            archive_prob=c["insert_probability_here"],
        )
        case.close(selection.novelty, case.array(f"novelty_{name}"))
        np.testing.assert_array_equal(selection.parents, case.array(f"parents_{name}"))
        np.testing.assert_array_equal(selection.archived, case.array("archive_insert_mask"))
        after = case.array("archive_after")
        case.close(np.reshape(archive.entries, after.shape), after)  # an empty one has no dimensions yet


# ------------------------------------------------------------------ one step of the evolution strategies


def check_update(case: Case) -> None:
    """Where all weights are 0 the authors' code goes on to shrink its parameters; ours rests."""
    c, returns, novelty = case["config"], *(case.array(name).astype(np.float32) for name in ("returns", "novelty"))
    theta = case.array("theta0").astype(np.float32)
    case.close(centered_ranks(returns), case.array("rank_returns"))
    case.close(centered_ranks(novelty), case.array("rank_novelty"))
    weights = {mode: reward_weight(mode).value for mode in ("ns", "nsr")}
    weights |= {f"nsra_w{weight:g}": AdaptiveWeight(weight).value for weight in c["nsra_weights"]}
    assert set(weights) == set(named(case, r"proc_(.+)"))
    for name, weight in weights.items():
        table = GivenTable(case.array("noise_table"))
        settings: Any = {"learning_rate": c["stepsize"], "l2_coeff": c["l2coeff"], "table": table}
        evolver = MirroredES(torch.as_tensor(theta), pop_size=returns.size, **settings)
        rng: Any = GivenOffsets(case.array("noise_idx")[None])
        evolver.ask(rng)
        evolver.update(mix_ranks(returns, novelty, weight).reshape(-1))
        update = evolver.last_update
        assert isinstance(update, ESUpdate)
        case.close(update.shaped.reshape(returns.shape), case.array(f"proc_{name}"))
        case.close(update.direction, case.array(f"g_{name}"))
        expected = case.array(f"theta_{name}") if update.shaped.any() else theta
        slack = adam_slack(c["l2coeff"] * theta - case.array(f"g_{name}"), c["stepsize"])
        compare(case, "theta", evolver.mean, expected, slack)


def check_weights(case: Case) -> None:
    for name, (first, delta, patience) in named(case, r"(.+)_params").items():
        for rule, suffix in (("reaches", "w"), ("exceeds", "w_strict_gt")):
            weight = AdaptiveWeight(first, delta, int(patience), patience_rule=rule)
            steps = [(weight.update(score), weight.best) for score in case.array(f"{name}_perf").tolist()]
            case.close([value for value, _ in steps], case.array(f"{name}_{suffix}"))
            if suffix == "w":
                case.close([best for _, best in steps], case.array(f"{name}_best"))


# ------------------------------------------------------------------ the domains


def check_robots(case: Case) -> None:
    actions = case.array("actions")
    n, horizon = actions.shape[:2]
    robots = MazeRobots(MazeMap(), n)
    closest = robots.goal_distances
    for t in range(horizon + 1):
        for name, ours in (("x", robots.places[:, 0]), ("y", robots.places[:, 1]), ("heading", robots.heading)):
            case.close(ours, case.array(name)[:, t])
        case.close(robots.speed, case.array("speed")[:, t])
        case.close(robots.turning, case.array("ang_vel")[:, t])
        case.close(robots.sense(), case.array("obs")[:, t])
        np.testing.assert_array_equal(robots.collisions, case.array("collisions")[:, t])
        closest = np.minimum(closest, robots.goal_distances)
        if t < horizon:
            robots.step(actions[:, t])
    case.close(robots.goal_distances, case.array("final_distance"))
    np.testing.assert_array_equal(closest < REACH, case.array("reached_goal"))
    check_episodes(case, actions)


def check_episodes(case: Case, actions: np.ndarray) -> None:
    """The same through both environments: rewards, and the end position although the robots are back at the start."""
    n, horizon = actions.shape[:2]
    many = VecHardMaze(n, max_steps=horizon)
    case.close(many.reset(), case.array("obs")[:, 0])
    for t in range(horizon):
        observations, rewards, dones, infos = many.step(actions[:, t])
        assert dones.all() if t == horizon - 1 else not (dones.any() or rewards.any())
    case.close(rewards, case.array("reward_last_step"))
    case.close([info["terminal_observation"] for info in infos], case.array("obs")[:, -1])
    case.close([info["bc"] for info in infos], np.stack([case.array("x")[:, -1], case.array("y")[:, -1]], axis=1))
    case.close(observations, case.array("obs")[:, 0])
    one = gym.make("sb3_erl.envs:HardMaze-v0", max_steps=horizon)
    one.reset()
    for t in range(horizon):
        observation, reward, terminated, truncated, info = one.step(np.clip(actions[-1, t], -0.5, 0.5))
        assert terminated == (t == horizon - 1) and not truncated
    case.close(observation, case.array("obs")[-1, -1])
    case.close(reward, case.array("reward_last_step")[-1])
    assert info["reached_any"] == case.array("reached_goal")[-1]


def check_frames(case: Case) -> None:
    frames, picture = case.array("frame"), MazePicture(MazeMap())
    allowed = re.search(r"at most (\d+) pixels", str(case.settings.get("tolerance", "")))
    for frame, *state in zip(frames, case.array("x"), case.array("y"), case.array("heading"), strict=True):
        differing = (picture.draw(*map(float, state)) != frame).sum()
        assert differing <= (int(allowed[1]) if allowed else 4)


def check_cup(case: Case) -> None:
    actions, positions = case.array("actions"), case.array("positions")
    agents = CupAgents(len(actions))
    case.close(agents.positions, positions[:, 0])
    for t in range(actions.shape[1]):
        np.testing.assert_array_equal(agents.step(actions[:, t]), case.array("blocked")[:, t])
        case.close(agents.positions, positions[:, t + 1])
    for i, expected in enumerate(case.array("final_return")):
        env = gym.make("sb3_erl.envs:DeceptiveCup-v0", max_episode_steps=actions.shape[1], disable_env_checker=True)
        env.reset()
        steps = [env.step(action) for action in actions[i]]
        case.close(sum(step[1] for step in steps), expected)
        case.close(steps[-1][4]["bc"], positions[i, -1])
        assert [step[3] for step in steps] == [False] * (len(steps) - 1) + [True]


CHECKS = {
    "points": check_points,
    "sequences": check_sequences,
    "generation": check_generation,
    "update": check_update,
    "weights": check_weights,
    "robots": check_robots,
    "frames": check_frames,
    "cup": check_cup,
}


def test_case(case: Case) -> None:
    dispatch(case, kind_of(case), CHECKS)
