"""What steps are said to need: followed by hand for the 8B shape, and held against real processes for a small one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hlap_export.budget import (
    Model,
    Needs,
    SearchSize,
    bench_needs,
    build_needs,
    evaluate_needs,
    export_needs,
    generate_needs,
    prune_needs,
    run_needs,
    search_needs,
    verify_needs,
)
from hlap_export.checkpoint import layout_of, read_layout
from hlap_export.errors import BudgetError
from hlap_export.pipeline import run
from hlap_export.plan.pruning_plan import dense_plan, linear_of, plan_of_alphas
from hlap_export.prune import prune
from hlap_export.recipe import Recipe
from tests.plan.test_accounting import LLAMA_3_1_8B
from tests.tiny_run import TINY_RECIPE, save_tiny_with_tokenizer

GIB = 2**30
LAYOUT = layout_of(LLAMA_3_1_8B)
DENSE = Model(layout=LAYOUT, dtype="bfloat16")
SIZE = SearchSize(num_layers=8, windows=64, window_length=256)


def amount(needs: Needs, kind: str) -> float:
    return sum(work.amount for work in needs.work if work.kind == kind)


def test_pruning_writes_what_the_plan_leaves() -> None:
    skipped = prune_needs(DENSE, plan_of_alphas(LAYOUT, {31: 0.0}, method="one"))
    nothing = prune_needs(DENSE, dense_plan(LAYOUT))
    assert nothing.disk_bytes == 16_060_522_496
    assert nothing.disk_bytes - skipped.disk_bytes == 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024)


def test_pruning_holds_one_fitted_weight_at_a_time() -> None:
    plan = dense_plan(LAYOUT)
    last = linear_of("full", LAYOUT), linear_of("output", LAYOUT)
    fitted = prune_needs(DENSE, plan.model_copy(update={"attention": (*plan.attention[:-2], *last)}))
    # [4096, 4096] in float32, and in bfloat16.
    assert fitted.memory_bytes - prune_needs(DENSE, plan).memory_bytes == 4096 * 4096 * (4 + 2)


def test_streaming_steps_stay_below_three_gibibytes_whatever_the_size() -> None:
    larger = layout_of(LLAMA_3_1_8B | {"hidden_size": 8192, "num_attention_heads": 64, "num_hidden_layers": 80})
    for layout in (LAYOUT, larger):
        model = Model(layout=layout, dtype="bfloat16")
        alphas = dict.fromkeys(range(24, 32), 0.5)
        for needs in (
            prune_needs(model, plan_of_alphas(layout, alphas, method="x")),
            export_needs(model, "int4", flavour="ort"),
        ):
            assert needs.memory_bytes < 3 * GIB


def test_engines_are_held_whole_and_two_at_once_only_where_they_are_timed() -> None:
    graph = Model(layout=LAYOUT, dtype="float32")
    weights = 4 * 8_030_261_248
    lengths = {"prompt_lengths": (64,), "context_lengths": (64,)}
    assert weights < build_needs(graph).memory_bytes < 1.4 * weights
    assert (
        weights < verify_needs(DENSE, graph, windows=2, window_length=64, room_bytes=2**40).memory_bytes < 1.4 * weights
    )
    assert 2 * weights < bench_needs(graph, graph, **lengths).memory_bytes < 2.8 * weights


def test_what_answers_or_writes_holds_one_engine_its_cache_and_logits() -> None:
    int4, float32 = (Model(layout=LAYOUT, dtype=dtype) for dtype in ("int4", "float32"))
    weights = 4 * 8_030_261_248
    for needs in (evaluate_needs([int4, float32], batch_size=8), generate_needs(float32, max_new_tokens=256)):
        assert weights < needs.memory_bytes < 1.5 * weights
    # 7 more texts of 1,024 tokens of 256 KiB; their logits are as many as before, two texts at a time.
    one, eight = (evaluate_needs([float32], batch_size=rows).memory_bytes for rows in (1, 8))
    logits = 2**30 - 1024 * 128_256 * 4
    assert eight - one == 2 * (7 * 1024 * 256 * 2**10 + logits)


def test_the_search_takes_the_memory_that_it_is_given_and_no_more() -> None:
    whole = search_needs(DENSE, SIZE, room_bytes=64 * GIB)
    half = search_needs(DENSE, SIZE, room_bytes=16 * GIB)
    little = search_needs(DENSE, SIZE, room_bytes=4 * GIB)
    assert whole.memory_bytes > 4 * (8_030_261_248 - 128256 * 4096)
    assert 8 * GIB < half.memory_bytes <= 16 * GIB
    assert 2 * GIB < little.memory_bytes <= 4 * GIB
    assert amount(whole, "read") < amount(half, "read") < amount(little, "read")
    assert amount(whole, "read") == 2 * (32 * (2 * 4096 * 5120 + 3 * 14336 * 4096 + 8192) + 128256 * 4096)


def test_verify_keeps_no_more_of_its_reference_than_fits() -> None:
    int4 = Model(layout=LAYOUT, dtype="int4")
    size = {"windows": 2, "window_length": 64}
    whole = verify_needs(DENSE, int4, **size, room_bytes=64 * GIB).memory_bytes
    assert 4 * 8_030_261_248 < whole < 32 * GIB
    assert 8 * GIB < verify_needs(DENSE, int4, **size, room_bytes=12 * GIB).memory_bytes <= 12 * GIB
    assert verify_needs(DENSE, int4, **size, room_bytes=GIB).memory_bytes > GIB


def test_a_search_that_fits_nowhere_says_what_it_needs_at_least() -> None:
    assert search_needs(DENSE, SIZE, room_bytes=GIB).memory_bytes > GIB


def test_the_searchs_multiplications_are_those_of_its_layers() -> None:
    """One layer, one alpha more or less: the difference is what that layer's MLPs, values and heads multiply."""
    mlp, value_output, head = 3 * 14336 * 4096, 4096 * 4096 + 1024 * 4096, 128256 * 4096
    one, two = (
        amount(
            search_needs(DENSE, SearchSize(num_layers=n, windows=64, window_length=256), room_bytes=None), "multiply"
        )
        for n in (1, 2)
    )
    # The second layer: its own attention once, 11 x (both MLPs, the upper layer's attention, the head); and both
    # closing passes (all ones, all dropped) run one layer more.
    second = value_output + 11 * (2 * mlp + value_output + head) + 2 * (mlp + value_output)
    assert two - one == pytest.approx(64 * 255 * second)


