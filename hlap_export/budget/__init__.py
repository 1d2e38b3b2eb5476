"""What a step will need of the machine, told and checked before it begins."""

from hlap_export.budget.budget import Budget
from hlap_export.budget.needs import Needs, Speeds, Term, Work
from hlap_export.budget.sizes import parse_size
from hlap_export.budget.weights import Model, model_at

__all__ = ["Budget", "Model", "Needs", "Speeds", "Term", "Work", "model_at", "parse_size"]
