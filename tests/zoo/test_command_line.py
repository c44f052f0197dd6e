"""The original ``rl_zoo3`` as a user types it, with our wheel installed and a working directory of its own."""

from __future__ import annotations

import inspect
import json
import pickle
import zipfile
from pathlib import Path

import pytest
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from benchmarks.killed_run import differences, fingerprint
from sb3_erl import ALGOS
from tests.zoo.conftest import Command

# One worker runs all commands of an algorithm after the training they need.
pytestmark = [pytest.mark.zoo, pytest.mark.slow, pytest.mark.xdist_group("zoo")]

STEPS = 900
SMALL = {
    "buffer_size": "5000",
    "n_pairs": "2",
    "pop_size": "3",
    "learning_starts": "400",
    "batch_size": "16",
    "policy_kwargs": "dict(net_arch=[16,16])",
    "sync_period": "1",
    "elite_fraction": "0.34",
    "fitness_horizon": "50",
    "n_eval_episodes": "1",
    "noise_table_size": "100000",
    "truncation": "2",
    "n_finalists": "2",
    "n_finalist_episodes": "1",
    "n_center_episodes": "1",
    "meta_population_size": "1",
    "n_gradient_bases": "1",
    "sac_interval": "1",
    "sac_episodes": "1",
    "fitness_batch_size": "200",
    "ready_steps": "64",
    "algorithm_kwargs": "dict(n_steps=64,batch_size=64)",
}
LEARNING_RATE = "lin_0.001"
STORED = ["--save-replay-buffer"]


def known(algo: str, *names: str) -> list[str]:
    """Those of the arguments that an algorithm has, in this order."""
    return [name for name in names if name in inspect.signature(ALGOS[algo]).parameters]


def small(algo: str) -> list[str]:
    """``-params`` that make an algorithm small, as far as it has these arguments, and a schedule."""
    seldom = ["train_freq:4"] if family(algo) == (True, True) else []
    words = [f"{name}:{SMALL[name]}" for name in known(algo, *SMALL)]
    return ["-params", *words, *seldom, f"learning_rate:'{LEARNING_RATE}'"]


def has_buffer(algo: str) -> bool:
    """Whether a class has a replay buffer."""
    return issubclass(ALGOS[algo], OffPolicyAlgorithm)


def env_of(algo: str) -> str:
    """The id of a task whose actions a class can take."""
    return "Pendulum-v1" if getattr(ALGOS[algo], "takes_continuous_actions", True) else "CartPole-v1"


def family(algo: str) -> tuple[bool, bool]:
    """What decides how the Zoo and a class meet: whether there is a buffer, and whose loop steps the environments."""
    return has_buffer(algo), hasattr(ALGOS[algo], "generation_order") or hasattr(ALGOS[algo], "trains_whole_models")


ONE_OF_EACH_FAMILY = list({family(algo): algo for algo in reversed(ALGOS)}.values())
one_of_each_family = pytest.mark.parametrize("algo", ONE_OF_EACH_FAMILY)
"""For what the Zoo does without asking the class, in processes that take long."""


def train(algo: str, *words: str, steps: int = STEPS) -> list[str]:
    settings = ["--eval-freq", "450", "--eval-episodes", "2", "-f", "logs", "--seed", "1"]
    return ["rl_zoo3", "train", "--algo", algo, "--env", env_of(algo), "-n", str(steps), *settings, *words, *small(algo)]


