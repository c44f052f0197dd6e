"""Files whose author made all checksums right: nothing is imported, called, written or opened for what stands in them."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.noise import NormalActionNoise

from sb3_erl import ALGOS, ERL, Reseed, every, load_safe
from sb3_erl.core.registry import PARTS, nothing_imported, resolve
from sb3_erl.core.safe_names import ROLES, allowed_class
from sb3_erl.runs.safe_files import (
    COUNTERS,
    OF_THE_MACHINE,
    RUN_TIME,
    ModelFileError,
    SafeContents,
    arguments_of,
    unfit_attributes,
)
from sb3_erl.zoo import info
from tests.contract.settings import NAMES, make
from tests.contract.test_safe_files import bytes_of, edited
from tests.envs import toy_vec_env

CODE = (
    "antigravity:fly",
    "antigravity: fly",
    "antigravity:",
    " antigravity:fly",
    "os:system",
    "ünicode:x",
    "a-b:c",
    "x.y:z-v0",
)
"""Texts for which a module would be imported, if they came to where parts, or environments, are looked up."""
ESCAPE = "\x1b]0;title\x07\x1b[2J\u202e\x9b31m\r"
"""Sets the title of a terminal, clears it, turns the direction of writing, and writes over the line."""

Settings = dict[str, Any]


def given(**attributes: Any) -> Callable[[Settings], None]:
    return lambda settings: settings["attributes"].update(attributes)


def in_policy(**kwargs: Any) -> Callable[[Settings], None]:
    return given(policy_kwargs={"dict": {"net_arch": [4], **kwargs}})


def step(kind: str, **fields: Any) -> Callable[[Settings], None]:
    return given(generation_steps=[{"object": [f"sb3_erl.engine.steps:{kind}", fields]}])


def schedule(kind: str, **fields: Any) -> Callable[[Settings], None]:
    return given(lr_schedule={"object": [f"stable_baselines3.common.utils:{kind}", fields]})


SAC = {"class": "stable_baselines3.sac.sac:SAC"}
RESEED = {"object": ["sb3_erl.engine.steps:Reseed", {"std": 0.1, "after": "exchange"}]}
CLASSES: dict[str, Callable[[Settings], None]] = {
    "an algorithm as an optimizer": in_policy(optimizer_class=SAC, optimizer_kwargs={"dict": {"env": "CartPole-v1"}}),
    "an algorithm as a feature extractor": in_policy(features_extractor_class=SAC),
    "an algorithm as an activation": in_policy(activation_fn=SAC),
    "a policy as an activation": in_policy(activation_fn={"class": "sb3_erl.policies.erl:ERLPolicy"}),
    "a network as an optimizer": in_policy(optimizer_class={"class": "torch.nn.modules.activation:ReLU"}),
    "an optimizer as a feature extractor": in_policy(features_extractor_class={"class": "torch.optim.adam:Adam"}),
    "a text as an activation": in_policy(activation_fn="antigravity: fly"),
    "an algorithm that learns on policy": given(learner_class={"class": "stable_baselines3.ppo.ppo:PPO"}),
    "an algorithm of this package as a learner": given(learner_class={"class": "sb3_erl.algorithms.erl:ERL"}),
    "its name": given(learner_class="sb3_erl.algorithms.erl:ERL"),
    "a learner that is not loaded": given(learner_class="sb3_contrib.nothing:TQC"),
    "a name with a space": given(learner_class="antigravity: fly"),
    "names in a list": given(learner_class=["td3", "antigravity: fly"]),
    "a learner as an evolver": given(evolver_class={"class": "sb3_erl.learners.td7:TD7Learner"}),
    "an operator's name with a space": given(crossover="antigravity: fly"),
    "an operator in arguments": given(evolver_kwargs={"dict": {"crossover": "antigravity: fly"}}),
    "a fitness of code": given(fitness_class={"dict": {"antigravity:fly": 1.0}}),
    "a fitness of loaded code": given(fitness_class={"dict": {"socket:socket": 1.0}}),
    "a fitness of code in pairs": given(fitness_class={"pairs": [["antigravity: fly", 1.0]]}),
    "a name of code as a key": in_policy(**{"builtins:print": 1}),
    "a step's name": given(generation_steps=["antigravity: fly"]),
    "a schedule that is a class": given(lr_schedule=SAC),
    "a network as a replay buffer": given(replay_buffer_class={"class": "torch.nn.modules.activation:ReLU"}),
    "a class among arguments of the buffer": given(replay_buffer_kwargs={"dict": {"x": SAC}}),
    "a policy of no policy": given(policy_class={"deploying": "stable_baselines3.sac.sac:SAC"}),
    "a policy by its name": given(policy_class="sb3_erl.policies.erl:ERLPolicy"),
    "a class in an attribute of one's own": given(mine=SAC),
}
OBJECTS: dict[str, Callable[[Settings], None]] = {
    "a step with one more": step("every", period=1, step=RESEED, after="exchange", more=1),
    "a step that hides a method": step("Reseed", std=0.1, after="exchange", __call__=1),
    "a step without a period": step("every", step=RESEED, after="exchange"),
    "a step of a class": step("every", period=1, step=SAC, after="exchange"),
    "a period that is a text": step("every", period="1", step=RESEED, after="exchange"),
    "a period that is a list": step("every", period=[1], step=RESEED, after="exchange"),
    "a step of a text": step("Reseed", std="0.1", after="exchange"),
    "another dataclass": given(x={"object": ["sb3_erl.learners.choice:LearnerSpec", {"learner_class": SAC}]}),
    "a schedule of a class": schedule("FloatSchedule", value_schedule=SAC),
    "a schedule of a step": schedule("FloatSchedule", value_schedule=RESEED),
    "a schedule of a text": schedule("ConstantSchedule", val="1"),
    "a schedule that hides a method": schedule("ConstantSchedule", val=1.0, __repr__=1),
    "a schedule with one more": schedule("LinearSchedule", start=1.0, end=0.0, end_fraction=1.0, more=1),
    "noise of a class": given(
        action_noise={
            "object": ["stable_baselines3.common.noise:NormalActionNoise", {"_mu": 0.0, "_sigma": 1.0, "_dtype": SAC}]
        }
    ),
}
TYPES: dict[str, Callable[[Settings], None]] = {
    "a count that is a text": given(num_timesteps="5"),
    "a count that is a list": given(_n_updates=[]),
    "a seed that is a dict": given(seed={"dict": {}}),
    "a seed of a run that is a text": given(run_seed="1"),
    "a discount that is a text": given(gamma="0.99"),
    "a size that is a list": given(buffer_size=[1]),
    "a text that is a number": given(deploy=1),
    "names of policies": given(policy_aliases={"dict": {}}),
    "a learner": given(learner="x"),
    "what makes learners": given(_learner_host={"dict": {}}),
    "what makes rollouts": given(rollouts=1),
    "the method that learns": given(learn=1),
    "a property": given(phase_key=1, logger="x"),
}


MISPLACED = CLASSES | OBJECTS | TYPES


@pytest.fixture
def without_antigravity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it opens a browser; here it would be a fault."""
    assert "antigravity" not in sys.modules
    monkeypatch.setattr("webbrowser.open", None)