def test_a_whole_run_lists_every_step_in_order() -> None:
    steps = [needs.step for needs in run_needs(DENSE, Recipe(), room_bytes=24 * GIB)]
    exports = ["export dense", "export pruned", "build dense", "build pruned"]
    assert steps == ["plan", "prune", *exports, "verify", "bench"]


def peak_rss_bytes(*arguments: str | Path) -> int:
    """Of one of our verbs in a process of its own, started by a small one: a parent's memory would count as well."""
    code = "import os, sys; pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[1:]]); " + (
        "_, status, usage = os.wait4(pid, 0); print('peak', status, usage.ru_maxrss * 1024)"
    )
    command = [sys.executable, "-c", code, "-m", "hlap_export.cli", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = re.search(r"peak (\d+) (\d+)", done.stdout)
    assert found is not None
    assert found.group(1) == "0", done.stderr
    return int(found.group(2))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts bytes elsewhere")
def test_what_is_predicted_for_small_models_is_what_their_processes_take(tmp_path: Path) -> None:
    dense = save_tiny_with_tokenizer(tmp_path / "dense")
    layout = read_layout(dense)
    model, plan = Model(layout=layout, dtype="float32"), plan_of_alphas(layout, {3: 0.5}, method="one")
    (tmp_path / "plan.json").write_text(plan.to_json())
    prune(dense, plan, tmp_path / "pruned")
    pruned = peak_rss_bytes("prune", dense, "--plan", tmp_path / "plan.json", "--out", tmp_path / "again")
    exported = peak_rss_bytes("export", tmp_path / "pruned", "--out", tmp_path / "onnx")
    assert 0.6 < pruned / prune_needs(model, plan).memory_bytes < 1.1
    assert 0.6 < exported / export_needs(model, "float32").memory_bytes < 1.1


def test_a_run_that_has_not_the_memory_stops_before_it_leaves_anything(tmp_path: Path) -> None:
    model = save_tiny_with_tokenizer(tmp_path / "model")
    with pytest.raises(BudgetError, match="as --max-memory says"):
        run(model, tmp_path / "out", recipe=TINY_RECIPE, max_memory=2**20)
    assert not (tmp_path / "out").exists()


def test_rows_that_are_timed_together_each_have_a_cache_and_take_their_time() -> None:
    graph = Model(layout=LAYOUT, dtype="float32")
    lengths = {"prompt_lengths": (64,), "context_lengths": (1024,)}
    one, both = (bench_needs(graph, graph, **lengths, batches=batches) for batches in ((1,), (1, 8)))
    # Two engines, each with its cache and the one that a step writes: 7 more rows of 1,024 tokens of 256 KiB.
    caches = 2 * 2 * 7 * 1024 * 256 * 2**10
    assert caches <= both.memory_bytes - one.memory_bytes <= 1.2 * caches
    multiplications = [sum(work.amount for work in needs.work if work.kind == "multiply") for needs in (one, both)]
    assert multiplications[1] == 9 * multiplications[0]
