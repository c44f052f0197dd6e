"""A run that was killed goes on from its last checkpoint, and ends with what the run that was not killed ends with."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, ConvertCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_erl
from benchmarks.kill_resume import kill_and_resume, processes
from benchmarks.killed_run import SYSTEMS, differences, fingerprint
from sb3_erl import ALGOS, GenerationCheckpoint, newest_checkpoint
from sb3_erl.runs import checkpoints, segments
from tests.contract.resumed import SAVE_FREQ, TOTAL, environment, learn, learn_elsewhere, learn_until
from tests.contract.settings import HYBRIDS, NAMES, ONE_OF_EACH_FAMILY, STEPWISE, known, make
from tests.envs import toy_vec_env
from tests.interruption import call_with_sigint

CHEAP = "cem"
pytestmark = pytest.mark.filterwarnings("ignore:use_checkpoints with VecNormalize")


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.split("_")[1]) for path in folder.glob("checkpoint_*"))


def forget_after(folder: Path, n_kept: int) -> Path:
    """A copy of a run as if it had been killed when it had written so many checkpoints, and some rows of its log."""
    copy = shutil.copytree(folder, folder.with_name(f"{folder.name}_{n_kept}"))
    for checkpoint in sorted((copy / "checkpoints").glob("checkpoint_*"))[n_kept:]:
        shutil.rmtree(checkpoint)
    return copy


@pytest.mark.parametrize("name", NAMES)
def test_resumed_in_another_process(name: str, tmp_path: Path) -> None:
    whole = tmp_path / "run"
    expected = fingerprint(learn(name, whole), whole / "progress.csv")
    assert len(steps_of(whole / "checkpoints")) >= 3
    killed = forget_after(whole, 2)
    process = processes().Process(target=learn_elsewhere, args=(name, killed))
    process.start()
    process.join()
    result = json.loads((killed / "result.json").read_text())
    assert differences(expected, result) == []
    assert any(key.startswith(".log.0.") for key in expected) and any(key.startswith(".normalizer.") for key in expected)
    assert (name in HYBRIDS) == any(key.startswith(".replay_buffer.") for key in expected)
    for file in ("progress.json", "log.txt"):
        assert len((killed / file).read_text().splitlines()) == len((whole / file).read_text().splitlines()) > 0
    assert steps_of(killed / "checkpoints") == steps_of(whole / "checkpoints")


@pytest.mark.parametrize("name", [name for name in STEPWISE if "pop_size" in known(name, {"pop_size": 3})])
def test_inside_an_assessment_nobody_else_is_deployed(name: str, tmp_path: Path) -> None:
    def favor_another(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if whole.num_timesteps == 100:
            whole.members[1].state["last_returns"] = [1000.0]
        return True

    whole = make(name, early_assessment_episodes=50, explore_steps=1000)
    whole.learn(120, [ConvertCallback(favor_another), GenerationCheckpoint(50, tmp_path)])
    assert whole.best == 1 and whole._n_updates == 0
    resumed = ALGOS[name].resume_from(tmp_path / "checkpoint_000000000104", toy_vec_env(), "cpu").learn(120)
    assert resumed.best == 1 and differences(fingerprint(whole), fingerprint(resumed)) == []


@pytest.mark.parametrize("name", STEPWISE)
def test_episodes_that_never_end_together_are_cut(name: str, tmp_path: Path) -> None:
    def run(folder: Path) -> Any:
        env = toy_vec_env(2, length=20, vary=20)
        resumed = newest_checkpoint(folder) is not None
        model = ALGOS[name].resume_from(folder, env, "cpu") if resumed else make(name, env)
        return model.learn(400, GenerationCheckpoint(SAVE_FREQ, folder, keep=None))

    whole = run(tmp_path / "run")
    steps = steps_of(tmp_path / "run")
    assert len(steps) >= 4 and np.diff(steps).max() <= 3 * SAVE_FREQ
    killed = shutil.copytree(tmp_path / "run", tmp_path / "killed")
    for checkpoint in sorted(killed.glob("checkpoint_*"))[2:]:
        shutil.rmtree(checkpoint)
    assert differences(fingerprint(whole), fingerprint(run(killed))) == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_killed_at_random_moments(system: str) -> None:
    tally = kill_and_resume(system, 2, random.Random(system), n_steps=360)
    assert tally.different == [] and tally.n_identical == tally.n_kills == 2


def test_killed_at_each_kind_of_moment_in_a_save(tmp_path: Path) -> None:
    def begin(folder: Path, n_events: int) -> int:
        process = processes().Process(target=learn_until, args=("erl", folder, n_events))
        process.start()
        process.join()
        return process.exitcode

    assert begin(tmp_path / "whole", 10**6) == 0
    n_events = int((tmp_path / "whole" / "n_events").read_text())
    expected = fingerprint(learn("erl", tmp_path / "whole"), tmp_path / "whole" / "progress.csv")
    moments = np.unique(np.linspace(1, n_events, 12).astype(int))
    left_something = 0
    for moment in moments:
        folder = tmp_path / str(moment)
        assert begin(folder, moment) == -signal.SIGKILL
        left_something += any((folder / "checkpoints").glob(".checkpoint_*"))  # the folder itself may not be there yet
        assert differences(expected, fingerprint(learn("erl", folder, keep=1), folder / "progress.csv")) == [], moment
        assert len(list((folder / "checkpoints").glob("*checkpoint_*"))) == 1, "nothing of the killed process is left"
    assert len(moments) == 12 and left_something > 4


@pytest.mark.parametrize("name", [CHEAP, "erl"])
def test_ctrl_c_is_as_good_as_a_kill(name: str, tmp_path: Path) -> None:
    """In lines drawn by chance; the same process goes on from the last checkpoint."""
    package = str(Path(sb3_erl.__file__).parent)
    expected = fingerprint(learn(name, tmp_path / "whole"), tmp_path / "whole" / "progress.csv")
    _, n_lines = call_with_sigint(lambda: learn(name, tmp_path / "counted"), 0, lambda file: file.startswith(package))
    for number in np.random.default_rng(0).integers(1, n_lines, 6).tolist():
        folder = tmp_path / str(number)
        line, _ = call_with_sigint(partial(learn, name, folder), number, lambda file: file.startswith(package))
        assert differences(expected, fingerprint(learn(name, folder), folder / "progress.csv")) == [], line
        assert not any((folder / "checkpoints").glob(".checkpoint_*")), line


@pytest.mark.parametrize("name", [CHEAP, *STEPWISE])
def test_a_finished_run_has_nothing_left_to_do(name: str, tmp_path: Path) -> None:
    """Not even to cut the episode that ran when it was over."""
    before = learn(name, tmp_path)
    written = newest_checkpoint(tmp_path / "checkpoints")
    assert steps_of(tmp_path / "checkpoints")[-1] == TOTAL[name]
    assert name not in STEPWISE or before.replay_buffer.dones[before.replay_buffer.pos - 1] == 0, "an episode runs"
    after = learn(name, tmp_path)
    assert after.num_timesteps == TOTAL[name] and newest_checkpoint(tmp_path / "checkpoints") == written
    assert differences(fingerprint(before), fingerprint(after)) == []
    after.learn(40, reset_num_timesteps=False)
    assert after.num_timesteps == TOTAL[name] + 40, "only the first call is the rest of the interrupted one"


def test_another_total_is_heard_and_said(tmp_path: Path) -> None:
    make(CHEAP).learn(100, GenerationCheckpoint(30, tmp_path))
    model = ALGOS[CHEAP].resume_from(tmp_path, toy_vec_env(), "cpu")
    with pytest.warns(UserWarning, match="total_timesteps was 100 in the call .* is 150 now"):
        model.learn(150)
    assert model.num_timesteps == 150


def test_rest_of_a_second_call(tmp_path: Path) -> None:
    model = make(CHEAP).learn(96)
    model.learn(100, GenerationCheckpoint(30, tmp_path, keep=None), reset_num_timesteps=False)
    shutil.rmtree(newest_checkpoint(tmp_path) or "")
    resumed = ALGOS[CHEAP].resume_from(tmp_path, toy_vec_env(), "cpu")
    assert 96 < resumed.num_timesteps < 196
    assert resumed.learn(100, reset_num_timesteps=False).num_timesteps == 196
    assert differences(fingerprint(model), fingerprint(resumed)) == []


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_files_of_sb3s_callback(name: str, tmp_path: Path) -> None:
    saves = CheckpointCallback(50, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    make(name, environment(name)).learn(180, saves)
    (tmp_path / "rl_model_150_steps.zip").rename(tmp_path / "rl_model_200_steps.zip")  # its other files are not there yet
    env = environment(name)
    model = ALGOS[name].resume_from(tmp_path, env, "cpu")
    saved = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_100_steps.pkl"), toy_vec_env())
    assert model.num_timesteps == 100 and env.ret_rms.count == saved.ret_rms.count
    assert name not in HYBRIDS or 0 < model.replay_buffer.size() <= 100
    assert model.learn(180).num_timesteps == 180


def test_offline(tmp_path: Path) -> None:
    def run(name: str) -> Any:
        model: Any = make("td7", offline=True)
        model.replay_buffer = seen.replay_buffer
        if newest_checkpoint(tmp_path / name) is not None:
            model = ALGOS["td7"].resume_from(tmp_path / name, toy_vec_env(), "cpu")
        return model.learn(50, GenerationCheckpoint(20, tmp_path / name, keep=None))

    seen = make("td7", learning_starts=1000).learn(100)
    whole = fingerprint(run("run"))
    assert steps_of(tmp_path / "run") == [20, 40, 50]
    shutil.copytree(tmp_path / "run" / "checkpoint_000000000020", tmp_path / "killed" / "checkpoint_000000000020")
    assert differences(whole, fingerprint(run("killed"))) == []


class Stop(BaseCallback):
    """Stops training at a step."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return self.num_timesteps < self.at


