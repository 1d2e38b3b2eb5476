"""What the machine says of itself, from files and a command made up for the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hlap_export.bench.conditions import Watch, machine_state

TICKS = os.sysconf("SC_CLK_TCK")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_stat(root: Path, *, user: float, idle: float, stolen: float) -> None:
    """Seconds since boot, as /proc/stat counts them in ticks."""
    fields = [user, 0, 0, idle, 0, 0, 0, stolen, 0, 0]
    write(root / "proc/stat", "cpu  " + " ".join(str(int(seconds * TICKS)) for seconds in fields) + "\ncpu0 1 2 3\n")


def test_a_busy_neighbour_and_a_greedy_hypervisor_are_named_with_their_share(tmp_path: Path) -> None:
    write_stat(tmp_path, user=1000.0, idle=5000.0, stolen=10.0)
    watch = Watch(tmp_path)
    write_stat(tmp_path, user=1030.0, idle=5065.0, stolen=15.0)  # 100 s of CPU time went by
    found = watch.end()
    assert found.other_cpu_ratio == pytest.approx(0.30, abs=0.01)
    assert found.stolen_cpu_ratio == pytest.approx(0.05)
    assert [said.split(" (")[0] for said in found.disturbed] == [
        "other processes took 30% of the CPU time",
        "the hypervisor gave 5% of the CPU time to others",
    ]


def test_what_this_process_takes_is_not_the_others(tmp_path: Path) -> None:
    begun = os.times()
    write_stat(tmp_path, user=0.0, idle=0.0, stolen=0.0)
    watch = Watch(tmp_path)
    while (now := os.times()).user + now.system < begun.user + begun.system + 0.5:
        pass
    write_stat(tmp_path, user=0.5, idle=0.5, stolen=0.0)
    found = watch.end()
    assert found.other_cpu_ratio == pytest.approx(0.0, abs=0.02)
    assert found.disturbed == ()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_on_this_machine_a_process_of_someone_else_is_seen() -> None:
    watch = Watch()
    # Neither waited for before the end nor ours to count: as any other program on the machine.
    spinning = subprocess.Popen(
        [sys.executable, "-c", "import time\nend = time.time() + 1\nwhile time.time() < end: pass"]
    )
    try:
        while spinning.poll() is None and not _has_run(spinning.pid, seconds=0.4):
            pass
        found = watch.end()
    finally:
        spinning.kill()
        spinning.wait()
    assert found.other_cpu_ratio is not None
    assert found.other_cpu_ratio > 0.02


def _has_run(pid: int, *, seconds: float) -> bool:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS > seconds


def test_clock_governor_temperature_and_power_are_read_where_the_system_shows_them(tmp_path: Path) -> None:
    for core, clock in enumerate((2_000_000, 3_000_000)):
        write(tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{clock}\n")
    write(tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    for zone, millidegrees in enumerate((41_000, 63_500)):
        write(tmp_path / f"sys/class/thermal/thermal_zone{zone}/temp", f"{millidegrees}\n")
    energy = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    write(energy, "1000000\n")
    watch = Watch(tmp_path)
    write(energy, "5000000\n")
    found = watch.end()
    assert found.before.clock_mhz == 2500.0
    assert found.before.governor == "powersave"
    assert found.before.temperature_celsius == 63.5
    assert found.power_watts is not None
    assert found.power_watts > 4.0  # 4 J in much less than a second


def test_the_clock_is_read_from_cpuinfo_where_no_driver_shows_it(tmp_path: Path) -> None:
    write(tmp_path / "proc/cpuinfo", "processor : 0\ncpu MHz\t\t: 2600.5\n\nprocessor : 1\ncpu MHz\t\t: 2599.5\n")
    assert machine_state(tmp_path).clock_mhz == 2600.0


def test_a_machine_that_says_nothing_is_not_called_calm_or_disturbed(tmp_path: Path) -> None:
    found = Watch(tmp_path).end()
    assert (found.other_cpu_ratio, found.stolen_cpu_ratio, found.power_watts) == (None, None, None)
    assert (found.before.clock_mhz, found.before.governor, found.before.temperature_celsius) == (None, None, None)
    assert found.disturbed == ()


def install_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_what_nvidia_smi_knows_is_kept_and_what_it_does_not_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(
        tmp_path, "echo 'NVIDIA L4, 2040, 71.52, 58, 1024'; echo 'Old, [N/A], [N/A], 40, 0'", monkeypatch
    )
    first, second = machine_state(tmp_path).gpus
    assert (first.name, first.clock_mhz, first.power_watts, first.temperature_celsius) == ("NVIDIA L4", 2040, 71.52, 58)
    assert first.memory_used_bytes == 2**30
    assert (second.clock_mhz, second.power_watts, second.memory_used_bytes) == (None, None, 0)


def test_an_nvidia_smi_without_a_driver_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, "echo 'no driver' >&2; exit 9", monkeypatch)
    assert machine_state(tmp_path).gpus == ()
