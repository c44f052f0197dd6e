"""Every example runs, with a budget that lets it finish in seconds."""

import importlib
import math
import os
import pkgutil
from pathlib import Path

import pytest

import examples

# (arguments, smallest and largest return value that make sense), where the result can be told
RUNS: dict[str, tuple[list[str], float, float]] = {
    "quickstart": (["--steps", "450"], -2000, 0),
    "several_environments": (["--steps", "300", "--n-envs", "3"], 300, 302),
    "save_and_continue": (["--steps", "400"], 800, 800),
    "contrib_learner": (["--steps", "400"], -2000, 0),
    "custom_operator": (["--steps", "1300"], -2000, 0),
    "custom_system": (["--steps", "4200"], -2000, 0),
    "safe_operators": (["--steps", "1300"], 0, 0.3),
    "reward_at_the_end": (["--steps", "900"], 5, 1000),
    "portfolio": (["--steps", "2400"], 0, 1),
    "planning": (["--steps", "450"], -2000, 0),
    "offline": (["--episodes", "3", "--updates", "12"], -2000, 0),
}
OTHERS = {"callbacks", "demo", "record_video", "watch_population"}


def test_every_example_is_tested() -> None:
    found = {module.name for module in pkgutil.iter_modules(examples.__path__) if not module.ispkg}
    assert found == set(RUNS) | OTHERS


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RUNS))
def test_example(name: str) -> None:
    arguments, low, high = RUNS[name]
    result = importlib.import_module(f"examples.{name}").main(arguments)
    assert low <= result <= high


@pytest.mark.slow
def test_callbacks(tmp_path: Path) -> None:
    best = importlib.import_module("examples.callbacks").main(["--steps", "400", "--out", str(tmp_path)])
    assert best == tmp_path / "best_model.zip"
    assert best.is_file()
    assert list(tmp_path.glob("rl_model_replay_buffer_*_steps.pkl"))


@pytest.mark.slow
def test_a_population_is_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = importlib.import_module("examples.watch_population").main(["--steps", "4500", "--out", str(tmp_path)])
    assert picture.stat().st_size > 10_000 and (tmp_path / "population.csv").is_file()
    assert "champion_origin" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_writes_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sb3_erl import ERLRe2

    # a short whole run: some generations measure whole episodes, so the curve has a population in it
    arguments = ["--env", "InvertedPendulum-v5", "--steps", "400", "--seed", "3", "--out", str(tmp_path)]
    mean = importlib.import_module("examples.demo").main(arguments)
    assert math.isfinite(mean)
    assert ERLRe2.load(tmp_path / "erl_re2_InvertedPendulum-v5.zip").num_timesteps == 400
    assert (tmp_path / "learning_curve.png").stat().st_size > 10_000
    assert (tmp_path / "evaluations.npz").is_file()
    printed = capsys.readouterr().out
    assert "random actions" in printed
    assert (tmp_path / "video.mp4").is_file() or "no renderer found" in printed


def test_demo_says_how_to_get_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = importlib.import_module("examples.demo")
    monkeypatch.setenv("MUJOCO_GL", "no-such-renderer")
    assert demo.film("InvertedPendulum-v5", tmp_path / "missing.zip", tmp_path / "video.mp4") is False
    assert os.listdir(tmp_path) == []
