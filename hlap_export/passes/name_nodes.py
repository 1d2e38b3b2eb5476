"""Names that say where in the model a node belongs."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes the path of modules that a node came from, the operator last."""


class NameNodes(ir.passes.InPlacePass):
    """Name nodes and their values by module, `model.layers.0.self_attn.q_proj/MatMul`, numbered where several.

    The wrapper module that was traced is left out of the path. Graph inputs and outputs keep their names, and so do
    initializers that have one from the checkpoint; anonymous ones (`val_12`) are named by content or by reader. An
    output that a node leaves out, whose name is empty, stays without one.
    """

    def __init__(self, wrapper: str) -> None:
        super().__init__()
        self.wrapper = wrapper

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        outputs = set(model.graph.outputs)
        seen: Counter[str] = Counter()
        for node in model.graph:
            base = f"{self._scope(node)}/{node.op_type}".removeprefix("/")
            node.name = base if not seen[base] else f"{base}_{seen[base]}"
            seen[base] += 1
            for index, value in enumerate(node.outputs):
                if value not in outputs and value.name != "":  # a named output is computed, read or not
                    value.name = node.name if index == 0 else f"{node.name}:{index}"
        return ir.passes.PassResult(model, True)

    def _scope(self, node: ir.Node) -> str:
        recorded = node.metadata_props.get(SCOPES)
        scopes: list[str] = ast.literal_eval(recorded) if recorded else []
        module = scopes[-2] if len(scopes) > 1 else ""
        if module.startswith("_empty_nn_module_stack"):  # torch: a size that was read outside any module
            return "sizes"
        return module.removeprefix(self.wrapper).removeprefix(".")
