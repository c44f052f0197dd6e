from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_sb3_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor, VecTransposeImage

from sb3_erl.envs import DeceptiveCup, HardMaze, MazeMap, VecHardMaze, draw_positions, register_envs
from sb3_erl.envs.deceptive_cup import CupAgents
from sb3_erl.envs.maze import MazePicture, MazeRobots, wall_distances
from sb3_erl.rollouts.slot_reset import SlotResetter

IDS = ("HardMaze-v0", "HardMazeImage-v0", "ImageHardMaze-v0", "DeceptiveCup-v0")
AHEAD, CLOCKWISE, STOP = np.array([0.0, 0.5]), np.array([0.5, 0.0]), np.zeros(2)
OPEN = MazeMap(walls=[(-500, -500, -499, -500)], start=(0, 0), goal=(0, 50))


def run(env: gym.Env, *actions: np.ndarray) -> tuple[list[float], Any]:
    """Rewards of an episode and its last step."""
    env.reset()
    steps = [env.step(action.astype(np.float32)) for action in actions]
    return [float(step[1]) for step in steps], steps[-1]


@pytest.mark.parametrize("name", IDS)
def test_registered_environments_pass_both_checkers(name: str) -> None:
    register_envs()  # a second time changes nothing
    env = gym.make(name, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(symmetric and normalized|infinity).*")
        warnings.filterwarnings("ignore", ".*without specifying.*")
        check_env(env.unwrapped)
        check_sb3_env(env)
    env.reset()
    assert env.render().shape == (420, 420, 3)


@pytest.mark.parametrize("name", IDS)
def test_the_end_position_survives_the_automatic_reset(name: str) -> None:
    env = make_vec_env(f"sb3_erl.envs:{name}", env_kwargs={"max_episode_steps": 30} if "Cup" in name else {"max_steps": 30})
    env.reset()
    action = np.array([[0.0, 0.5]])
    for _ in range(30):
        observation, _, dones, infos = env.step(action)
    start = env.reset_infos[0]["bc"]
    assert dones[0] and np.abs(infos[0]["bc"] - start).max() > 3
    assert not np.array_equal(observation[0], infos[0]["terminal_observation"])


# ------------------------------------------------------------------ robots


def test_a_robot_moves_by_its_old_heading_and_its_new_speed() -> None:
    robots = MazeRobots(OPEN)
    robots.step(np.array([[0.5, 0.5]]))
    assert robots.places[0] == pytest.approx([0.2, 0.0])
    assert robots.heading[0] == pytest.approx(0.2) and robots.speed[0] == pytest.approx(0.2)


def test_top_speed_is_reached_after_fifteen_steps_and_zero_output_brakes() -> None:
    robots = MazeRobots(OPEN)
    speeds = []
    for action in [AHEAD * 9] * 16 + [STOP] * 15:
        robots.step(action[None])
        speeds.append(float(robots.speed[0]))
    assert speeds[13] == pytest.approx(2.8) and speeds[14] == pytest.approx(3.0) and speeds[15] == speeds[14]
    assert speeds[-1] == pytest.approx(0.0, abs=1e-6)


def test_a_positive_output_turns_clockwise_on_a_picture() -> None:
    robots = MazeRobots(OPEN)
    for _ in range(37):  # 0.2 + 0.4 + ... + 3.0, then 3 degrees each
        robots.step(CLOCKWISE[None])
    assert robots.heading[0] == pytest.approx(90)
    robots.turning[:] = 0
    robots.step(AHEAD[None])
    assert robots.places[0, 1] > 0  # y points down
    for _ in range(200):
        robots.step(-CLOCKWISE[None])
        assert 0 <= robots.heading[0] <= 360


def test_a_blocked_move_is_not_made_and_nothing_slides() -> None:
    robots = MazeRobots(MazeMap(walls=[(10, -100, 10, 100)], start=(1.9, 0), heading=45, goal=(0, 50)))
    robots.step(AHEAD[None])
    assert robots.places[0] == pytest.approx([1.9, 0.0]) and robots.collisions[0] == 1
    assert robots.speed[0] == pytest.approx(0.2)


def test_distances_to_segments_end_at_their_ends() -> None:
    walls = np.array([(0.0, 0.0, 10.0, 0.0), (3.0, 4.0, 3.0, 4.0)])
    assert wall_distances(np.array([13.0, 4.0]), walls).tolist() == [5.0, 10.0]
    assert wall_distances(np.array([3.0, -2.0]), walls).tolist() == [2.0, 6.0]


@pytest.mark.parametrize(("goal", "slot"), [((9, 1), 7), ((1, 9), 8), ((-9, 1), 9), ((1, -9), 10)])
def test_the_radar_tells_where_the_goal_lies(goal: tuple[float, float], slot: int) -> None:
    sensed = MazeRobots(MazeMap(walls=OPEN.walls, start=(0, 0), goal=goal)).sense()[0]
    assert np.flatnonzero(sensed[7:]).tolist() == [slot - 7]
    turned = MazeRobots(MazeMap(walls=OPEN.walls, start=(0, 0), goal=goal, heading=90)).sense()[0]
    assert np.flatnonzero(turned[7:]).tolist() == [(slot - 8) % 4]


def test_range_finders_see_walls_up_to_a_hundred_units() -> None:
    walls = [(50, -9, 50, 9), (-120, -9, -120, 9), (-9, 25, 9, 25)]
    sensed = MazeRobots(MazeMap(walls=walls, start=(0, 0), goal=(5, 5))).sense()[0]
    assert sensed[0] == 1 and sensed[1:7] == pytest.approx([1.0, 1.0, 0.5, 1.0, 0.25, 1.0], abs=1e-6)


# ------------------------------------------------------------------ episodes


def test_only_the_last_step_pays_minus_the_distance() -> None:
    rewards, (_, _, terminated, truncated, info) = run(gym.make("HardMaze-v0"), *[STOP] * 400)
    assert rewards[:-1] == [0.0] * 399 and rewards[-1] == pytest.approx(-164.0762, abs=1e-4)
    assert terminated and not truncated and info["distance"] == pytest.approx(164.0762, abs=1e-4)


@pytest.mark.parametrize("length", [20, 500])
def test_other_lengths_pay_at_their_end_too(length: int) -> None:
    rewards, (_, _, terminated, truncated, _) = run(gym.make("HardMaze-v0", max_steps=length), *[AHEAD] * length)
    assert terminated and not truncated and not any(rewards[:-1]) and rewards[-1] < -100


def test_the_other_rewards() -> None:
    there_and_back = [AHEAD] * 15 + [-AHEAD] * 60
    ahead = {"walls": OPEN.walls, "start": (0, 0), "goal": (45, 0)}
    paid = {}
    for reward in ("final_distance", "min_distance", "sparse"):
        env = HardMaze(reward=reward, max_steps=75, maze=MazeMap(**ahead))
        rewards, (*_, info) = run(env, *there_and_back)
        paid[reward] = rewards[-1]
    assert paid["final_distance"] == -info["distance"] and paid["min_distance"] == -info["min_distance"]
    assert paid["min_distance"] > paid["final_distance"] and paid["sparse"] == 0.0
    assert info["reached_any"] and not info["is_success"] and not info["reached"]
    assert run(HardMaze(reward="sparse", max_steps=22, maze=MazeMap(**ahead)), *[AHEAD] * 22)[0][-1] == 1.0


def test_who_is_at_the_goal_has_reached_it() -> None:
    env = HardMaze(maze=MazeMap(walls=OPEN.walls, start=(0, 0), goal=(3, 4)))
    _, info = env.reset()
    assert info["reached"] is info["is_success"] is info["reached_any"] is True


def test_both_ids_of_the_pictures_are_one_environment() -> None:
    first, second = (gym.make(name).unwrapped for name in ("HardMazeImage-v0", "ImageHardMaze-v0"))
    assert type(first) is type(second) is HardMaze and np.array_equal(first.reset()[0], second.reset()[0])


def test_the_next_episode_starts_without_a_trace_of_the_last() -> None:
    env = HardMaze("image", max_steps=40, maze=MazeMap(goal=(60, 184)))
    first, _ = env.reset()
    _, (*_, info) = run(env, *[AHEAD] * 40)
    assert info["reached_any"] and info["collisions"] > 0
    again, info = env.reset()
    assert np.array_equal(first, again) and not info["reached_any"] and info["collisions"] == 0
    assert env.robots.speed[0] == 0


def test_frames_are_stacked_newest_last_and_missing_ones_black() -> None:
    env, picture = HardMaze("image"), MazePicture(MazeMap())
    observation, _ = env.reset()
    assert not observation[..., :3].any()
    assert np.array_equal(observation[..., 3], picture.draw(36, 184, 0))
    following, *_ = env.step(AHEAD.astype(np.float32))
    assert np.array_equal(following[..., 2], observation[..., 3]) and not following[..., :2].any()
    assert set(np.unique(observation)) == {0, 32, 96, 160, 255}
    assert observation[..., 3][74, 15] == 255 and observation[..., 3][9, 14] == 160  # row = y, downwards


# ------------------------------------------------------------------ many at once


@pytest.mark.parametrize("obs_type", ["sensors", "image"])
def test_many_mazes_are_the_single_maze_many_times(obs_type: Any) -> None:
    many, singles = VecHardMaze(3, obs_type, max_steps=12), [HardMaze(obs_type, max_steps=12) for _ in range(3)]
    rng = np.random.default_rng(0)
    assert np.array_equal(many.reset(), [single.reset()[0] for single in singles])
    for t in range(15):
        actions = rng.uniform(-0.5, 0.5, (3, 2)).astype(np.float32)
        observations, rewards, dones, infos = many.step(actions)
        for i, single in enumerate(singles):
            observation, reward, terminated, _, info = single.step(actions[i])
            assert terminated == dones[i] == (t == 11) and reward == pytest.approx(rewards[i])
            assert np.array_equal(infos[i]["bc"], info["bc"])
            if terminated:
                assert np.array_equal(infos[i]["terminal_observation"], observation)
                assert infos[i]["TimeLimit.truncated"] is False  # nothing to bootstrap from
                observation, _ = single.reset()
            assert np.array_equal(observations[i], observation)


def test_one_of_many_is_reset_alone() -> None:
    env = VecMonitor(VecTransposeImage(VecHardMaze(2, "image")))
    first = env.reset()
    for _ in range(5):
        env.step(np.tile(AHEAD, (2, 1)))
    observation, _ = SlotResetter(env)(1, seed=0)
    assert np.array_equal(observation, first[1])
    following, _, _, infos = env.step(np.tile(AHEAD, (2, 1)))
    assert infos[0]["bc"][0] == pytest.approx(36 + 0.2 * 21) and infos[1]["bc"][0] == pytest.approx(36.2)
    assert following.shape == (2, 4, 84, 84)
    with pytest.raises(AttributeError, match="reset"):
        env.env_method("fly")


# ------------------------------------------------------------------ the cup


def test_the_greedy_way_ends_in_the_cup_and_the_way_around_does_not() -> None:
    right, up = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    rewards, (observation, *_, truncated, info) = run(gym.make("DeceptiveCup-v0"), *[right] * 100)
    assert sum(rewards) == 5.25 == info["bc"][0] and info["blocked"] and not info["is_success"]
    assert truncated and observation == pytest.approx([0.525, 0.0, 1.0])
    rewards, (*_, info) = run(gym.make("DeceptiveCup-v0"), *[up] * 8, *[right] * 92)
    assert sum(rewards) == 23.0 and info["is_success"]


def test_touching_a_grown_wall_is_not_allowed() -> None:
    agents = CupAgents(2)
    agents.positions = np.array([[2.4, 1.25], [2.399, 1.25]])  # 2.4 is exactly the radius away from a side wall's end
    assert agents.step(np.array([[0.0, 1.0], [0.0, 1.0]])).tolist() == [True, False]
    assert agents.positions.tolist() == [[2.4, 1.25], [2.399, 1.5]]


def test_actions_of_the_cup_are_clipped() -> None:
    agents = CupAgents()
    agents.step(np.array([[-7.0, 0.5]]))
    assert agents.positions.tolist() == [[-0.25, 0.125]]


# ------------------------------------------------------------------ pictures and errors


@pytest.mark.parametrize("domain", [HardMaze(), gym.make("DeceptiveCup-v0"), MazeMap()], ids=["maze", "cup", "map"])
def test_trajectories_are_drawn_over_the_walls(domain: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = draw_positions(domain, [np.array([[0.0, 0.0], [3.0, 1.0]])], path=tmp_path / "ways.png")
    axes = figure.axes[0]
    n_walls = len(getattr(getattr(domain, "unwrapped", domain), "maze", getattr(domain, "unwrapped", domain)).lines)
    assert len(axes.lines) == n_walls + 1 and (tmp_path / "ways.png").stat().st_size > 1000
    assert axes.yaxis_inverted() == ("Cup" not in str(domain))
    assert axes.collections[0].get_offsets().tolist() == [[3.0, 1.0]]
    assert len(draw_positions(domain, ends=np.zeros((5, 2))).axes[0].collections[0].get_offsets()) == 5


def test_drawing_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="plots"):
        draw_positions(MazeMap())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HardMaze("pixels"), "obs_type must be one of"),
        (lambda: HardMaze(reward="distance"), "reward must be one of"),
        (lambda: HardMaze(max_steps=0), "max_steps"),
        (lambda: HardMaze(render_mode="human"), "render_mode"),
        (lambda: DeceptiveCup(render_mode="human"), "render_mode"),
        (lambda: VecHardMaze(0), "num_envs"),
        (lambda: MazeMap(walls=[(0, 0, 1)]), "walls must have shape"),
        (lambda: MazeMap(start=(5, 60)), "start must be at least"),
        (lambda: draw_positions(gym.make("DeceptiveCup-v0"), [np.zeros(2)]), "trajectories"),
        (lambda: draw_positions(3), "domain"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
