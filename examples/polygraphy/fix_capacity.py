"""Write the graph of flavour `trt` with its cache's capacity as a number, which TensorRT's parser wants.

    python examples/polygraphy/fix_capacity.py onnx/model.onnx 64    # writes onnx/model.64.onnx; weights stay shared

`hlap-export build` does the same by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx


def fix_capacity(path: Path, capacity: int) -> Path:
    """Write the graph beside `path`, and return its path."""
    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "capacity":
                dim.dim_value = capacity
    fixed = path.with_suffix(f".{capacity}.onnx")
    onnx.save(model, fixed)
    return fixed


if __name__ == "__main__":
    print(fix_capacity(Path(sys.argv[1]), int(sys.argv[2])))