@pytest.fixture(scope="module", params=ALGOS)
def algo(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(algo: str, command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one run was trained and saved with its replay buffer."""
    folder = tmp_path_factory.mktemp(algo)
    result = command(*train(algo, *STORED, "-tb", "tb"), cwd=folder, alone=algo in ONE_OF_EACH_FAMILY)
    file = next(line for line in result.stdout.splitlines() if line.startswith("Loading hyperparameters from: "))
    assert Path(file.split(": ")[1]).parts[-4:] == ("site-packages", "sb3_erl", "hyperparams", f"{algo}.yml")
    assert "RuntimeWarning: sb3_erl" not in result.stderr
    return folder


def test_train_saves_the_model(algo: str, trained: Path) -> None:
    env_id = env_of(algo)
    run = trained / "logs" / algo / f"{env_id}_1"
    files = {p.name for p in run.iterdir()}
    assert {f"{env_id}.zip", "best_model.zip", "evaluations.npz"} <= files
    assert ("replay_buffer.pkl" in files) == has_buffer(algo)
    episodes = (run / "0.monitor.csv").read_text().splitlines()[2:]
    assert len(episodes) >= STEPS // 200 - 1, "episodes of the population appear in the Zoo's monitor file"
    assert [path.name for path in (trained / "tb" / env_id).iterdir()] == [f"{ALGOS[algo].__name__}_1"]


def test_parameters_reach_the_class(algo: str, trained: Path) -> None:
    env_id = env_of(algo)
    run = trained / "logs" / algo / f"{env_id}_1"
    config = (run / env_id / "config.yml").read_text()
    name = known(algo, *SMALL)[0]
    assert LEARNING_RATE in config and f"- {name}\n    - {SMALL[name]}" in config
    data = json.loads(zipfile.ZipFile(run / f"{env_id}.zip").read("data"))
    assert data[name] == int(SMALL[name]) and ":serialized:" in data["learning_rate"], "a schedule"


def test_enjoy(algo: str, trained: Path, command: Command) -> None:
    words = ["enjoy", "--algo", algo, "--env", env_of(algo), "-f", "logs", "--no-render", "-n", "250", "--load-best"]
    assert "Episode Reward" in command("rl_zoo3", *words, cwd=trained).stdout


def test_continue_from_a_trained_agent(algo: str, trained: Path, command: Command) -> None:
    env_id = env_of(algo)
    agent = f"logs/{algo}/{env_id}_1/{env_id}.zip"
    result = command(*train(algo, "-i", agent, *STORED, "--log-interval", "1", steps=450), cwd=trained)
    assert "Loading pretrained agent" in result.stdout
    assert ("Loading replay buffer" in result.stdout) == has_buffer(algo)
    assert (trained / "logs" / algo / f"{env_id}_2" / f"{env_id}.zip").exists()


@pytest.mark.parametrize("algo", ["erl", "pderl"])
def test_discrete_actions(algo: str, command: Command, tmp_path: Path) -> None:
    words = ["--algo", algo, "--env", "CartPole-v1", "-f", "logs"]
    chosen = ["--hyperparams", "learner:'dqn'", "pop_size:3", "learning_starts:100", "train_freq:4"]
    command("rl_zoo3", "train", *words, "-n", "400", "--eval-freq", "200", "--eval-episodes", "1", *chosen, cwd=tmp_path)
    file = zipfile.ZipFile(tmp_path / "logs" / algo / "CartPole-v1_1" / "CartPole-v1.zip")
    assert json.loads(file.read("data"))["learner_class"] == "dqn"
    assert "Episode Reward" in command("rl_zoo3", "enjoy", *words, "--no-render", "-n", "600", cwd=tmp_path).stdout


def test_continue_from_a_checkpoint_of_ours(command: Command, tmp_path: Path) -> None:
    """What the rest of a run writes is what the whole run wrote, to the last bit."""
    algo, runs, saves = "erl_re2", tmp_path / "logs" / "erl_re2", ["--save-freq", "250", *STORED]
    command(*train(algo, *saves), "normalize:True", cwd=tmp_path)
    checkpoints = sorted((runs / "Pendulum-v1_1" / "checkpoints").glob("checkpoint_*"))
    assert len(checkpoints) == 3
    result = command(*train(algo, "-i", str(checkpoints[0] / "model.zip"), *saves), "normalize:True", cwd=tmp_path)
    assert f"Resuming the run that was saved in {checkpoints[0]}" in result.stdout
    fingerprints = []
    for run in (runs / "Pendulum-v1_1", runs / "Pendulum-v1_2"):
        model = ALGOS[algo].load(run / "Pendulum-v1.zip", device="cpu")
        model.load_replay_buffer(run / "replay_buffer.pkl")
        statistics = pickle.loads((run / "Pendulum-v1" / "vecnormalize.pkl").read_bytes())
        fingerprints.append({**fingerprint(model), "mean": statistics.obs_rms.mean.tobytes()})
    assert differences(*fingerprints) == []


def test_optimize_and_train_from_a_trial(algo: str, command: Command, tmp_path: Path) -> None:
    study = ["--storage", "study.log", "--study-name", "s"]
    words = ["rl_zoo3", "train", "--algo", algo, "--env", env_of(algo), "-n", "250", "-f", "logs", "--eval-episodes", "1"]
    cheap = ["--conf-file", "cheap.yml"]
    enough = {**SMALL, "noise_table_size": "2000000"}  # for the largest networks that are tried
    enough["algorithm_kwargs"] = "{n_steps: 64, batch_size: 64}"  # the Zoo evaluates text in few entries of a file
    keys = known(algo, "pop_size", "learning_starts", "buffer_size", "noise_table_size", "algorithm_kwargs")
    lines = [f"  {name}: {enough[name]}\n" for name in keys]
    (tmp_path / "cheap.yml").write_text("default:\n  policy: 'MlpPolicy'\n  n_timesteps: 250\n" + "".join(lines))
    optimize = ["-optimize", "--n-trials", "2", "--no-optim-plots", "--n-startup-trials", "2", "--n-evaluations", "1"]
    result = command(*words, *cheap, *study, *optimize, cwd=tmp_path)
    assert "Number of finished trials:  2" in result.stdout
    shown = known(algo, "gamma", "gammas", "sigma_init", "sigma", "init_output_std", "ready_steps")[0]
    assert f"{shown}:" in result.stdout, "the report shows true values"
    if algo not in ONE_OF_EACH_FAMILY:
        return
    result = command(*words, *cheap, *study, "--trial-id", "1", cwd=tmp_path)
    assert "Loading from Optuna study" in result.stdout and f"'{shown}'" in result.stdout


def test_plots(trained: Path, algo: str, command: Command) -> None:
    if algo not in ONE_OF_EACH_FAMILY:
        pytest.skip("reads files that are alike")
    command("rl_zoo3", "plot_train", "-a", algo, "-e", env_of(algo).split("-")[0], "-f", "logs", "-y", "reward", cwd=trained)
    words = ["-a", algo, "-e", env_of(algo).split("-")[0], "-f", "logs", "--no-million", "-o", "figure"]
    command("rl_zoo3", "all_plots", *words, cwd=trained)
    assert (trained / "figure.pkl").exists()


def test_push_to_hub_starts(command: Command, tmp_path: Path) -> None:
    result = command("-m", "rl_zoo3.push_to_hub", "--help", cwd=tmp_path)
    assert all(algo in result.stdout for algo in ALGOS)


def test_record_video_knows_the_algorithms(command: Command, tmp_path: Path) -> None:
    result = command("-m", "rl_zoo3.record_video", "--help", cwd=tmp_path)
    assert all(algo in result.stdout for algo in ALGOS)


def test_algorithms_of_the_zoo_still_work(command: Command, tmp_path: Path) -> None:
    words = ["--algo", "td3", "--env", "Pendulum-v1", "-n", "150", "-f", "logs", "--eval-freq", "-1"]
    result = command("rl_zoo3", "train", *words, cwd=tmp_path)
    assert "rl_zoo3/hyperparams/td3.yml" in result.stdout.replace("\\", "/")


def test_switch_and_the_command_of_ours(command: Command, tmp_path: Path) -> None:
    """Without the start-up file the Zoo does not know us, and ``sb3-erl`` works all the same."""
    algo = next(iter(ALGOS))
    words = train(algo, steps=150)[1:]
    refused = command("rl_zoo3", *words, cwd=tmp_path, fails=True, SB3_ERL_ZOO="0")
    assert "invalid choice" in refused.stderr
    command("sb3-erl", *words, cwd=tmp_path, SB3_ERL_ZOO="0")
    assert (tmp_path / "logs" / algo / f"{env_of(algo)}_1").exists()
    shown = command("-m", "sb3_erl.zoo", "push_to_hub", "--help", cwd=tmp_path, SB3_ERL_ZOO="0")
    assert algo in shown.stdout


def test_command_of_ours_explains_itself(command: Command, tmp_path: Path) -> None:
    assert "usage: sb3-erl" in command("sb3-erl", "--help", cwd=tmp_path).stdout
    assert "unknown command 'trian'" in command("sb3-erl", "trian", cwd=tmp_path, fails=True).stderr


@one_of_each_family
def test_subprocess_environments(algo: str, command: Command, tmp_path: Path) -> None:
    words = train(algo, "--vec-env", "subproc", "--eval-freq", "-1", steps=300)
    command(*words, "n_envs:2", cwd=tmp_path)
    assert {"0.monitor.csv", "1.monitor.csv"} <= {p.name for p in (tmp_path / "logs" / algo / f"{env_of(algo)}_1").iterdir()}


@one_of_each_family
def test_wrong_parameter_names_the_argument(algo: str, command: Command, tmp_path: Path) -> None:
    argument = known(algo, "pop_size", "policy_delay")[0]
    result = command(*train(algo, steps=200), f"{argument}:0", cwd=tmp_path, fails=True)
    assert argument in result.stderr.splitlines()[-1] and "ValueError" in result.stderr
