"""What else happens on the machine while it is timed: other processes, the hypervisor, clocks, power, temperature.

The load average can't tell this process from others and lags by a minute. The kernel's own counters of CPU time can:
what all processes took, less what this one and its children did, is what the others took.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hlap_export.bench.report import Conditions, GpuState, MachineState
from hlap_export.machine import ROOT, memory_available_bytes

# An idle machine's own services stay below.
MAX_OTHER_CPU_RATIO = 0.05
MAX_STOLEN_CPU_RATIO = 0.01
GPU_FIELDS = ("name", "clocks.sm", "power.draw", "temperature.gpu", "memory.used")
MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counters:
    """Counts that only grow, in seconds of CPU time and joules; None where the system doesn't say."""

    seconds: float
    all_cpu: float | None
    busy: float | None
    stolen: float | None
    own: float
    joules: float | None


class Watch:
    """Begins when it is made; `end` tells what happened since.

    Args:
        root: where /proc and /sys lie.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._before = machine_state(root)
        self._began = _counters(root)

    def end(self) -> Conditions:
        """What happened since this watch was made."""
        began, ended = self._began, _counters(self._root)
        everything = _difference(began.all_cpu, ended.all_cpu)
        busy, stolen = _difference(began.busy, ended.busy), _difference(began.stolen, ended.stolen)
        others = stolen_ratio = None
        if everything and busy is not None and stolen is not None:
            others = min(1.0, max(0.0, busy - (ended.own - began.own)) / everything)
            stolen_ratio = stolen / everything
        joules = _difference(began.joules, ended.joules)
        return Conditions(
            before=self._before,
            after=machine_state(self._root),
            other_cpu_ratio=others,
            stolen_cpu_ratio=stolen_ratio,
            # The counter starts again at zero now and then: no power is said of such a bench.
            power_watts=None if joules is None or joules < 0 else joules / max(ended.seconds - began.seconds, 1e-9),
            disturbed=_disturbances(others, stolen_ratio),
        )


def machine_state(root: Path = ROOT) -> MachineState:
    """Read what the system says of itself now."""
    return MachineState(
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        clock_mhz=_clock_mhz(root),
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        temperature_celsius=max(
            (int(value) / 1e3 for value in _texts(root / "sys/class/thermal", "thermal_zone*/temp")), default=None
        ),
        memory_free_bytes=memory_available_bytes(root),
        gpus=_gpus(),
    )


def _disturbances(others: float | None, stolen: float | None) -> tuple[str, ...]:
    found: list[str] = []
    if others is not None and others > MAX_OTHER_CPU_RATIO:
        found.append(f"other processes took {others:.0%} of the CPU time (limit {MAX_OTHER_CPU_RATIO:.0%})")
    if stolen is not None and stolen > MAX_STOLEN_CPU_RATIO:
        found.append(f"the hypervisor gave {stolen:.0%} of the CPU time to others (limit {MAX_STOLEN_CPU_RATIO:.0%})")
    return tuple(found)


def _counters(root: Path) -> _Counters:
    times = os.times()
    all_cpu = busy = stolen = None
    stat = _text(root / "proc/stat")
    if stat is not None:
        # user nice system idle iowait irq softirq steal; what guests take is counted under user already
        fields = [int(field) / os.sysconf("SC_CLK_TCK") for field in stat.splitlines()[0].split()[1:9]]
        all_cpu, stolen = sum(fields), fields[7]
        busy = all_cpu - fields[3] - fields[4] - stolen
    energies = [int(value) / 1e6 for value in _texts(root / "sys/class/powercap", "*-rapl:[0-9]/energy_uj")]
    return _Counters(
        seconds=time.perf_counter(),
        all_cpu=all_cpu,
        busy=busy,
        stolen=stolen,
        own=times.user + times.system + times.children_user + times.children_system,
        joules=sum(energies) if energies else None,
    )


def _clock_mhz(root: Path) -> float | None:
    """Mean clock of the cores: what the driver of the clock says, else what /proc/cpuinfo shows."""
    clocks = [
        int(value) / 1e3 for value in _texts(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq")
    ]
    if not clocks:
        lines = (_text(root / "proc/cpuinfo") or "").splitlines()
        clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def _gpus() -> tuple[GpuState, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()  # it is installed where there is no driver, too
    return tuple(_gpu(row) for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True))


def _gpu(row: Sequence[str]) -> GpuState:
    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None  # "[N/A]"

    used = number(row[4])
    return GpuState(
        name=row[0],
        clock_mhz=number(row[1]),
        power_watts=number(row[2]),
        temperature_celsius=number(row[3]),
        memory_used_bytes=None if used is None else int(used * MIB),
    )


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _texts(folder: Path, pattern: str) -> list[str]:
    return [text for path in sorted(folder.glob(pattern)) if (text := _text(path)) is not None]


def _text(path: Path) -> str | None:
    """A file's content; None where it isn't there, or not for this user."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