@pytest.mark.usefixtures("without_antigravity")
@pytest.mark.parametrize("what", MISPLACED)
def test_what_does_not_belong_there_is_refused(what: str) -> None:
    before = set(sys.modules)
    bad = edited(bytes_of(make("erl")), MISPLACED[what])
    before |= set(sys.modules)
    with pytest.raises(ModelFileError):
        load_safe(bad, env=toy_vec_env())
    assert set(sys.modules) == before and "antigravity" not in sys.modules


@pytest.mark.parametrize("name", NAMES)
def test_no_argument_of_any_class_takes_a_name_of_code(name: str) -> None:
    """Also of classes that are new; and no counter takes a text."""
    cls = ALGOS[name]
    for argument in {*arguments_of(cls), *ROLES} - {*OF_THE_MACHINE, *RUN_TIME, "self", "args", "kwargs"}:
        for text in CODE:
            for value in (text, [text], {"key": [text]}, {text: 1.0}, [{text: 1.0}]):
                assert unfit_attributes(SafeContents(name, {argument: value}), cls), (argument, value)
    for counter in COUNTERS:
        assert unfit_attributes(SafeContents(name, {counter: "1"}), cls), counter


@pytest.mark.usefixtures("without_antigravity")
def test_parts_are_not_imported_while_a_file_is_read() -> None:
    """The second guard, behind the check of the attributes; parts of this package are found by their keys all the same."""
    with nothing_imported():
        for text in ("antigravity:fly", "antigravity: fly", "sb3_erl.no_such_module:X"):
            with pytest.raises(ValueError, match="from a file that is not trusted"):
                resolve("evolver", text)
        for kind, parts in PARTS.items():
            for key in parts:
                assert resolve(kind, key) is not None
    assert "antigravity" not in sys.modules


def test_parameters_set_nothing_but_the_models_own() -> None:
    """SB3's ``load`` sets the attribute ``data`` of whatever a file names: of a class, and so of every model after it."""
    for name in ("__class__", "policy", "policy.__class__", "env", "_learner_host", "a b", ""):

        def change(settings: Settings, name: str = name) -> None:
            settings["variables"][name] = {"tensor": settings["attributes"].pop("_last_obs")["array"]}

        with pytest.raises(ModelFileError):
            load_safe(edited(bytes_of(make("erl").learn(30)), change))
    assert not hasattr(ERL, "data") and not hasattr(type(make("erl").policy), "data")
    for settings in ({"parameters": {"policy": SAC}}, {"variables": {"x": {"dict": {}}}}):
        with pytest.raises(ModelFileError):
            load_safe(edited(bytes_of(make("erl")), lambda old, new=settings: old.update(new)))  # type: ignore[misc]


