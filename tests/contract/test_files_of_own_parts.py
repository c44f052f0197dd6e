"""Files of models with parts that are not of this package, or of classes of one's own, in the program that loads them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.custom_system import SimpleGA
from examples.extending.crossover import UniformCrossover
from sb3_erl import ERL, load_safe, register
from sb3_erl.core.registry import PARTS
from sb3_erl.runs.safe_files import ModelFileError
from tests.contract.settings import make

WHERE = "examples.extending.crossover:UniformCrossover"


@pytest.fixture
def registered() -> Iterator[str]:
    register("crossover", "uniform_of_mine", WHERE)
    yield "uniform_of_mine"
    PARTS["crossover"].pop("uniform_of_mine", None)


def test_a_part_by_its_place_is_loaded_where_nobody_registered_it(registered: str, tmp_path: Path) -> None:
    make("erl", crossover=WHERE, crossover_prob=0.5).save(tmp_path / "model")
    del PARTS["crossover"][registered]  # as in another program
    loaded = ERL.load(tmp_path / "model")
    assert loaded.crossover == WHERE and isinstance(loaded.evolver.crossover, UniformCrossover)
    with pytest.raises(ModelFileError, match=rf"crossover: '{WHERE}', which names code outside of this package"):
        load_safe(tmp_path / "model")
    assert isinstance(load_safe(tmp_path / "model", crossover=UniformCrossover).evolver.crossover, UniformCrossover)


def test_a_key_that_this_program_does_not_know_is_named(registered: str, tmp_path: Path) -> None:
    make("erl", crossover=registered).save(tmp_path / "model")
    assert isinstance(load_safe(tmp_path / "model").evolver.crossover, UniformCrossover)
    del PARTS["crossover"][registered]
    for load in (ERL.load, load_safe):
        with pytest.raises(
            ValueError, match=r"got 'uniform_of_mine'.*sb3_erl\.register\('crossover', 'uniform_of_mine'"
        ) as error:
            load(tmp_path / "model")
        assert "harm" not in str(error.value)
        assert isinstance(load(tmp_path / "model", crossover=UniformCrossover).evolver.crossover, UniformCrossover)


LOAD = """
import sys
from sb3_erl import ERL, load_safe
try:
    load_safe(sys.argv[1])
except ValueError as error:
    assert "its module has not been imported" in str(error), error
assert "sb3_contrib" not in sys.modules
print(type(ERL.load(sys.argv[1]).learner.model).__name__)
print(load_safe(sys.argv[1]).learner_class.__name__)
"""


def test_a_class_of_sb3_contrib_is_imported_for_a_trusted_file(tmp_path: Path) -> None:
    sb3_contrib = pytest.importorskip("sb3_contrib")
    make("erl", learner=sb3_contrib.TQC).save(tmp_path / "model")
    said = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "model")], capture_output=True, text=True, check=False)
    assert said.stdout.split() == ["TQC", "TQC"], said.stderr


def test_a_class_of_ones_own_is_not_loaded_as_the_one_it_is_derived_from(tmp_path: Path) -> None:
    model = SimpleGA("Pendulum-v1", pop_size=4, elite_fraction=0.5, policy_kwargs={"net_arch": [4]}, seed=1)
    model.save(tmp_path / "model")
    with pytest.raises(ModelFileError, match=r"examples\.custom_system:SimpleGA.*SimpleGA\.load\(path, trusted=False\)"):
        load_safe(tmp_path / "model")
    observation = np.zeros(3, dtype=np.float32)
    for trusted in (True, False):
        loaded = SimpleGA.load(tmp_path / "model", trusted=trusted)
        assert type(loaded) is SimpleGA and loaded.evolver.n_elites == model.evolver.n_elites == 2
        assert loaded.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]


# ---------------------------------------------------------------- arguments that an evolver does not take

BOTH = {"elite_fraction": 0.5, "crossover": UniformCrossover}


@pytest.mark.parametrize("evolver", ["cem", "an object"])
@pytest.mark.parametrize("lost", [{"crossover": UniformCrossover}, {"mutation": "no_such_thing"}, BOTH])
def test_arguments_of_a_ga_are_not_dropped(evolver: str, lost: dict[str, Any]) -> None:
    choice = "cem" if evolver == "cem" else make("erl").evolver
    stated = "is no GA" if evolver == "cem" else "is an object that has arguments of its own"
    with pytest.raises(ValueError, match=rf"^{', '.join(lost)} must be left out with.*{stated}"):
        make("erl", evolver=choice, **lost)
    with pytest.raises(ValueError, match=rf"{next(iter(lost))}.*must be left out with.*{stated}"):
        make("erl_re2", evolver=choice, **lost)
    assert isinstance(make("erl", evolver=choice), ERL)


@pytest.mark.parametrize("name", ["cem", "cem_rl", "evo_rainbow"])
def test_arguments_of_a_cross_entropy_method_are_not_dropped(name: str) -> None:
    with pytest.raises(ValueError, match="sigma_init must be left out with evolver='ga', which is no DiagonalCEM"):
        make(name, evolver="ga", sigma_init=0.5)


def test_defaults_are_those_of_the_class() -> None:
    """A value that is the default of a class says nothing, whatever it is in the class it is derived from."""

    class Mine(ERL):
        def __init__(self, env: Any, crossover_prob: float = 0.25, **kwargs: Any):
            super().__init__("MlpPolicy", env, crossover_prob=crossover_prob, **kwargs)

    settings: dict[str, Any] = {"pop_size": 4, "policy_kwargs": {"net_arch": [4]}, "evolver": "cem"}
    assert Mine("Pendulum-v1", **settings).crossover_prob == 0.25
    with pytest.raises(ValueError, match=r"crossover_prob must be left out.*got crossover_prob=0\.5"):
        Mine("Pendulum-v1", crossover_prob=0.5, **settings)
