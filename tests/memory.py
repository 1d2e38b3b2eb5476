"""Pretend that a device has so much memory left, to make layers of a tiny model stay out of it."""

from __future__ import annotations

import pytest

from hlap_export.checkpoint import decoder
from hlap_export.checkpoint.placement import Device


def leave_memory(monkeypatch: pytest.MonkeyPatch, memory: dict[Device, int]) -> None:
    """From now on, decoders find this memory and take none for their own work."""
    monkeypatch.setattr(decoder, "memory_of_devices", lambda max_memory: memory)
    monkeypatch.setattr(decoder, "working_bytes", lambda *_, **__: 0)
