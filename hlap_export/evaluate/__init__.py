"""Evaluate: EleutherAI's lm_eval on an engine."""

from hlap_export.evaluate.evaluate import EvaluateOptions, evaluate
from hlap_export.evaluate.report import EvaluationReport, Score

__all__ = ["EvaluateOptions", "EvaluationReport", "Score", "evaluate"]
