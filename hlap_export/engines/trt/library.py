"""The two libraries: which one is here, what it can do on this machine, and what it says while it works.

All code is checked against `typings/tensorrt` (generated from TensorRT 11's bindings); TensorRT-RTX has the same names
but for those in `rtx.py`, and builds engines without a GPU, so that its tests run everywhere.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hlap_export.engines.base import Unavailable
from hlap_export.machine import count_nvidia_gpus

if TYPE_CHECKING:
    import tensorrt

NO_GPU_FIX = "use a machine with an NVIDIA GPU and its driver"


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """One of the two.

    Attributes:
        name: what `--engine` calls it.
        product: its name in reports.
        module: what Python imports; never without a look at the driver first where that is needed.
        extra: of this package, which brings it.
        builds_without_gpu: whether its compiler works on any machine.
        oldest: version that has all that is used here.
    """

    name: str
    product: str
    module: str
    extra: str
    builds_without_gpu: bool
    oldest: tuple[int, int]

    def load(self):
        """The module, whose type can't be written down: the checker infers it."""
        if TYPE_CHECKING:
            import tensorrt

            return tensorrt
        return importlib.import_module(self.module)

    @property
    def version(self) -> str:
        """As the library says it: "1.7.1.116"."""
        return str(self.load().__version__)

    @property
    def compiler(self) -> str:
        """Product and version, for reports."""
        return f"{self.product} {self.version}"

    def why_unavailable(self) -> Unavailable | None:
        """Why it can't build here; None if it can."""
        if importlib.util.find_spec(self.module) is None:
            return Unavailable(found=f"{self.module} isn't installed", fix=self._install)
        # Asked before the import: without a driver TensorRT's own objects can take the process down.
        if not self.builds_without_gpu and (problem := why_no_gpu()):
            return problem
        try:
            self.load()
        except ImportError as error:
            return Unavailable(found=f"{self.module} fails to import: {error}", fix=self._install)
        if tuple(map(int, self.version.split(".")[:2])) < self.oldest:
            oldest = ".".join(map(str, self.oldest))
            return Unavailable(found=f"{self.compiler} is older than {oldest}", fix=f"{self._install} --upgrade")
        return None

    def why_not_runnable(self) -> Unavailable | None:
        """Why it can't run here what it built; None if it can. Asked only where it can build."""
        if problem := why_no_gpu():
            return problem
        if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
            return Unavailable(found="cuda-bindings isn't installed", fix=self._install)
        return None

    @property
    def _install(self) -> str:
        return f"pip install 'hlap-export[{self.extra}]'"


def why_no_gpu() -> Unavailable | None:
    """Why no engine of NVIDIA's can run here; None if one can."""
    count, reason = count_nvidia_gpus()
    return None if count else Unavailable(found=reason, fix=NO_GPU_FIX)


TENSORRT = Library(
    name="tensorrt",
    product="TensorRT",
    module="tensorrt",
    extra="trt",
    builds_without_gpu=False,
    oldest=(10, 15),  # imports TensorScatter and RotaryEmbedding
)
TENSORRT_RTX = Library(
    name="tensorrt-rtx",
    product="TensorRT-RTX",
    module="tensorrt_rtx",
    extra="rtx",
    builds_without_gpu=True,
    oldest=(1, 7),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """What the library said, as far as it is of use afterwards.

    Attributes:
        logger: to pass to the library's objects, which must not outlive it.
        problems: errors, in order.
        warnings: likewise.
        notes: figures that it tells on the way ("Total Weights Memory: 130528 bytes").
        layers: the finished engine's layers, one a line, where the library lists them.
    """

    logger: tensorrt.ILogger
    problems: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    layers: list[str] = field(default_factory=list[str])


LAYERS = "Layers:\n"
# The graph's token inputs are int64, as everywhere.
EXPECTED_WARNING = "has Int64 binding"


def open_log(library: Library) -> Log:
    """A log that is empty yet; nothing is printed."""
    trt = library.load()

    class Logger(trt.ILogger):
        """Keeps what matters of thousands of messages."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            level = int(severity)
            if level <= int(trt.ILogger.ERROR):
                log.problems.append(msg)
            elif level == int(trt.ILogger.WARNING):
                if EXPECTED_WARNING not in msg and msg not in log.warnings:
                    log.warnings.append(msg)
            elif level == int(trt.ILogger.INFO):
                log.notes.append(msg)
            elif msg.startswith(LAYERS):
                log.layers.extend(msg.splitlines()[1:])

    log = Log(logger=Logger())
    return log
