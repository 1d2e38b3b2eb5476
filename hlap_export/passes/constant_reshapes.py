"""Reshapes whose target needn't be computed."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.passes.nodes import constant


class ConstantReshapes(ir.passes.InPlacePass):
    """Give a `Reshape` a constant target where its known shapes allow one.

    A tracer computes the target from `Shape` nodes at run time. ONNX can say the same in a constant: 0 copies the
    input's dimension at the same place, and one -1 takes what is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            target = _target(node)
            if target is not None:
                node.replace_input_with(1, constant(model.graph, target))
                node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
                modified = True
        return ir.passes.PassResult(model, modified)


def _target(node: ir.Node) -> list[int] | None:
    if node.op_type != "Reshape" or node.domain:
        return None
    data, shape, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if data is None or shape is None or shape.is_initializer() or data.shape is None or output.shape is None:
        return None
    target: list[int] = []
    for axis, dim in enumerate(output.shape):
        if isinstance(dim, int):
            target.append(dim)
        elif axis < len(data.shape) and dim.value is not None and dim == data.shape[axis]:
            target.append(0)
        else:
            target.append(-1)
    # A static 0 would be read as "copy"; two -1 leave nothing to infer the second from.
    if target.count(-1) > 1 or any(dim == 0 for dim in output.shape):
        return None
    return target
