"""DeepMind Control by its short ids; what needs dm_control itself is skipped where it is not installed or does not work."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_erl import ERL, TD7, OpenAIES
from sb3_erl.envs import dmc
from sb3_erl.envs.packages import MODULES, register_namespaces
from sb3_erl.planning import CEMAgent
from tests.contract.helpers import differences, snapshot

CHEETAH = "dm_control/cheetah-run-v0"
PIP_LINE = r"pip install 'sb3-erl\[dmc\]'"
SMALL: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [8]},
    "pop_size": 2,
    "buffer_size": 5000,
    "batch_size": 8,
    "train_freq": 1000,
    "gradient_steps": 10,
}


def works() -> bool:
    try:
        return version("dm_control") != "" and int(version("mujoco").split(".")[0]) < 4
    except PackageNotFoundError:
        return False


needs_dmc = pytest.mark.skipif(not works(), reason="needs the extra [dmc]: dm_control with MuJoCo below 4")


# -------------------------------------------------------------------- ids, without the package


def test_import_registers_nothing_and_a_class_does() -> None:
    code = (
        "import sys, gymnasium, sb3_erl; known = lambda: 'dm_control/cheetah-run-v0' in gymnasium.registry; before = known()\n"
        "from sb3_erl.envs.packages import register_namespaces\n"
        "register_namespaces('Pendulum-v1', None, object()); other = known(); register_namespaces('dm_control/fish-swim-v0')\n"
        "print(before, other, known(), 'dm_control' in sys.modules, 'shimmy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["False", "False", "True", "False", "False"], result.stderr


def test_the_zoo_knows_all_namespaces() -> None:
    code = "import rl_zoo3.exp_manager as m; from sb3_erl.zoo import module_ready; module_ready('rl_zoo3.exp_manager', m)\n"
    code += "import gymnasium; print(sum(id.startswith('dm_control/') for id in gymnasium.registry))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.split()[-1:] == [str(sum(len(tasks.split()) for tasks in dmc.TASKS.values()))], result.stderr


@pytest.mark.parametrize("name", MODULES)
def test_ids_of_a_namespace(name: str) -> None:
    register_namespaces()
    assert any(env_id.startswith(f"{name}/") for env_id in gym.registry)


def test_tasks_are_flat_ones() -> None:
    register_namespaces()
    ids = [env_id for env_id in gym.registry if env_id.startswith("dm_control/")]
    assert ids and all(str(gym.registry[env_id].entry_point).startswith("sb3_erl.") for env_id in ids)


def test_an_id_of_shimmy_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if Shimmy is imported late: its observations are dicts."""
    theirs = gym.spec(CHEETAH)
    monkeypatch.setitem(gym.registry, CHEETAH, gym.envs.registration.EnvSpec(CHEETAH, lambda: None))
    register_namespaces(CHEETAH)
    assert gym.spec(CHEETAH).entry_point == theirs.entry_point == "sb3_erl.envs.dmc:DMControl"


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize("algo", [ERL, TD7, OpenAIES])
def test_mujoco_4_is_an_import_error(algo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmc, "version", lambda package: "4.0.0")
    for arguments in ((CHEETAH,), ("MlpPolicy", CHEETAH)):
        with pytest.raises(
            ImportError, match=f"env '{CHEETAH}' needs dm_control, which works with MuJoCo below 4.*{PIP_LINE}"
        ):
            algo(*arguments)


@pytest.mark.parametrize("package", ["dm_control", "shimmy.dm_control_compatibility"])
def test_a_missing_package_is_an_import_error(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dmc, "version", lambda package: "3.17.0")
    monkeypatch.setitem(sys.modules, "dm_control", type(sys)("dm_control"))
    monkeypatch.setitem(sys.modules, "dm_control.suite", type(sys)("dm_control.suite"))
    monkeypatch.setattr(sys.modules["dm_control"], "suite", sys.modules["dm_control.suite"], raising=False)
    monkeypatch.setitem(sys.modules, "shimmy.dm_control_compatibility", None)
    monkeypatch.setitem(sys.modules, package, None)
    register_namespaces(CHEETAH)
    before = dict(gym.registry)
    with pytest.raises(ImportError, match=f"needs dm_control and Shimmy, of which .* is missing; {PIP_LINE}"):
        gym.make(CHEETAH)
    assert gym.registry == before


def test_the_planner_knows_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gym.registry, CHEETAH, raising=False)
    monkeypatch.setattr(dmc, "version", lambda package: "4.0.0")
    with pytest.raises(ImportError, match=PIP_LINE):
        CEMAgent(env=CHEETAH)


