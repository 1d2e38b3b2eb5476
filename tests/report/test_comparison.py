from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hlap_export.errors import ArtefactError
from hlap_export.report.compare_html import html_comparison
from hlap_export.report.compare_screen import render_comparison
from hlap_export.report.comparison import Comparison, compare, pareto_front
from hlap_export.report.summary import Origin, Summary
from tests.report.browser import open_page
from tests.report.sample import full_summary, timing


def save_run(folder: Path, *, pruned_ms: float, perplexity: float, **changes: Any) -> Path:
    """A run whose only decode step takes `pruned_ms`, 2 ms in the dense engine of perplexity 10."""
    base = full_summary()
    row = next(row for row in base.latency if row.phase == "decode")
    speedup = 2.0 / pruned_ms
    latency = row.model_copy(
        update={
            "dense": timing(2.0),
            "pruned": timing(pruned_ms),
            "speedup": speedup,
            "speedup_low": speedup - 0.1,
            "speedup_high": speedup + 0.1,
        }
    )
    held_out = base.perplexities[-1].model_copy(
        update={
            "dense": 10.0,
            "pruned": perplexity,
            "increase_ratio_low": perplexity / 10 - 1.01,
            "increase_ratio_high": perplexity / 10 - 0.99,
        }
    )
    update = {"latency": (latency,), "perplexities": (*base.perplexities[:-1], held_out)} | changes
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(base.model_copy(update=update).model_dump_json())
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Of three runs the last is slower and worse than the second."""
    return [
        save_run(tmp_path / "few", pruned_ms=1.8, perplexity=10.2),
        save_run(tmp_path / "many", pruned_ms=1.4, perplexity=11.0),
        save_run(tmp_path / "clumsy", pruned_ms=1.5, perplexity=12.0),
    ]


def by_run(compared: Comparison) -> dict[str, Any]:
    """The first step's places, by run; the dense engine under "dense"."""
    names = {entry.number: entry.run if entry.kind == "pruned" else "dense" for entry in compared.entries}
    return {names[place.number]: place for place in compared.steps[0].places}


def test_a_point_is_on_the_front_unless_another_is_as_good_in_both_and_better_in_one() -> None:
    assert pareto_front([(1, 5), (2, 3), (3, 3), (3, 2), (4, 4), (2, 3), None]) == {0, 1, 3, 5}
    assert pareto_front([None, (9, 9)]) == {1}


def test_runs_of_one_machine_and_text_are_compared_in_absolute_numbers(runs: list[Path]) -> None:
    compared = compare(runs)
    assert (compared.time_in, compared.loss_in) == ("ms", "perplexity")
    places = by_run(compared)
    assert {name: (place.time, place.loss) for name, place in places.items()} == {
        "dense": (2.0, 10.0),
        "few": (1.8, 10.2),
        "many": (1.4, 11.0),
        "clumsy": (1.5, 12.0),
    }
    assert {name for name, place in places.items() if place.on_front} == {"dense", "few", "many"}
    assert places["many"].loss_low == pytest.approx(10.9)
    assert places["many"].time_high == pytest.approx(1.02 * 1.4)


def test_a_run_on_another_machine_makes_times_relative_and_says_so(runs: list[Path], tmp_path: Path) -> None:
    other = save_run(tmp_path / "laptop", pruned_ms=1.0, perplexity=10.5, machine={"cpu": "Other CPU"})
    compared = compare([*runs, other])
    assert (compared.time_in, compared.loss_in) == ("dense", "perplexity")
    assert "laptop and few differ in machine (Other CPU, 2 threads, no GPU; Example CPU" in compared.notes[0]
    place = by_run(compared)["laptop"]
    assert (place.time, place.time_low, place.time_high) == pytest.approx((1 / 2.0, 1 / 2.1, 1 / 1.9))
    assert by_run(compared)["dense"].time == 1


def verified_with(**digests: str) -> tuple[Origin, ...]:
    return (Origin(name="verify.json", digest="4" * 64, made_from=digests),)


def test_the_same_model_and_text_under_other_names_are_the_same(runs: list[Path], tmp_path: Path) -> None:
    renamed = save_run(tmp_path / "renamed", pruned_ms=1.0, perplexity=10.5, model="a copy of it")
    compared = compare([*runs, renamed])
    assert (compared.time_in, compared.loss_in) == ("ms", "perplexity")
    assert not [note for note in compared.notes if "differ" in note]
    assert [entry.kind for entry in compared.entries] == ["dense", *["pruned"] * 4]


def test_noise_and_a_busy_machine_are_told_apart(tmp_path: Path) -> None:
    row = full_summary().latency[-1].model_copy(update={"phase": "decode", "noise": None})
    calm, busy = (
        save_run(tmp_path / name, pruned_ms=1.8, perplexity=10.2, latency=(row,), disturbed=disturbed)
        for name, disturbed in (("calm", ()), ("busy", ("other processes took 12 %",)))
    )
    assert compare([calm]).notes == ()
    assert compare([calm, busy]).notes == ("the machine was busy while it timed busy",)


