"""From arguments to an exit code: errors become one paragraph each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from hlap_export import terminal
from hlap_export.cli.app import app
from hlap_export.errors import HlapError

GOES_ON = "the same command, for `run` with --resume, goes on from what is finished"
UNEXPECTED = 70  # sysexits.h: internal software error; 1 would say that a check failed


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--debug" in given
    if not show_traceback:
        _quiet_libraries()
    try:
        app(args=given, prog_name="hlap-export")
    except SystemExit as leaving:
        if leaving.code == 130:
            terminal.print_error("interrupted" if "generate" in given[:1] else f"interrupted: {GOES_ON}")
        raise
    except Exception as error:
        if show_traceback:
            raise
        terminal.print_error(_paragraph(error))
        sys.exit(error.exit_code if isinstance(error, HlapError) else UNEXPECTED)
    sys.exit(0)


def _quiet_libraries() -> None:
    """Keep transformers' own bars and warnings off the screen; read by it when it is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _paragraph(error: Exception) -> str:
    """What went wrong, for a person."""
    if isinstance(error, HlapError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory. Fix: close other programs, or take a smaller model, dtype or length"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Fix: check the path, its permissions and the disk's free space"
    return f"{type(error).__name__}: {error}. This is a bug, or a case nobody thought of: run with --debug to see where"
