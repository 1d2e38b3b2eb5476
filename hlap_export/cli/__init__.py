"""The command line: one command per verb, a thin shell over the functions of the same names.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a check failed, 2 wrong usage or input,
3 a backend is missing, 70 something that nobody foresaw, 130 interrupted.

A new verb is a module in `verbs`, and a row in `VERBS` (`app.py`).
"""

from __future__ import annotations

from hlap_export.cli.app import app as app
from hlap_export.cli.program import main as main