def test_loading_says_so_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    ERL("Pendulum-v1", **SMALL).save(tmp_path / "model")
    monkeypatch.setattr(dmc, "version", lambda package: "4.0.0")
    with pytest.raises(ImportError, match=PIP_LINE):
        ERL.load(tmp_path / "model", env=CHEETAH)


def test_wrong_names() -> None:
    with pytest.raises(
        ValueError, match=r"env must be an environment or the id of a registered one.*Did you mean: `cheetah-run`"
    ):
        ERL("MlpPolicy", "dm_control/cheetah-fly-v0")
    with pytest.raises(ValueError, match=r"The closest ids are .*dm_control/cheetah-run-v0"):
        ERL("dm_control/cheetah-fly-v0")
    with pytest.raises(ValueError, match="action_repeat must be at least 1; got 0"):
        gym.make(CHEETAH, action_repeat=0)


# -------------------------------------------------------------------- with the package


@needs_dmc
def test_ids_are_those_of_the_suite() -> None:
    from dm_control import suite

    assert {(domain, task) for domain, tasks in dmc.TASKS.items() for task in tasks.split()} == set(suite.ALL_TASKS)


@needs_dmc
@pytest.mark.parametrize("task", ["cheetah-run", "walker-walk", "fish-swim", "reacher-easy", "quadruped-walk"])
def test_it_is_shimmys_environment_with_flat_observations(task: str) -> None:
    suite, adapter = dmc.import_dm_control(CHEETAH)
    register_namespaces()
    ours = gym.make(f"dm_control/{task}-v0")
    theirs = gym.wrappers.FlattenObservation(adapter(suite.load(*task.split("-"))))
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    rng = np.random.default_rng(0)
    for seed in (3, 4):
        assert np.array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
        for _ in range(20):
            action = rng.uniform(-1, 1, ours.action_space.shape)
            for found, expected in zip(ours.step(action)[:4], theirs.step(action)[:4], strict=True):
                assert np.array_equal(found, expected)


@needs_dmc
def test_action_repeat_and_time_limit() -> None:
    register_namespaces()
    once, four = gym.make(CHEETAH), gym.make(CHEETAH, action_repeat=4)
    assert np.array_equal(once.reset(seed=0)[0], four.reset(seed=0)[0])
    rng = np.random.default_rng(0)
    for step in range(250):
        action = rng.uniform(-1, 1, 6)
        found = four.step(action)
        single = [once.step(action) for _ in range(4)]
        assert np.array_equal(found[0], single[-1][0]) and found[1] == pytest.approx(sum(float(one[1]) for one in single))
        assert found[2:4] == single[-1][2:4] == (False, step == 249), "episodes end by truncation after 1000 steps"
    four.close()
    four.close()


@needs_dmc
def test_the_spec_makes_it_again() -> None:
    register_namespaces()
    env = gym.make(CHEETAH, action_repeat=2)
    again = gym.make(pickle.loads(pickle.dumps(env.spec)))
    assert again.unwrapped.action_repeat == 2
    assert np.array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])


@needs_dmc
@pytest.mark.parametrize("algo", [ERL, OpenAIES])
def test_short_form_learns_and_is_loaded(algo: Any, tmp_path: Any) -> None:
    kwargs = SMALL if algo is ERL else {"policy_kwargs": {"net_arch": [8]}, "n_pairs": 1, "noise_table_size": 100_000}
    model = algo(CHEETAH, seed=0, **kwargs).learn(3100)
    assert model.num_timesteps == 3100 and model.observation_space.shape == (17,) and model.n_generations == 1
    model.save(tmp_path / "model")
    again = algo.load(tmp_path / "model", env=CHEETAH)
    observation = model.get_env().reset()
    assert np.array_equal(model.predict(observation, deterministic=True)[0], again.predict(observation, deterministic=True)[0])


@needs_dmc
def test_workers_make_it_too() -> None:
    """Also spawned ones, which have imported nothing."""
    register_namespaces()
    kwargs = {"action_repeat": 20}
    models = []
    for evaluator in ("vec", "process"):
        env = make_vec_env(CHEETAH, seed=0, env_kwargs=kwargs)
        models.append(ERL(env, evaluator=evaluator, seed=0, **SMALL).learn(400))
    assert differences(snapshot(models[0]), snapshot(models[1])) == []
    env = make_vec_env(f"sb3_erl.envs.dmc:{CHEETAH}", n_envs=2, env_kwargs=kwargs, vec_env_cls=SubprocVecEnv)
    try:
        split = ERL(env, seed=0, **SMALL).learn(400)
    finally:
        env.close()
    assert np.array_equal(split.evolver.best(), models[0].evolver.best())
