"""Draw loss.csv: training and held-out loss in nats per token against tokens seen.

    python -m benchmarks.reference_model.plot_loss

It needs matplotlib, which the package itself doesn't.
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent


def main() -> None:
    with (FOLDER / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(7, 3.5), dpi=110)
    tokens = [int(row["tokens"]) / 1e6 for row in rows]
    axes.plot(tokens, [float(row["training_loss_nats"]) for row in rows], color="0.7", label="training batch")
    held_out = [row for row in rows if row["evaluation_loss_nats"]]
    axes.plot(
        [int(row["tokens"]) / 1e6 for row in held_out],
        [float(row["evaluation_loss_nats"]) for row in held_out],
        color="tab:blue",
        marker=".",
        label="held-out (evaluation.txt)",
    )
    axes.set(xlabel="training tokens (millions)", ylabel="nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(FOLDER / "loss.png")


if __name__ == "__main__":
    main()
