"""Weights as tensors without data, which are read, converted and rearranged while they are written.

The seam between passes and the file: an initializer's `const_value` is a `StreamedTensor`, and a pass replaces it by
another one that is made from it. Nothing is computed before the file is written, and then block by block, so that an
export takes the memory of a few blocks and not of a model.

    transposed(w)                   W' of W [out, in]; undoes itself
    stacked([w_q, w_k, w_v])        one matrix of several, rows below rows
    mapped(w, function, ...)        a function of each row: a gain folded in, another dtype
    derived(w, compute, parts)      several tensors computed together: a quantised matrix, its scales, its zero points

They nest: packed QKV is `transposed(stacked([w_q, w_k, w_v]))` of the matrices as torch keeps them, which a pass gets
back by `transposed(initializer.const_value)` once `TransposeLinearWeights` has turned them.
"""

from hlap_export.weights.arranged import mapped, stacked, transposed
from hlap_export.weights.derived import Part, derived
from hlap_export.weights.streamed import StreamedRows, StreamedTensor, streamed

__all__ = ["Part", "StreamedRows", "StreamedTensor", "derived", "mapped", "stacked", "streamed", "transposed"]
