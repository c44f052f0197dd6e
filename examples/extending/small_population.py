"""
A population of another architecture than the learner: linear policies, taught by a deep learner.

Its parameters cannot be copied into them. With ``exchange="imitate"`` the champion is trained to act as the learner does and
then takes the place of the weakest individual; with the default, ``"replace_weakest"``, nothing goes to the population.

    python -m examples.extending.small_population
"""

from sb3_erl import ERL


def main(steps: float = 10_000) -> tuple[int, int]:
    """:return: parameters of an individual, and of the learner's actor"""
    model = ERL(
        "Pendulum-v1",
        learner="td3",
        policy_kwargs={"net_arch": [128, 128]},
        population_policy_kwargs={"net_arch": []},
        exchange="imitate",
        exchange_kwargs={"n_steps": 50},
        sync_period=1,
        pop_size=5,
        seed=1,
    )
    model.learn(steps)
    sizes = [sum(p.numel() for p in agent.parameters()) for agent in (model.individual(0), model.learner_agent)]
    print(f"individuals of {sizes[0]} parameters, a learner's actor of {sizes[1]}; champion {model.champion_fitness}")
    return sizes[0], sizes[1]


if __name__ == "__main__":
    main()
