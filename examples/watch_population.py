"""
See what a population does: a row per generation in the log, in a table and in a file, and a picture of it.

    python -m examples.watch_population [--steps 20000] [--out FOLDER]
    sb3-erl plot FOLDER                                  # the same picture, from the command line
"""

import argparse
import tempfile
from pathlib import Path

from sb3_erl import ERL, PopulationCallback
from sb3_erl.pictures.population_figure import draw_population


def main(arguments: list[str] | None = None) -> Path:
    """:return: the picture"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "sb3_erl_population")
    args = parser.parse_args(arguments)

    watch = PopulationCallback(args.out)
    model = ERL("Pendulum-v1", learner="td3", crossover_prob=0.2, policy_kwargs={"net_arch": [64, 64]}, seed=1, verbose=1)
    model.learn(args.steps, callback=watch)

    shown = ["timesteps", "fitness_median", "fitness_max", "learner_return", "action_diversity", "champion_origin"]
    print(watch.table()[shown].tail().to_string(index=False))
    draw_population(args.out).savefig(args.out / "population.png")
    return args.out / "population.png"


if __name__ == "__main__":
    main()
