"""What the compiler measured in earlier builds, so that it needn't time the same kernels again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hlap_export.engines.trt.library import TENSORRT, Library, why_no_gpu

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingCache:
    """A file of the user's, one for each version of TensorRT; None for TensorRT-RTX, which times nothing to build."""

    path: Path | None

    @classmethod
    def of(cls, library: Library) -> TimingCache:
        """The cache for a library on this machine."""
        if library != TENSORRT or why_no_gpu() is not None:
            return cls(path=None)
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(path=root / "hlap-export" / f"{library.name}-{library.version}.timing")

    def load_into(self, config: tensorrt.IBuilderConfig) -> None:
        """Let a build use what is known; what another GPU measured is ignored."""
        if self.path is not None:
            known = self.path.read_bytes() if self.path.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(known), True)

    def keep_from(self, config: tensorrt.IBuilderConfig) -> None:
        """Write what a build knows now, whole or not at all."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            partial.write_bytes(memoryview(config.get_timing_cache().serialize()))
            partial.replace(self.path)
