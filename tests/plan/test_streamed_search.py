"""A search whose layers are loaded one at a time, and one that is killed, return what a search in one go returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hlap_export.families import FAMILIES
from hlap_export.plan import calibration
from hlap_export.plan.calibration import Windows
from hlap_export.plan.harp import search_harp
from hlap_export.plan.journal import JOURNAL
from hlap_export.plan.pruning_plan import TextWindows
from hlap_export.plan.states import StateFiles
from tests.memory import leave_memory
from tests.tiny import VOCAB_SIZE, save_tiny

TEXT = TextWindows(name="random ids", sha256="0" * 64, num_windows=5, window_length=25)
WINDOWS = Windows(ids=torch.randint(1, VOCAB_SIZE, (5, 25), generator=torch.Generator().manual_seed(2)), text=TEXT)
ALL_RESIDENT = 2**30
# Some layers stay, or none.
SOME_RESIDENT, NONE_RESIDENT = 450_000, 220_000


class KilledError(Exception):
    """Stands for a kill: nothing is tidied up."""


class KilledAfter:
    """Counts calls, and kills at one of them."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, *_: Any) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise KilledError


@pytest.fixture(autouse=True)
def _two_windows_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "TOKENS_AT_ONCE", 50)


def search(checkpoint: Path, work: Path, **rest: Any) -> str:
    return search_harp(checkpoint, WINDOWS, num_layers=2, work=work, **rest).to_json()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_streaming_gives_the_same_plan_to_the_last_digit(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_tiny(tmp_path / "dense", model_type)
    plans: set[str] = set()
    for memory in (ALL_RESIDENT, SOME_RESIDENT, NONE_RESIDENT):
        leave_memory(monkeypatch, {"cpu": memory})
        plans.add(search(checkpoint, tmp_path / f"work-{memory}"))
    assert len(plans) == 1


def test_a_load_serves_as_many_batches_as_memory_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 batches: one chunk for the dense run, one chunk for each batch where 12 streams are held."""
    checkpoint = save_tiny(tmp_path / "dense", "llama")
    leave_memory(monkeypatch, {"cpu": NONE_RESIDENT})
    opened: list[int] = []
    from hlap_export.checkpoint.decoder import Decoder

    read_layer = Decoder._read_layer
    monkeypatch.setattr(Decoder, "_read_layer", lambda self, index: opened.append(index) or read_layer(self, index))
    monkeypatch.setattr(Decoder, "batches_at_once", lambda self, batch, copies: 3 if copies == 1 else 1)
    search(checkpoint, tmp_path / "work")
    assert opened == [0, 1, 2, 3, *[3] * 3, *[2, 3] * 3, *[2, 3] * 3]


@pytest.mark.parametrize("memory", [ALL_RESIDENT, NONE_RESIDENT])
def test_a_search_killed_at_any_point_ends_with_the_same_plan(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_tiny(tmp_path / "dense", "qwen3")
    leave_memory(monkeypatch, {"cpu": memory})
    undisturbed = search(checkpoint, tmp_path / "undisturbed")
    reports = 0
    while True:
        work = tmp_path / f"work-{reports}"
        try:
            search(checkpoint, work, on_progress=KilledAfter(reports))
        except KilledError:
            assert search(checkpoint, work) == undisturbed
            reports += 3
        else:
            break
    assert reports > 20


def test_a_kill_while_states_are_written_costs_no_more_than_that_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_tiny(tmp_path / "dense", "gemma2")
    leave_memory(monkeypatch, {"cpu": NONE_RESIDENT})
    undisturbed = search(checkpoint, tmp_path / "undisturbed")
    write = StateFiles.write
    for writes in range(9):
        kill = KilledAfter(writes)

        def half_written(self: StateFiles, layer: int, rows: slice, h_NTD: torch.Tensor, kill: Any = kill) -> None:
            try:
                kill()
            except KilledError:
                write(self, layer, rows, torch.full_like(h_NTD, torch.nan))
                raise
            write(self, layer, rows, h_NTD)

        monkeypatch.setattr(StateFiles, "write", half_written)
        with pytest.raises(KilledError):
            search(checkpoint, tmp_path / f"work-{writes}")
        monkeypatch.setattr(StateFiles, "write", write)
        assert search(checkpoint, tmp_path / f"work-{writes}") == undisturbed


def test_what_is_finished_is_not_computed_again_and_progress_starts_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_tiny(tmp_path / "dense", "llama")
    leave_memory(monkeypatch, {"cpu": NONE_RESIDENT})
    seen: list[int] = []
    with pytest.raises(KilledError):
        search(checkpoint, tmp_path / "work", on_progress=KilledAfter(4))
    search(checkpoint, tmp_path / "work", on_progress=lambda done, total: seen.append(done))
    # Reports before the kill: nothing found, layer 0, layer 1, layer 2; the kill came before layer 3 was reported,
    # and layer 2 was the last checkpoint that can be read.
    assert seen[:3] == [0, 15, 20]
    again: list[int] = []
    search(checkpoint, tmp_path / "work", on_progress=lambda done, total: again.append(done))
    assert len(again) == 4  # the dense run, two layers, the alternatives: all found
    assert again[-1] == seen[-1]


def test_another_request_starts_from_nothing(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "dense", "llama")
    search(checkpoint, tmp_path / "work")
    other = Windows(ids=WINDOWS.ids.flip(0, 1), text=TEXT)
    steps: list[int] = []
    plan = search_harp(
        checkpoint, other, num_layers=2, work=tmp_path / "work", on_progress=lambda done, total: steps.append(done)
    )
    assert steps[0] == 0
    assert plan == search_harp(checkpoint, other, num_layers=2, work=tmp_path / "new")


def test_a_line_that_a_kill_cut_short_is_done_again(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "dense", "llama")
    undisturbed = search(checkpoint, tmp_path / "work")
    journal = tmp_path / "work" / JOURNAL
    complete = journal.read_bytes()
    for cut in (1, 30, len(complete) // 2, len(complete) - 20):
        journal.write_bytes(complete[:-cut])
        assert search(checkpoint, tmp_path / "work") == undisturbed
        assert journal.read_bytes().count(b"\n") == complete.count(b"\n")