class Counter(BaseCallback):
    """Counts in a way that nobody else knows."""

    own = 0

    def _on_step(self) -> bool:
        self.own += 1
        return True


def test_callbacks_remember(tmp_path: Path) -> None:
    def callbacks() -> Any:
        evaluation = EvalCallback(toy_vec_env(), eval_freq=25, n_eval_episodes=1, log_path=str(tmp_path), verbose=0)
        return CallbackList([evaluation, Counter(), GenerationCheckpoint(60, tmp_path / "run", keep=None)])

    first, second = callbacks(), callbacks()
    make(CHEAP).learn(200, first)
    shutil.rmtree(newest_checkpoint(tmp_path / "run") or "")
    model = ALGOS[CHEAP].resume_from(tmp_path / "run", toy_vec_env(), "cpu")
    begun_at = model.num_timesteps
    second.callbacks[0].best_mean_reward = -1e9
    np.random.seed(0)
    model.learn(200, second)
    evaluation, counter, _ = second.callbacks
    assert evaluation.evaluations_timesteps == first.callbacks[0].evaluations_timesteps == list(range(25, 201, 25))
    n_before = begun_at // 25
    assert evaluation.evaluations_results[:n_before] == first.callbacks[0].evaluations_results[:n_before]
    assert counter.n_calls == 200 and counter.own == 200 - begun_at, "what others keep is their own affair"


