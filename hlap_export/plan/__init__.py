"""Plans: which layers lose attention, and each layer's alpha."""

from hlap_export.plan.accounting import ParameterCount, count_parameters
from hlap_export.plan.planning import CalibrationOptions, plan
from hlap_export.plan.pruning_plan import PruningPlan, load_plan

__all__ = ["CalibrationOptions", "ParameterCount", "PruningPlan", "count_parameters", "load_plan", "plan"]
