"""`hlap-export doctor`."""

from __future__ import annotations

import hlap_export
from hlap_export import terminal
from hlap_export.cli.options import Debug, Json


def doctor(json: Json = False, debug: Debug = False) -> None:
    """Say which engines can build and run here, and why the others can't."""
    terminal.show(hlap_export.doctor(), as_json=json)