def test_another_text_of_the_same_name_is_another(runs: list[Path], tmp_path: Path) -> None:
    origins = verified_with(model="a" * 64, text="c" * 64)
    other = save_run(tmp_path / "other", pruned_ms=1.0, perplexity=10.5, origins=origins)
    assert compare([*runs, other]).loss_in == "increase_ratio"
    assert compare([other, *runs]).loss_in == "increase_ratio"


def test_another_model_makes_perplexities_changes_and_one_dense_engine_stands_for_all(
    runs: list[Path], tmp_path: Path
) -> None:
    machine = {"cpu": "Other CPU"}
    origins = verified_with(model="c" * 64, text="b" * 64)
    other = save_run(tmp_path / "other", pruned_ms=1.0, perplexity=10.5, machine=machine, origins=origins)
    compared = compare([*runs, other])
    assert compared.loss_in == "increase_ratio"
    assert f"(reference model {'c' * 12}, " in compared.notes[1]
    assert by_run(compared)["other"].loss == pytest.approx(0.05)
    assert [entry.kind for entry in compared.entries] == ["dense", *["pruned"] * 4]


def test_a_run_that_failed_its_checks_is_never_on_the_front(runs: list[Path], tmp_path: Path) -> None:
    wrong = tuple(check.model_copy(update={"passed": False}) for check in full_summary().checks)
    broken = save_run(tmp_path / "broken", pruned_ms=0.1, perplexity=1.0, checks=wrong)
    for order in ([*runs, broken], [broken, *runs]):
        compared = compare(order)
        assert {name for name, place in by_run(compared).items() if place.on_front} == {"dense", "few", "many"}
        assert {entry.run for entry in compared.entries if not entry.passed} == {"broken"}
        assert all(entry.passed for entry in compared.entries if entry.kind == "dense")


def test_the_longest_step_that_all_runs_timed_is_compared(runs: list[Path], tmp_path: Path) -> None:
    longer = tuple(row for row in full_summary().latency if row.phase == "decode")
    compared = compare([save_run(tmp_path / "long", pruned_ms=1.0, perplexity=10.5, latency=longer), *runs])
    assert [(step.phase, step.num_tokens, step.batch) for step in compared.steps] == [("decode", 512, 1)]


def test_runs_without_a_common_step_are_refused(runs: list[Path], tmp_path: Path) -> None:
    prefill = tuple(row for row in full_summary().latency if row.phase == "prefill")
    with pytest.raises(ArtefactError, match="timed a length in common"):
        compare([*runs, save_run(tmp_path / "prefill", pruned_ms=1.0, perplexity=10.5, latency=prefill)])


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no summary\.json.*--resume"):
        compare([tmp_path])
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ArtefactError, match="expected a summary of format"):
        compare([tmp_path])


def test_runs_of_the_same_name_are_called_by_their_paths(tmp_path: Path) -> None:
    folders = [save_run(tmp_path / place / "run", pruned_ms=1.5, perplexity=11.0) for place in ("a", "b")]
    assert [entry.run for entry in compare(folders).entries[1:]] == [str(folder) for folder in folders]


def test_a_name_in_brackets_is_shown_as_it_is(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=140)
    console.print(render_comparison(compare([save_run(tmp_path / "[bold]run", pruned_ms=1.8, perplexity=10.2)])))
    assert "[bold]run" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_screen_stars_the_front_and_fits(runs: list[Path]) -> None:
    console = Console(file=StringIO(), width=100)
    console.print(render_comparison(compare(runs)))
    lines = {line.split()[1]: line for line in console.file.getvalue().splitlines() if re.match(r" *\d ", line)}  # type: ignore[attr-defined]
    assert "1.40 ms ★" in lines["many"]
    assert "+10.0 %" in lines["many"]
    assert "1.50 ms  " in lines["clumsy"]


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("changes", [{}, {"model": "other", "machine": {}}], ids=["absolute", "relative"])
def test_a_browser_draws_the_comparison_within_the_page(
    runs: list[Path], changes: dict[str, Any], width: int, tmp_path: Path
) -> None:
    other = save_run(tmp_path / "other", pruned_ms=1.0, perplexity=10.5, **changes)
    seen = open_page(html_comparison(compare([*runs, other])), tmp_path, width=width)
    assert seen.complaints == []
    assert seen.scroll_width <= width
    assert len(seen.pictures) == 1
    assert seen.pictures[0]["width"] > 300
    assert (seen.pictures[0]["overlapping"], seen.pictures[0]["outside"]) == ([], [])


def test_every_stored_number_comes_back() -> None:
    assert Summary.model_validate_json(full_summary().model_dump_json()) == full_summary()