def test_a_file_starts_no_processes_and_opens_no_ports() -> None:
    """Where episodes run is for who loads the file to say; what is learned is the same."""
    file = bytes_of(make("erl", evaluator="process", compile=True))
    said = edited(file, given(evaluator="ray", tensorboard_log="/nowhere/logs"))
    for each in (file, said):
        each.seek(0)
        model = load_safe(each, env=toy_vec_env())
        assert {name: getattr(model, name) for name in OF_THE_MACHINE} == OF_THE_MACHINE
        assert model.learn(30).workers is None
        each.seek(0)
        chosen = load_safe(each, env=toy_vec_env(), evaluator="process", tensorboard_log="logs")
        assert (chosen.evaluator, chosen.tensorboard_log) == ("process", "logs")
    nonsense = edited(file, given(evaluator="antigravity: fly", tensorboard_log={"class": "os:system"}))
    with pytest.raises(ModelFileError):
        load_safe(nonsense)


def test_good_objects_are_read() -> None:
    """The checks above do not refuse what ``save`` writes."""
    settings: dict[str, Any] = {
        "generation_steps": [every(2, Reseed(std=0.2)), Reseed()],
        "action_noise": NormalActionNoise(np.zeros(2), 0.2 * np.ones(2)),
    }
    model = load_safe(bytes_of(make("erl", **settings).learn(40)), env=toy_vec_env())
    assert list(model.generation_steps) == settings["generation_steps"]
    model.learn(40, reset_num_timesteps=False)


def test_classes_of_other_programs_are_not_found() -> None:
    for name in ("torch.nn.parallel.distributed:DistributedDataParallel", "torch.optim.swa_utils:AveragedModel"):
        assert allowed_class(name) is None


def with_escapes(settings: Settings) -> None:
    settings["algorithm"] = f"ERL{ESCAPE}"
    settings["refused"] = {f"x{ESCAPE}": f"y{ESCAPE}"}
    settings["parameters"] = {f"p{ESCAPE}": None}
    settings["attributes"] |= {
        "policy_class": {"class": f"a:{ESCAPE}"},
        "policy_kwargs": {"dict": {ESCAPE: ESCAPE}},
        "observation_space": {"space": {"kind": ESCAPE}},
    }


def is_clean(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


def test_info_prints_nothing_that_a_terminal_obeys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = edited(bytes_of(make("erl")), with_escapes)
    copy = tmp_path / "bad.zip"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(copy, "w") as new:
        for member in old.namelist():
            new.writestr(member, f"OS{ESCAPE}\n" if member == "system_info.txt" else old.read(member))
    info.main([str(copy)])
    said = capsys.readouterr().out
    assert is_clean(said) and "title" in said
    old_format = io.BytesIO()
    with zipfile.ZipFile(old_format, "w") as new:
        new.writestr("data", '{"algorithm": "\\u001b]0;title\\u0007", "\\u001b[2J\\ud800": {":serialized:": ""}}')
    (tmp_path / "old.zip").write_bytes(old_format.getvalue())
    info.main([str(tmp_path / "old.zip")])
    said = capsys.readouterr().out
    assert is_clean(said) and "title" in said
    with zipfile.ZipFile(tmp_path / "worse.zip", "w") as new:
        new.writestr(f"../{ESCAPE}", "")
    with pytest.raises(SystemExit):
        info.main([str(tmp_path / "worse.zip")])
    assert is_clean(capsys.readouterr().err)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(algorithm=f"ERL{ESCAPE}"),
        lambda s: s.update(refused={"x": f"y{ESCAPE}"}),
        given(**{f"x{ESCAPE}": 1}),
        given(mine={"class": f"a:{ESCAPE}"}),
        given(evolver_class=f"a:{ESCAPE}"),
        given(policy_class=f"{ESCAPE}"),
        lambda s: s["parameters"].update({f"x{ESCAPE}": 1}),
        given(mine={ESCAPE: 1}),
        in_policy(**{ESCAPE: 1}),
    ],
)
def test_errors_say_nothing_that_a_terminal_obeys(change: Callable[[Settings], None]) -> None:
    for load in (load_safe, lambda file: ERL.load(file, trusted=False)):
        with pytest.raises(ModelFileError) as caught:
            load(edited(bytes_of(make("erl")), change))
        assert is_clean(str(caught.value)), str(caught.value)
