"""Print as JSON what the budget predicts for pruning and exporting a checkpoint, and what the probe measured.

    python -m benchmarks.large_models.predicted CHECKPOINT PLAN WORK DTYPE

A process of its own, because reading a layout loads transformers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hlap_export.budget import Model, Needs, Speeds, export_needs, model_at, prune_needs
from hlap_export.budget.needs import in_words, work_in_words
from hlap_export.budget.probe import measure_speeds
from hlap_export.checkpoint import layout_of, read_config
from hlap_export.plan import load_plan
from hlap_export.prune.config import pruned_config


def as_facts(needs: Needs, speeds: Speeds) -> dict[str, Any]:
    """A step's needs as JSON values, the arithmetic beside the sums."""
    return {
        "memory_bytes": needs.memory_bytes,
        "memory": in_words(needs.memory),
        "disk_bytes": needs.disk_bytes,
        "disk": in_words(needs.disk),
        "seconds": round(needs.seconds(speeds), 1),
        "time": work_in_words(needs.work, speeds),
    }


def main() -> None:
    checkpoint, plan_file, work, dtype = sys.argv[1:]
    model, plan = model_at(Path(checkpoint)), load_plan(Path(plan_file))
    pruned = Model(
        layout=layout_of(pruned_config(read_config(Path(checkpoint)), plan, model.layout)), dtype=model.dtype
    )
    speeds = measure_speeds(Path(work), multiplies=False)
    steps = {"prune": prune_needs(model, plan), "export": export_needs(pruned, dtype)}
    facts = {name: as_facts(needs, speeds) for name, needs in steps.items()}
    probe = {"read_bytes_per_second": speeds.read_bytes, "write_bytes_per_second": speeds.write_bytes}
    print(json.dumps(facts | {"probe": probe}))


if __name__ == "__main__":
    main()
