"""Cosines and sines of every position, computed at export."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from hlap_export.passes.nodes import initializer, required

POSITIONS = "position_ids"


class TabulateRotary(ir.passes.InPlacePass):
    """The angles of `hlap::RotaryEmbedding(x, cos, sin)` become tables over positions, [positions, E / 2] each.

    Whatever makes cos and sin of the position ids (frequencies of any kind, a scale) is evaluated once for all
    positions, in the graph's own operators and dtypes. An attention operator that rotates by itself reads a row per
    token. Both halves of an angle are the same, so the tables hold one.

    Args:
        num_positions: rows, the most tokens that the model is made for.
    """

    def __init__(self, num_positions: int) -> None:
        super().__init__()
        self.num_positions = num_positions

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        tables: dict[ir.Value, ir.Value] = {}
        for node in model.graph:
            if (node.domain, node.op_type) != ("hlap", "RotaryEmbedding"):
                continue
            for index, name in ((1, "cos"), (2, "sin")):
                angles = required(node, index)
                if angles not in tables:
                    tables[angles] = self._table(model, angles, name, number=len(tables) // 2)
                node.replace_input_with(index, tables[angles])
        return ir.passes.PassResult(model, bool(tables))

    def _table(self, model: ir.Model, angles: ir.Value, name: str, *, number: int) -> ir.Value:
        positions = next(value for value in model.graph.inputs if value.name == POSITIONS)
        part = ir.convenience.extract(model.graph, [positions], [angles])
        proto = ir.to_proto(ir.Model(part, ir_version=model.ir_version))
        for domain, version in model.opset_imports.items():
            cast(Any, proto).opset_import.add(domain=domain, version=version)
        every = np.arange(self.num_positions, dtype=np.int64)[None]
        (rows_1SE,) = cast(Any, ReferenceEvaluator(proto)).run(None, {POSITIONS: every})
        half = rows_1SE.shape[-1] // 2
        assert np.array_equal(rows_1SE[..., :half], rows_1SE[..., half:]), "one angle per pair of elements"
        return initializer(
            model.graph, f"rotary.{name}" + (f".{number}" if number else ""), rows_1SE[0, :, :half].copy(), angles.dtype
        )
