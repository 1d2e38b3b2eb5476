"""Exact algebra on attention weights: tensor -> tensor, in float64, no I/O, nothing in place.

Shapes: D hidden, H query heads, K KV heads, E head dim. Weights are `nn.Linear`'s, [out, in].

With queries and keys gone each token attends to itself, so its attention output is its own value:
`O = rep(x W_v^T + b_v) W_o^T + b_o`, where rep repeats each KV head for the H/K query heads of its group. Everything
after `x W_v^T` is linear, hence foldable (arXiv 2507.01900; the folds are derived, not taken, from there).
"""

from __future__ import annotations

from functools import reduce

import torch


def sum_over_groups(w_o_DHE: torch.Tensor, num_heads: int, num_kv_heads: int) -> torch.Tensor:
    """o_proj for unrepeated values: `rep(V) W_o^T = V W'^T` with W' the sum over each group's query heads.

    Args:
        w_o_DHE: o_proj weight, [D, H*E].
        num_heads: H.
        num_kv_heads: K.

    Returns:
        [D, K*E], float64.
    """
    hidden, inputs = w_o_DHE.shape
    head_dim = inputs // num_heads
    heads_DKE = w_o_DHE.reshape(hidden, num_kv_heads, num_heads // num_kv_heads, head_dim).unbind(dim=2)
    # Head by head: the whole weight in float64 would be most of the memory that pruning takes.
    first, *others = heads_DKE
    return reduce(torch.add, others, first.double()).reshape(hidden, num_kv_heads * head_dim)


def value_bias_after_output(w_o_DKE: torch.Tensor, b_v_KE: torch.Tensor) -> torch.Tensor:
    """The value bias seen through o_proj: `(V + b_v) W'^T = V W'^T + W' b_v`, a [D] bias in float64."""
    return w_o_DKE.double() @ b_v_KE.double()


def scale_norm_gain(gain_D: torch.Tensor, alpha: float) -> torch.Tensor:
    """Gain w' of a norm that computes `(1 + w) * x / rms(x)`, so that its output is alpha times larger.

    `alpha (1 + w) = 1 + w'`, hence `w' = alpha (1 + w) - 1`; float64.
    """
    return alpha * (1.0 + gain_D.double()) - 1.0


def select_heads(rows: torch.Tensor, heads: tuple[int, ...], head_dim: int) -> torch.Tensor:
    """The rows (of a weight or bias whose first axis is [heads * head_dim]) that belong to `heads`, dtype kept."""
    first_rows = torch.tensor(heads, device=rows.device)[:, None] * head_dim
    index = (first_rows + torch.arange(head_dim, device=rows.device)).flatten()
    return rows.index_select(0, index)


def select_head_inputs(w_o_DHE: torch.Tensor, heads: tuple[int, ...], head_dim: int) -> torch.Tensor:
    """The columns of o_proj [D, H*E] that take the output of `heads`, dtype kept."""
    return select_heads(w_o_DHE.T, heads, head_dim).T.contiguous()
