"""Evolutionary reinforcement learning for Stable-Baselines3."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import sb3_erl.envs  # noqa: F401 registers the environments
from sb3_erl.algorithms.cem import CEM
from sb3_erl.algorithms.cem_rl import CEMRL
from sb3_erl.algorithms.cerl import CERL
from sb3_erl.algorithms.deep_ga import DeepGA, RandomSearch
from sb3_erl.algorithms.erl import ERL
from sb3_erl.algorithms.erl_re2 import ERLRe2
from sb3_erl.algorithms.esac import ESAC
from sb3_erl.algorithms.evo_rainbow import EvoRainbow, EvoRainbowExp
from sb3_erl.algorithms.ga_ns import GANS
from sb3_erl.algorithms.novelty_es import NSES, NSRAES, NSRES
from sb3_erl.algorithms.openai_es import OpenAIES
from sb3_erl.algorithms.pderl import PDERL
from sb3_erl.algorithms.pop_td7 import PopTD7
from sb3_erl.algorithms.td7 import TD7
from sb3_erl.algorithms.veb_rl import VEBRL
from sb3_erl.core.registry import register
from sb3_erl.engine.hybrid import HybridAlgorithm
from sb3_erl.engine.model import load_safe
from sb3_erl.engine.pure_evolution import EvolutionaryAlgorithm
from sb3_erl.engine.steps import Reseed, every
from sb3_erl.evolution.base import Distribution, Evolver
from sb3_erl.evolution.fitness.base import Fitness, needs
from sb3_erl.learners.td_rule import TDRule
from sb3_erl.populations.pbt import PBT
from sb3_erl.populations.space import Choice, IntUniform, LogUniform, Uniform
from sb3_erl.runs.callbacks import GenerationCheckpoint
from sb3_erl.runs.checkpoints import newest_checkpoint
from sb3_erl.runs.loading import load_parameters

if TYPE_CHECKING:
    from sb3_erl.pictures.callback import PopulationCallback
    from sb3_erl.remote.process import ProcessEvaluator
    from sb3_erl.remote.ray import RayEvaluator

__version__ = "0.2.0.dev0"

ALGOS: dict[str, type[Any]] = {
    "cem": CEM,
    "cem_rl": CEMRL,
    "cerl": CERL,
    "deep_ga": DeepGA,
    "erl": ERL,
    "erl_re2": ERLRe2,
    "esac": ESAC,
    "evo_rainbow": EvoRainbow,
    "evo_rainbow_exp": EvoRainbowExp,
    "ga_ns": GANS,
    "ns_es": NSES,
    "nsr_es": NSRES,
    "nsra_es": NSRAES,
    "openai_es": OpenAIES,
    "pbt": PBT,
    "pderl": PDERL,
    "pop_td7": PopTD7,
    "random_search": RandomSearch,
    "td7": TD7,
    "veb_rl": VEBRL,
}
"""The single registry: the Zoo, the tests and the README read it. Values are SB3 algorithm classes of various constructors."""

__all__ = [
    "ALGOS",
    "CEM",
    "CEMRL",
    "CERL",
    "ERL",
    "ESAC",
    "GANS",
    "NSES",
    "NSRAES",
    "NSRES",
    "PBT",
    "PDERL",
    "TD7",
    "VEBRL",
    "Choice",
    "DeepGA",
    "Distribution",
    "ERLRe2",
    "EvoRainbow",
    "EvoRainbowExp",
    "EvolutionaryAlgorithm",
    "Evolver",
    "Fitness",
    "GenerationCheckpoint",
    "HybridAlgorithm",
    "IntUniform",
    "LogUniform",
    "OpenAIES",
    "PopTD7",
    "PopulationCallback",
    "ProcessEvaluator",
    "RandomSearch",
    "RayEvaluator",
    "Reseed",
    "TDRule",
    "Uniform",
    "__version__",
    "every",
    "load_parameters",
    "load_safe",
    "needs",
    "newest_checkpoint",
    "register",
]

_LATER = {"ProcessEvaluator": "remote.process", "RayEvaluator": "remote.ray", "PopulationCallback": "pictures.callback"}


def __getattr__(name: str) -> Any:  # imported when they are wanted
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"sb3_erl.{_LATER[name]}"), name)
