"""The golden structures in `graphs/`; `python -m tests.export.golden` (make graphs) rewrites them."""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

from hlap_export.export.structure import describe_file
from hlap_export.families import FAMILIES
from tests.export.exports import GOLDEN_FLAVOURS, GOLDEN_PLANS, TinyExports

GRAPHS = Path(__file__).parents[2] / "graphs"


def golden_file(family: str, plan: str, flavour: str) -> Path:
    return GRAPHS / family / f"{plan}.{flavour}.txt"


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        exports = TinyExports(Path(root))
        for family, plan, flavour in product(FAMILIES, GOLDEN_PLANS, GOLDEN_FLAVOURS):
            path = golden_file(family, plan, flavour)
            path.parent.mkdir(parents=True, exist_ok=True)
            exported = exports.get(family, plan, GOLDEN_FLAVOURS[flavour], flavour)
            path.write_text(describe_file(exported.model_file), encoding="utf-8")
            print(path.relative_to(GRAPHS.parent))


if __name__ == "__main__":
    main()