def test_global_generators_go_on(tmp_path: Path) -> None:
    class Draw(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[float] = []

        def _on_step(self) -> bool:
            self.drawn += [random.random(), float(np.random.random()), float(th.rand(1))]
            return True

    whole, rest = Draw(), Draw()
    make(CHEAP).learn(100, [whole, GenerationCheckpoint(30, tmp_path, keep=None)])
    shutil.rmtree(newest_checkpoint(tmp_path) or "")
    model = ALGOS[CHEAP].resume_from(tmp_path, toy_vec_env(), "cpu")
    for seed in (random.seed, np.random.seed, th.manual_seed):
        seed(5)
    model.learn(100, [rest, GenerationCheckpoint(30, tmp_path, keep=None)])
    assert 0 < len(rest.drawn) < 300 and whole.drawn[-len(rest.drawn) :] == rest.drawn


def test_environments_are_made_again(tmp_path: Path) -> None:
    env = make_vec_env("Pendulum-v1", 2, env_kwargs={"max_episode_steps": 20, "g": 8.0})
    model = make(CHEAP, env).learn(500, GenerationCheckpoint(100, tmp_path, keep=None))
    shutil.rmtree(newest_checkpoint(tmp_path) or "")
    resumed = ALGOS[CHEAP].resume_from(tmp_path)
    assert resumed.n_envs == 2 and resumed.env.get_attr("g") == [8.0, 8.0]
    assert differences(fingerprint(model), fingerprint(resumed.learn(500))) == []


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    learn(CHEAP, tmp_path)
    folder = tmp_path / "checkpoints"
    whole = sorted(folder.glob("checkpoint_*"))
    (whole[-1] / "model.zip").write_bytes((whole[-1] / "model.zip").read_bytes()[:100])
    (whole[-2] / "checkpoint.json").write_text("{")
    (whole[-3] / "run.pkl").unlink()
    assert newest_checkpoint(folder) == whole[-4] == newest_checkpoint(whole[-4])
    model = ALGOS[CHEAP].resume_from(folder, environment(CHEAP), "cpu")
    model.learn(TOTAL[CHEAP], [Stop(steps_of(folder)[-3] + 10), GenerationCheckpoint(SAVE_FREQ, folder, keep=1)])
    assert newest_checkpoint(folder) == whole[-3] and steps_of(folder) == [int(whole[-3].name[-12:])], "whole ones count"


@pytest.mark.filterwarnings("ignore:a damaged checkpoint is passed over")
def test_a_wrong_bit_is_never_learned_from(tmp_path: Path) -> None:
    """In any file of the newest checkpoint: the one before is taken, and the run ends as it would have."""
    whole, rng = tmp_path / "run", np.random.default_rng(0)
    expected = fingerprint(learn("erl", whole), whole / "progress.csv")
    killed = forget_after(whole, 3)
    files = [file.relative_to(killed) for file in sorted((killed / "checkpoints").rglob("*_000*/**/*")) if file.is_file()]
    newest = [file for file in files if file.parts[1] == files[-1].parts[1]]
    assert {"model.zip", "replay_buffer.pkl", "vecnormalize.pkl", "run.pkl", "checkpoint.json"} <= {f.name for f in newest}
    for file in newest * 2:
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(killed, folder)
        data = bytearray((folder / file).read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        (folder / file).write_bytes(data)
        result = fingerprint(learn("erl", folder), folder / "progress.csv")
        assert differences(expected, result) == [], file
        assert steps_of(folder / "checkpoints") == steps_of(whole / "checkpoints")


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_damaged_segment_falls_back_to_the_checkpoint_before(name: str, tmp_path: Path) -> None:
    """Said with the file's name; the damaged checkpoint is gone when the run has saved again, and the run ends the same."""
    whole = learn(name, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    expected, steps = fingerprint(whole, tmp_path / "run" / "progress.csv"), steps_of(folder)
    newest = newest_checkpoint(folder)
    assert newest is not None
    own = [path for path in (newest / "segments").iterdir() if path.stat().st_nlink == 1]
    data = bytearray(own[0].read_bytes())
    data[len(data) // 2] ^= 4
    own[0].write_bytes(data)
    with pytest.raises(ValueError, match=f"{own[0].name}' is damaged: .* Use an earlier save"):
        ALGOS[name].resume_from(newest, environment(name), "cpu")
    with pytest.warns(UserWarning, match=f"a damaged checkpoint is passed over, .*{own[0].name}"):
        model = ALGOS[name].resume_from(folder, environment(name), "cpu")
    assert model.num_timesteps == steps[-2] and steps_of(folder) == steps
    with pytest.warns(UserWarning, match="a damaged checkpoint is passed over"):
        again = learn(name, tmp_path / "run")
    assert differences(expected, fingerprint(again, tmp_path / "run" / "progress.csv")) == []
    assert steps_of(folder) == steps and ALGOS[name].resume_from(folder, environment(name)).num_timesteps == steps[-1]


def test_damage_that_several_checkpoints_share_falls_back_to_one_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "CHUNKS", (256, 256))
    make("erl", environment("erl")).learn(300, GenerationCheckpoint(40, tmp_path, keep=None))
    folders = sorted(tmp_path.glob("checkpoint_*"))
    names = [{path.name for path in (folder / "segments").iterdir()} for folder in folders]
    first = next(index for index in range(1, len(names)) if names[index] & names[-1] - names[index - 1])
    assert first < len(names) - 1
    (shared, *_) = names[first] & names[-1] - names[first - 1]
    with (folders[-1] / "segments" / shared).open("r+b") as file:  # one file with several names
        data = bytearray(file.read())
        data[0] ^= 1
        file.seek(0)
        file.write(data)
    with pytest.warns(UserWarning, match=f"a damaged checkpoint is passed over, .*{shared}"):
        resumed = ALGOS["erl"].resume_from(tmp_path, environment("erl"))
    assert resumed.num_timesteps == steps_of(tmp_path)[first - 1]


HALVED = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
BUFFERS: dict[str, dict[str, Any]] = {
    "usual": {},
    "n-step": {"n_steps": 3},
    "half the memory": {**HALVED, "replay_buffer_class": ReplayBuffer},
}
CASES = [
    (name, kind, n_envs)
    for name in ("erl_re2", "erl", "pderl", "td7", "pop_td7")
    for kind, settings in BUFFERS.items()
    for n_envs in (1, 2)
    if known(name, settings) == settings and (n_envs == 1 or kind != "n-step")
]


@pytest.mark.parametrize(("name", "kind", "n_envs"), CASES)
def test_every_kind_of_buffer_goes_on(
    name: str, kind: str, n_envs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it in many segments, of rings that have wrapped round, from each checkpoint of a run."""
    monkeypatch.setattr(segments, "LEAST", 64)
    monkeypatch.setattr(segments, "CHUNKS", (64, 64))

    def run(folder: Path) -> Any:
        env = VecNormalize(toy_vec_env(n_envs, vary=3), norm_obs=name not in STEPWISE)
        if newest_checkpoint(folder) is None:
            model = make(name, env, buffer_size=100 * n_envs, **BUFFERS[kind])
        else:
            model = ALGOS[name].resume_from(folder, env, "cpu")
        return model.learn(230, GenerationCheckpoint(SAVE_FREQ, folder, keep=None))

    whole = run(tmp_path / "run")
    expected, folders = fingerprint(whole), sorted((tmp_path / "run").glob("checkpoint_*"))
    assert len(folders) >= 3 and whole.replay_buffer.full
    assert any(path.stat().st_nlink > 1 for folder in folders for path in (folder / "segments").iterdir()), "some are shared"
    for number in {1, len(folders) - 2}:
        killed = shutil.copytree(folders[number], tmp_path / str(number) / folders[number].name).parent
        assert differences(expected, fingerprint(run(killed))) == [], number


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_as_large_as_what_is_in_the_buffer(name: str, tmp_path: Path) -> None:
    """And the next one adds to the disk what is new; with the default size of buffers, of which nearly all is empty."""
    sizes = known(name, {"buffer_size": 1_000_000, "genetic_memory_size": 100_000})
    make(name, environment(name), **sizes).learn(170, GenerationCheckpoint(60, tmp_path, keep=None))
    for folder in tmp_path.glob("checkpoint_*"):
        # the tensors of a model stand in its file twice, as SB3's and without pickles
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 900_000, folder


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    """Beside them, folders that are not this class's: a copy of a checkpoint under another name, and notes."""
    (tmp_path / ".checkpoint_000000000007.abc").mkdir()
    others = ["checkpoint_000000000020_copy", "checkpoint_best", ".checkpoint_notes"]
    for other in others:
        (tmp_path / other).mkdir()
    (tmp_path / "rl_model_20_steps.zip").write_text("of SB3's callback")
    make(CHEAP).learn(170, GenerationCheckpoint(20, tmp_path, keep=2))
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {
        "checkpoint_000000000160",
        "checkpoint_000000000170",
        "rl_model_20_steps.zip",
        *others,
    }


class Scores(BaseCallback):
    """Says how good the episodes were."""

    def __init__(self, scores: dict[int, float]):
        super().__init__()
        self.scores = scores

    def _on_step(self) -> bool:
        self.model.ep_info_buffer.clear()  # type: ignore[union-attr]
        passed = [score for step, score in self.scores.items() if step <= self.num_timesteps]
        if passed:
            self.model.ep_info_buffer.append({"r": passed[-1], "l": 1, "t": 0.0})  # type: ignore[union-attr]
        return True


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [60, 160, 170]),
        ({"keep_every": 3}, [60, 90, 160, 170]),
        ({"keep": 1, "keep_best": True}, [60, 170]),
        ({"keep": 1}, [170]),
        ({"keep": 1, "keep_every": 2}, [60, 120, 170]),
        ({"keep": None}, [30, 60, 90, 120, 160, 170]),
    ],
)
def test_the_two_last_the_best_and_every_nth(settings: dict[str, Any], kept: list[int], tmp_path: Path) -> None:
    """The run is interrupted in between, and its numbers go on."""
    scores = Scores({5: -50.0, 50: 3.0, 70: 1.0, 110: float("nan"), 130: 2.0})
    with pytest.raises(ZeroDivisionError):
        stop = ConvertCallback(lambda variables, _: variables["self"].num_timesteps < 111 or 1 / 0)
        make(CHEAP).learn(170, [scores, GenerationCheckpoint(20, tmp_path, **settings), stop])
    model = ALGOS[CHEAP].resume_from(tmp_path, toy_vec_env(), "cpu")
    model.learn(170, [scores, GenerationCheckpoint(20, tmp_path, **settings)])
    assert [step // 10 * 10 for step in steps_of(tmp_path)] == kept
    for folder in tmp_path.glob("checkpoint_*"):
        assert ALGOS[CHEAP].resume_from(folder, toy_vec_env()).num_timesteps == int(folder.name.split("_")[1])


def test_the_best_one_is_that_of_the_evaluations(tmp_path: Path) -> None:
    """Where an ``EvalCallback`` makes them; training episodes do not count then."""
    evaluation = EvalCallback(toy_vec_env(), eval_freq=1000, verbose=0)

    def evaluate(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        step = variables["self"].num_timesteps
        evaluation.last_mean_reward = -np.inf if step < 50 else -abs(step - 90.0)
        return True

    scores = Scores({0: 100.0, 50: -100.0})
    make(CHEAP).learn(170, [evaluation, scores, ConvertCallback(evaluate), GenerationCheckpoint(20, tmp_path)])
    first, *others = steps_of(tmp_path)
    assert 80 <= first <= 100 and len(others) == 2


def learn_and_wait(folder: Path) -> None:
    """A run that is in the middle of ``learn`` until it is killed."""

    def wait(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        if variables["self"].num_timesteps >= 40:
            (folder / "is waiting").touch()
            time.sleep(1000)
        return True

    make(CHEAP).learn(1000, [GenerationCheckpoint(20, folder), ConvertCallback(wait)])


def test_a_folder_is_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a process learns, and no longer: not after it was killed, nor after an error."""
    monkeypatch.setattr(checkpoints, "LOCK_TIMEOUT", 0.2)
    process = processes().Process(target=learn_and_wait, args=(tmp_path,))
    process.start()
    while not (tmp_path / "is waiting").exists():
        time.sleep(0.01)
    for model in (make(CHEAP), ALGOS[CHEAP].resume_from(tmp_path, toy_vec_env())):
        with pytest.raises(ValueError, match=r"save_path must be a folder that no other run is writing to"):
            model.learn(1000, GenerationCheckpoint(20, tmp_path))
    process.kill()
    process.join()
    model = ALGOS[CHEAP].resume_from(tmp_path, toy_vec_env())
    with pytest.raises(ZeroDivisionError):
        model.learn(1000, [GenerationCheckpoint(20, tmp_path), ConvertCallback(lambda *_: 1 / 0)])
    process = processes().Process(target=learn_elsewhere_to, args=(tmp_path, 300))
    process.start()
    process.join()
    assert process.exitcode == 0 and steps_of(tmp_path)[-1] == 300


def learn_elsewhere_to(folder: Path, n_steps: int) -> None:
    model = ALGOS[CHEAP].resume_from(folder, toy_vec_env())
    with pytest.warns(UserWarning, match="total_timesteps was 1000"):
        model.learn(n_steps, GenerationCheckpoint(20, folder))


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path must be a folder with at least one whole checkpoint"):
        ALGOS[CHEAP].resume_from(tmp_path)
    make(CHEAP).learn(60, GenerationCheckpoint(30, tmp_path))
    with pytest.raises(ValueError, match="path must hold checkpoints of ERL; got CEM's"):
        ALGOS["erl"].resume_from(tmp_path, toy_vec_env())
    with pytest.raises(ValueError, match="env must be given to resume_from"):
        ALGOS[CHEAP].resume_from(tmp_path)
    with pytest.raises(ValueError, match="env must have no VecNormalize"):
        ALGOS[CHEAP].resume_from(tmp_path, VecNormalize(toy_vec_env()))
    with pytest.raises(ValueError, match=r"save_path must not hold later checkpoints .* CEM.resume_from"):
        make(CHEAP).learn(60, GenerationCheckpoint(30, tmp_path))


def test_wrong_arguments(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"save_freq": 0}, {"save_freq": 10, "keep": 0}, {"save_freq": 10, "keep": "best"}]
    for arguments in (*wrong, {"save_freq": 10, "keep_every": 0}):
        with pytest.raises(ValueError, match=list(arguments)[-1]):
            GenerationCheckpoint(save_path=tmp_path, **arguments)
    with pytest.raises(TypeError, match="GenerationCheckpoint needs a model of sb3_erl; got TD3"):
        TD3("MlpPolicy", toy_vec_env()).learn(10, GenerationCheckpoint(10, tmp_path))
