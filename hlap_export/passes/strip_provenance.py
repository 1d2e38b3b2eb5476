"""Nothing in the file but the model."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


class StripProvenance(ir.passes.InPlacePass):
    """Remove the tracer's notes: stack traces with file paths, module paths, FX node texts, doc strings.

    They differ between machines, and the same request must give the same bytes. The model's own metadata stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for annotated in _annotated(model.graph):
            modified = modified or bool(annotated.metadata_props) or annotated.doc_string is not None
            annotated.metadata_props.clear()
            annotated.doc_string = None
        return ir.passes.PassResult(model, modified)


def _annotated(graph: ir.Graph) -> Iterator[ir.Graph | ir.Node | ir.Value]:
    yield graph
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield node
        yield from node.outputs
