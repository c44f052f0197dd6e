"""Planning of actions in a model or simulator by the cross-entropy method."""

from sb3_erl.planning.agent import CEMAgent
from sb3_erl.planning.base import PlanningModel
from sb3_erl.planning.cem_planner import CEMPlanner, Plan
from sb3_erl.planning.function_model import FunctionModel
from sb3_erl.planning.learned_model import LearnedModel
from sb3_erl.planning.rollout_model import RolloutModel, locomotion_reward
from sb3_erl.planning.simulator import SimulatorModel

__all__ = [
    "CEMAgent",
    "CEMPlanner",
    "FunctionModel",
    "LearnedModel",
    "Plan",
    "PlanningModel",
    "RolloutModel",
    "SimulatorModel",
    "locomotion_reward",
]
