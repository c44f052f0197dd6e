"""What a generation does when: steps of a user's own, the deployed network, random actions that become fewer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_erl import ALGOS, ERL, Reseed, every
from sb3_erl.core.parameters import read_parameters
from sb3_erl.engine.generation import Generation
from tests.contract.helpers import watch_phases
from tests.contract.settings import GENERATIONAL, WHOLE_EPISODES, known, make, variants


def following(verb: Any, seen: list[tuple[int, str, th.Tensor]]) -> every:
    """A step that notes the deployed network after a verb."""

    def note(model: Any, generation: Generation) -> None:
        seen.append((generation.number, verb, read_parameters(model.policy.deployed)))

    return every(1, note, after=verb)


@pytest.mark.parametrize(("name", "extra"), variants(GENERATIONAL))
def test_steps_follow_their_verbs_and_deploy_alone_changes_the_deployed_network(name: str, extra: dict[str, Any]) -> None:
    order, seen = ALGOS[name].generation_order, list[tuple[int, str, th.Tensor]]()
    whole = known(name, WHOLE_EPISODES)
    model = make(name, generation_steps=[following(verb, seen) for verb in reversed(order)], **whole, **extra)
    deployed, changed = read_parameters(model.policy.deployed), set()
    model.learn(200)
    assert [entry[:2] for entry in seen][: 2 * len(order)] == [(number, verb) for number in (1, 2) for verb in order]
    for _, verb, later in seen:
        changed |= set() if th.equal(deployed, later) else {verb}
        deployed = later
    assert changed == {"deploy"}


def test_every_counts_generations_and_the_verb_can_be_chosen() -> None:
    calls: list[tuple[str, int]] = []

    class Note:
        after = "tell"

        def __call__(self, model: Any, generation: Generation) -> None:
            assert generation.fitness is not None
            calls.append(("tell", generation.number))

    def note(model: Any, generation: Generation) -> None:
        assert generation.fitness is None and generation.candidates is not None
        calls.append(("ask", generation.number))

    model = make("cem", generation_steps=[every(2, Note()), every(3, note, after="ask")]).learn(350)
    periods = {"ask": 3, "tell": 2}
    expected = [(verb, n) for n in range(1, model.n_generations + 1) for verb in ("ask", "tell") if n % periods[verb] == 0]
    assert model.n_generations >= 6 and calls[: len(expected)] == expected


def test_reseeding_spares_protected_individuals_and_the_champion_is_deployed_all_the_same() -> None:
    told: list[tuple[th.Tensor, np.ndarray]] = []

    def check(model: Any, generation: Generation) -> None:
        assert generation.fitness is not None
        told.append((generation.asked.clone(), generation.fitness.copy()))
        protected = model.evolver.protected
        distances = (model.evolver.candidates - read_parameters(model.actor)).std(dim=1)
        others = [slot for slot in range(model.pop_size) if slot not in protected]
        assert len(others) > 0 and distances[others].numpy() == pytest.approx(0.1, rel=0.3)
        assert th.equal(model.evolver.candidates[protected[0]], model.population.champion.vector)
        model.evolver.inject(th.full((1, generation.asked.shape[1]), 7.0), protected[:1])

    model: Any = make("erl", generation_steps=[Reseed(std=0.1), every(1, check, after="exchange")]).learn(200)
    candidates, fitness = told[-1]
    assert len(told) == model.n_generations > 2
    assert th.equal(read_parameters(model.policy.deployed), candidates[int(np.flatnonzero(fitness == fitness.max())[-1])])


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ([lambda model, generation: None], TypeError, r"generation_steps must be steps.*every\(n, step, after="),
        ([every(1, print, after="revalidate")], ValueError, r"must follow one of the verbs \['ask'.*got after='revalidate'"),
        (["no.such.module:Step"], ValueError, r"generation_steps must name a part as 'package.module:Name'"),
    ],
)
def test_wrong_steps(steps: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make("erl", generation_steps=steps)
    with pytest.raises(ValueError, match="period must be at least 1"):
        every(0, Reseed())
    with pytest.raises(ValueError, match="std must be at least 0"):
        Reseed(std=-1.0)


def test_random_actions_become_fewer() -> None:
    """Linearly over the first ``exploration_fraction`` of the budget."""
    settings: dict[str, Any] = {"exploration_initial_eps": 0.9, "exploration_final_eps": 0.1, "exploration_fraction": 0.5}
    model = ERL("CartPole-v1", learner="dqn", pop_size=3, learning_starts=10_000, seed=1, **settings)
    phases, starts = watch_phases(model), []
    model.learn(1000, lambda *_: starts.append(model.num_timesteps) or True)  # type: ignore[func-returns-value]
    shares = [next(job.explorer.epsilon for job in jobs if job.explorer is not None) for jobs, _ in phases]  # type: ignore[attr-defined]
    begins = np.cumsum([0] + [batch.n_timesteps for _, batch in phases if batch is not None])[: len(shares)]
    assert shares == pytest.approx([0.9 - 0.8 * min(begin / 500, 1) for begin in begins])
    assert shares[0] == 0.9 and shares[-1] == pytest.approx(0.1)
