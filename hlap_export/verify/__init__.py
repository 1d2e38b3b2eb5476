"""Verify: is the engine right, and how well does it predict text?"""

from hlap_export.verify.options import VerifyOptions
from hlap_export.verify.report import Check, VerifyReport
from hlap_export.verify.tolerances import TOLERANCES, Tolerance
from hlap_export.verify.verify import verify

__all__ = ["TOLERANCES", "Check", "Tolerance", "VerifyOptions", "VerifyReport", "verify"]
