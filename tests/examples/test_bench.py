"""``python -m benchmarks.bench``: how parts are timed, and what the program says."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks.bench import main, table
from benchmarks.speed import flops
from benchmarks.speed.measuring import MEASUREMENTS, Measurement, Options, run, timed


def test_parts_take_turns_and_are_compared_round_by_round() -> None:
    order: list[str] = []

    def part(name: str, seconds: float) -> float:
        order.append(name)
        time.sleep(seconds)
        return 10.0

    parts = {"slow": timed(lambda: part("slow", 0.02)), "fast": timed(lambda: part("fast", 0.005))}
    result = run(Measurement("units", parts, [("slow", "fast")], more=lambda rates: {"n": len(rates["slow"])}), rounds=3)
    assert order == ["slow", "fast"] * 4, "the first round is not counted"
    assert result["facts"] == {"n": 3} and len(result["rounds"]["slow"]) == 3
    assert 0 < result["ratios"]["slow / fast"]["median"] < 0.8
    assert 0 < result["per_second"]["slow"]["median"] <= 500 < result["per_cpu_second"]["slow"]["median"], "sleep takes no CPU"
    assert "slow / fast" in table("name", result)


def test_arithmetic_of_the_textbook_updates() -> None:
    assert flops.td7() / 1e9 == pytest.approx(2.65, abs=0.01)
    layers = flops.Layers((3, 5, 2))
    assert (layers.forward, layers.trained, layers.passed) == (25, 3 * 25 - 15, 50)
    for count in (flops.td7, flops.td3, flops.cem_rl, flops.erl_re2):
        assert count(batch=256) == pytest.approx(2 * count(batch=128))


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    main(["--only", "updates", "--rounds", "1", "--scale", "0.04", "--options", "dict(tau=0.01)", "--json", str(path)])
    report = json.loads(path.read_text())
    shares = report["threads"]["1"]["updates"]["facts"]["share_of_yardstick"]
    assert {"TD7, batch 256", "ERL-Re2, batch 128", "SB3 TD3.train, batch 256"} <= set(shares)
    assert all(0 < share["median"] < 1 for share in shares.values())
    assert "yardstick" in capsys.readouterr().out


def test_whole_generations_are_compared_with_the_same_steps() -> None:
    measure = MEASUREMENTS["stepping"](Options(scale=0.01))
    ours = "OpenAI-ES, linear, Swimmer-v5"
    assert measure.parts[ours]().units == measure.parts[f"bare for {ours}"]().units == 100
