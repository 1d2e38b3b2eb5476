"""Errors that instruct: where it went wrong, what was expected, what was found, what to do.

The command line prints the paragraph without a traceback and leaves with the class's exit code:
1 a check failed, 2 wrong usage or input, 3 a backend is missing.
"""

from __future__ import annotations


class HlapError(Exception):
    """Base of every error that a user can cause or cure.

    Args:
        where: the file, layer, tensor, option or stage concerned.
        expected: what would have been right.
        found: what was there instead.
        fix: what to do about it.
    """

    exit_code = 2

    def __init__(self, *, where: str, expected: str, found: str, fix: str) -> None:
        self.where = where
        self.expected = expected
        self.found = found
        self.fix = fix
        super().__init__(f"{where}: expected {expected}, found {found}. Fix: {fix}")


class CheckpointError(HlapError):
    """The input model can't be read, is of an unsupported family, or contradicts its own config."""


class PlanError(HlapError):
    """The pruning plan is malformed, impossible, or meant for another model."""


class TextError(HlapError):
    """Calibration or evaluation text is missing, empty or too short."""


class RecipeError(HlapError):
    """A recipe or an option has an unknown key or a value out of range."""


class OutputError(HlapError):
    """The output can't be written: not empty, not allowed, or the disk is full."""


class BudgetError(HlapError):
    """A step needs more memory or disk than the machine has, or than --max-memory allows."""


class ArtefactError(HlapError):
    """A folder isn't the artefact that this verb takes, or its files don't match its manifest."""


class ExportError(HlapError):
    """The model can't be expressed in the requested flavour or dtype."""


class BundleError(HlapError):
    """The serving stack can't hold the engine, or computes something else with it."""


class CheckFailed(HlapError):  # noqa: N818 - an outcome of a run, told as such
    """A parity or quality check ran and failed: exit code 1."""

    exit_code = 1


class BackendMissing(HlapError):  # noqa: N818 - likewise
    """The engine asked for isn't installed or can't run on this machine: exit code 3."""

    exit_code = 3
