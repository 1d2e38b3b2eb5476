"""No graph input that nothing reads."""

from __future__ import annotations

import onnx_ir as ir


class DropUnreadInputs(ir.passes.InPlacePass):
    """Remove graph inputs without readers, such as position ids where attention counts tokens by itself.

    A runtime asks for every input that a graph declares.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        unread = [value for value in model.graph.inputs if not value.uses()]
        for value in unread:
            model.graph.inputs.remove(value)
        return ir.passes.PassResult(model, bool(unread))
