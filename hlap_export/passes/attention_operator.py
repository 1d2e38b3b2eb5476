"""ONNX's own attention operator, for the layers that a compiler has a kernel for."""

from __future__ import annotations

import json

import onnx_ir as ir

from hlap_export.passes.attention_kernels import AttentionForm, attention_form
from hlap_export.passes.nodes import node_before, required, static_dim

FORMS = "hlap.attention"
"""Model metadata: how each layer's attention was written, and why, as JSON."""


class AttentionOperator(ir.passes.InPlacePass):
    """`hlap::Attention(q, k, v, mask)` with a boolean mask becomes `Attention(q, k, v, mask)` of opset 23 and later.

    Only where there is a fused kernel: elsewhere a compiler that doesn't decompose the operator would refuse the whole
    model, and the layer is left for `LowerAttention`. What was chosen is noted in the model's metadata.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [node for node in model.graph if (node.domain, node.op_type) == ("hlap", "Attention")]
        forms = [_form(node) for node in attentions]
        for node, form in zip(attentions, forms, strict=True):
            if form.form == "operator":
                _replace(model.graph, node)
        if forms:
            model.metadata_props[FORMS] = json.dumps([form.facts() for form in forms])
        return ir.passes.PassResult(model, bool(forms))


def _form(node: ir.Node) -> AttentionForm:
    query, key = required(node, 0), required(node, 1)
    assert key.name is not None and query.dtype is not None
    return attention_form(
        layer=int(key.name.split(".")[1]),  # present.{layer}.key
        num_heads=static_dim(query, 1),
        head_dim=static_dim(query, 3),
        dtype=query.dtype.numpy().name,
        softcap=node.attributes["softcap"].as_float(),
    )


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    inputs, context = [required(node, index) for index in range(4)], node.outputs[0]
    result = node_before(node, "Attention", inputs, {"scale": node.attributes["scale"].as_float()}, like=context)
    ir.convenience.replace_all_uses_with(context, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = context.name
