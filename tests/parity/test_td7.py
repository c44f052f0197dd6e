"""TD7 against numbers from the authors' code."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_erl import TD7
from sb3_erl.buffers.lap import LAPReplayBuffer, PriorityTree
from sb3_erl.learners.assessment import EMPTY, Assessment, AssessmentSettings
from sb3_erl.learners.td7 import TD7Learner, TD7Settings
from sb3_erl.policies.td7 import TD7Policy
from tests.parity.cases import Case, dispatch, snapshot
from tests.parity.td7_networks import networks, policy_of

SYSTEM = "td7"


# ------------------------------------------------------------------ updates


def filled_buffer(case: Case) -> LAPReplayBuffer:
    c = case["config"]
    n = c["n_updates"] * c["batch_size"]
    box = lambda dim: spaces.Box(-np.inf, np.inf, (dim,), np.float32)  # noqa: E731
    buffer = LAPReplayBuffer(n, box(c["obs_dim"]), spaces.Box(-1, 1, (c["act_dim"],)), "cpu")
    rows = {k: v.reshape(n, -1) for k, v in case.arrays.items() if k.startswith("batch/")}
    for i in range(n):
        done = 1 - rows["batch/not_done"][i]
        step = [rows[f"batch/{key}"][i : i + 1] for key in ("obs", "next_obs", "action")]
        buffer.add(*step, rows["batch/reward"][i], done, [{}])
    return buffer


def check_update(case: Case) -> None:
    c, expect = case["config"], lambda name: case.array(f"expect/{name}")
    policy, buffer = policy_of(case), filled_buffer(case)
    settings = TD7Settings(
        gamma=c["discount"],
        policy_delay=c["policy_freq"],
        target_policy_noise=c["target_policy_noise"],
        target_noise_clip=c["noise_clip"],
        target_update_interval=c["target_update_rate"],
        lap_alpha=c["alpha"],
        lap_min_priority=c["min_priority"],
        bc_coef=c["lmbda"] if c["offline"] else 0.0,
    )
    learner = TD7Learner(policy, settings)
    learner.buffer = buffer
    start = {net: snapshot(tensors) for net, tensors in networks(policy).items()}
    batch_of = {
        key: case.tensor(f"batch/{key}").float() for key in ("obs", "action", "next_obs", "reward", "not_done", "noise")
    }
    for u in range(c["n_updates"]):
        slots = np.arange(u * c["batch_size"], (u + 1) * c["batch_size"])
        buffer._drawn = slots
        batch = buffer._get_samples(slots)
        given = [batch_of[key][u] for key in ("obs", "action", "next_obs", "not_done", "reward")]
        for stored, value in zip(batch, [*given[:3], 1 - given[3], given[4]], strict=False):
            case.close(stored, value)
        assert isinstance(batch, ReplayBufferSamples)
        case.close(policy.value_range, expect("clip_used")[u])
        update = learner.iterate(batch, batch_of["noise"][u])
        case.close(update.next_values[..., 0].t(), expect("q_next_raw")[u])
        case.close(update.targets, expect("target")[u])
        case.close(update.values[..., 0].t(), expect("q_pred")[u])
        case.close((update.values - update.targets).abs()[..., 0].t(), expect("td_abs")[u])
        case.close(update.priorities, expect("priority")[u])
        for name in ("encoder_loss", "critic_loss", "actor_loss"):
            case.close(update.losses.get(name, torch.tensor(torch.nan)), expect(name)[u])
        case.close(policy.seen_range, [expect("running_min")[u], expect("running_max")[u]])
        case.close(policy.value_range, [expect("clip_min")[u], expect("clip_max")[u]])
        case.close(buffer.trees[0].max_priority, expect("max_priority")[u])
        flat = [torch.cat([t.reshape(-1) for t in tensors.values()]) for tensors in networks(policy).values()]
        case.close(torch.stack([vector.norm() for vector in flat]), expect("weight_norms")[u])
    for net, tensors in networks(policy).items():
        case.network_close(tensors, case.under(f"final/{net}/"), start[net])
    case.close(buffer.trees[0].priority, case.array("final/priorities"))
    check_acting(case, policy)


def check_acting(case: Case, policy: TD7Policy) -> None:
    c, obs = case["config"], case.array("acting/obs")
    case.close(policy.predict(obs, deterministic=False)[0], case.array("acting/current"))
    case.close(policy.predict(obs, deterministic=True)[0], case.array("acting/checkpoint"))
    scaled = policy.scale_action(policy.predict(obs, deterministic=False)[0])
    noisy = np.clip(scaled + c["exploration_noise"] * case.array("acting/noise"), -1, 1)
    case.close(policy.unscale_action(noisy), case.array("acting/explore"))


# ------------------------------------------------------------------ replay buffer


def check_lap(case: Case) -> None:
    c, expect = case["config"], lambda name: case.array(f"expect/{name}")
    box = spaces.Box(-np.inf, np.inf, (c["obs_dim"],), np.float64)
    action_space = spaces.Box(-c["max_action"], c["max_action"], (c["act_dim"],), np.float32)
    buffer = LAPReplayBuffer(c["capacity"], box, action_space, "cpu")
    tree, n_added, n_sampled = buffer.trees[0], 0, 0
    for i, operation in enumerate(c["ops"]):
        if operation == "a":
            of = {key: case.array(f"add/{key}")[n_added] for key in ("obs", "next_obs", "env_action", "reward", "done")}
            action = of["env_action"] / c["max_action"]
            reward, done = np.array([of["reward"]]), np.array([of["done"]])
            buffer.add(of["obs"][None], of["next_obs"][None], action[None], reward, done, [{}])
            n_added += 1
        elif operation == "u":
            slots = tree.find(case.array("uniform")[i])
            np.testing.assert_array_equal(slots, expect("index")[i])
            buffer._drawn = slots
            batch = buffer._get_samples(slots)
            parts = {"obs": batch.observations, "action": batch.actions, "next_obs": batch.next_observations}
            for name, part in {**parts, "reward": batch.rewards, "not_done": 1 - batch.dones}.items():
                assert part.dtype == torch.float32
                case.close(part, expect(f"batch_{name}")[n_sampled])
            priorities = np.maximum(case.array("td_table")[i][slots], c["min_priority"]) ** c["alpha"]
            case.close(priorities, expect("new_priority")[i])
            buffer.update_priorities(torch.as_tensor(priorities))
            n_sampled += 1
        elif operation == "r":
            buffer.reset_max_priority()
        else:
            raise AssertionError(f"unknown operation {operation!r}")
        case.close(tree.priority, expect("priorities")[i])
        case.close(tree.max_priority, expect("max_priority")[i])
        assert (buffer.size(), buffer.pos) == (expect("size")[i], expect("ptr")[i])
    priorities = case.array("edge/priority")
    edge = PriorityTree(len(priorities))
    edge.append(np.arange(len(priorities)))
    edge.write(np.arange(len(priorities)), priorities)
    np.testing.assert_array_equal(edge.find(case.array("edge/uniform")), case.array("edge/index"))


# ------------------------------------------------------------------ checkpoints


def check_checkpoints(case: Case) -> None:
    c, expect = case["config"], lambda name: case.array(f"expect/{name}")
    settings = AssessmentSettings(
        late_episodes=c["max_eps_when_checkpointing"],
        updates_before_late=c["steps_before_checkpointing"],
        reset_weight=c["reset_weight"],
    )
    assessment, n_updates = Assessment({}, settings), 0
    for i, (length, total) in enumerate(zip(case.array("episode/length"), case.array("episode/return"), strict=True)):
        assessment.begin(0)
        assessment.step(int(length))
        assessment.finish(0, total)
        outcome = assessment.outcome
        due = 0 if outcome is None else assessment.close(outcome, n_updates)
        n_updates += due
        assert (outcome is not None, outcome == "accept") == (expect("assessment_ended")[i], expect("checkpoint_updated")[i])
        assert (due, n_updates) == (expect("n_updates")[i], expect("training_steps")[i])
        assert assessment.n_episodes == expect("max_eps")[i]
        assert assessment.state["n_finished"] == expect("eps_since_update")[i]
        assert assessment.untrained_steps == expect("steps_since_update")[i]
        case.close(assessment.score, expect("best_min_return")[i])
        case.close(assessment.state["worst"], expect("min_return")[i])
    assert EMPTY == 1e8


# ------------------------------------------------------------------ when it trains


class Scripted(gym.Env):
    """Episodes of given lengths, reward 1 per step; the actions it got are kept."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, lengths: np.ndarray, time_limit: int):
        self.lengths, self.time_limit, self.episode, self.t = lengths, time_limit, -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if self.t > 0 or self.episode < 0:  # resets without a step between them begin one episode
            self.episode += 1
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.t += 1
        length = self.lengths[min(self.episode, len(self.lengths) - 1)]
        terminated = self.t == length
        return np.zeros(2, np.float32), 1.0, terminated, not terminated and self.t == self.time_limit, {}


