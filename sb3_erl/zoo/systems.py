"""``sb3-erl list``: the systems of this package, each in a line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """
    What a line of the list says.

    :param paper: authors, year and where the paper is
    :param actions: ``"box"`` (continuous), ``"discrete"``, or ``"every kind"``: ``MultiDiscrete`` and ``MultiBinary``, too
    :param learners: values of ``learner``, the default first; empty for evolution alone
    """

    paper: str
    actions: str
    learners: str = ""


CONTI, SUCH = "Conti et al. 2018, arXiv:1712.06560", "Such et al. 2017, arXiv:1712.06567"
POURCHOT, RAINBOW = "Pourchot & Sigaud 2019, arXiv:1810.01222", "Li, Zheng et al. 2024, ICML"
ANY = "ddpg td3 td7 sac dqn, SB3"
ALL = "every kind"
SYSTEMS: dict[str, System] = {
    "erl": System("Khadka & Tumer 2018, arXiv:1805.07917", "box, discrete", ANY),
    "pderl": System("Bodnar et al. 2020, arXiv:1906.09807", "box, discrete", ANY),
    "cerl": System("Khadka et al. 2019, arXiv:1905.00976", "box", "td3 ddpg td7 sac, several"),
    "cem_rl": System(POURCHOT, "box", "td3 ddpg td7 sac"),
    "esac": System("Suri et al. 2020, arXiv:2007.13690", "box", "sac"),
    "erl_re2": System("Hao et al. 2023, arXiv:2210.17375", "box", "td3 ddpg td7"),
    "evo_rainbow": System(RAINBOW, "box", "td3 ddpg sac"),
    "evo_rainbow_exp": System(RAINBOW, "box", "td3 ddpg sac"),
    "veb_rl": System("Li, Hao et al. 2024, ICML", "discrete", "dqn"),
    "td7": System("Fujimoto et al. 2023, arXiv:2306.02451", "box", "td7"),
    "pop_td7": System("several TD7 with one replay buffer", "box", "td7"),
    "cem": System(POURCHOT, ALL),
    "openai_es": System("Salimans et al. 2017, arXiv:1703.03864", ALL),
    "deep_ga": System(SUCH, ALL),
    "random_search": System(SUCH, ALL),
    "ga_ns": System(SUCH, ALL),
    "ns_es": System(CONTI, ALL),
    "nsr_es": System(CONTI, ALL),
    "nsra_es": System(CONTI, ALL),
    "pbt": System("Jaderberg et al. 2017, arXiv:1711.09846", "of its members", "any of SB3"),
}
"""By key in ``sb3_erl.ALGOS``; hybrids first. The tests compare it with the classes."""


def main(arguments: list[str] | None = None) -> list[str]:
    """
    :param arguments: of the command line
    :return: the lines that were printed
    """
    parser = argparse.ArgumentParser(
        prog="sb3-erl list",
        description="List the systems: key for --algo and sb3_erl.ALGOS, paper, kinds of actions, values of learner=.",
    )
    parser.parse_args(arguments)
    rows = [("key", "paper", "actions", "learner")]
    rows += [(key, system.paper, system.actions, system.learners or "-") for key, system in SYSTEMS.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]
    print("\n".join(lines))
    return lines
