"""What a step will need of the machine, told and checked before it begins."""

from hlap_export.budget.budget import Budget
from hlap_export.budget.files import build_needs, bundle_needs, export_needs, prune_needs
from hlap_export.budget.needs import Needs, Speeds, Term, Work
from hlap_export.budget.running import bench_needs, evaluate_needs, generate_needs, verify_needs
from hlap_export.budget.searching import SearchSize, search_needs
from hlap_export.budget.sizes import parse_size
from hlap_export.budget.whole_run import plan_needs, run_needs
from hlap_export.counting import Model, model_at

__all__ = [
    "Budget",
    "Model",
    "Needs",
    "SearchSize",
    "Speeds",
    "Term",
    "Work",
    "bench_needs",
    "build_needs",
    "bundle_needs",
    "evaluate_needs",
    "export_needs",
    "generate_needs",
    "model_at",
    "parse_size",
    "plan_needs",
    "prune_needs",
    "run_needs",
    "search_needs",
    "verify_needs",
]