class Recorded(Assessment):
    """Writes down the calls of the assessment rule."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.calls: list[tuple[int, float]] = []
        self.length = 0

    def step(self, n_steps: int) -> None:
        super().step(n_steps)
        self.length += n_steps

    def finish(self, env: int, total_reward: float) -> bool:
        counts = super().finish(env, total_reward)
        if counts:
            self.calls.append((self.length, total_reward))
        self.length = 0
        return counts


def check_gate(case: Case) -> None:
    c, lengths = case["config"], case.array("episode/length")
    for mode in ("checkpoints", "plain"):
        arrays = {key.partition("/")[2]: value for key, value in case.arrays.items() if key.startswith(f"{mode}/")}
        model = TD7(
            Scripted(lengths, c["time_limit"]),
            learning_starts=c["learning_starts"],
            use_checkpoints=mode == "checkpoints",
            batch_size=4,
            buffer_size=c["n_steps"],
            policy_kwargs={"net_arch": [4, 4], "zs_dim": 4},
            device="cpu",
            seed=0,
        )
        assessment = Recorded(model.assessment_state, model._assessment_settings(), 1)
        model.assessment = assessment
        rows: list[tuple[bool, int, float]] = []
        updates: list[tuple[int, int]] = []
        train = model.train

        def record(
            gradient_steps: int, batch_size: int | None = None, train: Any = train, m: Any = model, u: Any = updates
        ) -> None:
            u.append((m.num_timesteps, gradient_steps))
            train(gradient_steps, batch_size)

        model.train = record  # type: ignore[method-assign]

        def step(variables: dict[str, Any], _: Any, m: Any = model, r: Any = rows, a: Any = assessment) -> bool:
            r.append((bool(not m._episodes.uses_policy[0]), len(a.calls), 0.0))
            return True

        model.learn(c["n_steps"], callback=step)
        np.testing.assert_array_equal([row[0] for row in rows], arrays["random_action"])
        called = [row[1] for row in rows] + [len(assessment.calls)]
        steps_with_call = np.flatnonzero(np.diff(called))
        np.testing.assert_array_equal(
            steps_with_call, np.flatnonzero(arrays["assess_length"]) if mode == "checkpoints" else steps_with_call
        )
        if mode == "checkpoints":
            np.testing.assert_array_equal([call[0] for call in assessment.calls], arrays["assess_length"][steps_with_call])
            case.close([call[1] for call in assessment.calls], arrays["assess_return"][steps_with_call])
        direct = np.zeros(c["n_steps"], dtype=int)
        for timestep, n in updates:
            direct[timestep - 1] = n
        if mode == "plain":
            np.testing.assert_array_equal(direct, arrays["updates_direct"])
        else:
            np.testing.assert_array_equal(np.flatnonzero(direct), steps_with_call)
            np.testing.assert_array_equal(direct[steps_with_call], arrays["assess_length"][steps_with_call])
        stored = (model.replay_buffer.dones * (1 - model.replay_buffer.timeouts))[: c["n_steps"], 0]  # type: ignore[union-attr]
        expected = arrays["stored_done"].copy()
        ends = np.cumsum(np.minimum(lengths, c["time_limit"])) - 1
        coincident = [
            end for end, flag in zip(ends, case.array("episode/coincident"), strict=True) if flag and end < c["n_steps"]
        ]
        expected[coincident] = 1.0  # Gymnasium's flags tell a true terminal from the limit
        np.testing.assert_array_equal(stored, expected)


CHECKS = {
    "td7 update": check_update,
    "td7 LAP": check_lap,
    "td7 checkpoint logic": check_checkpoints,
    "td7 training gate": check_gate,
}


def test_case(case: Case) -> None:
    dispatch(case, case["config"]["case"], CHECKS)
