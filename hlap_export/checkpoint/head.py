"""The upper end of a decoder: final norm, output head and loss, computed over blocks of the vocabulary.

A large vocabulary has a head of gigabytes and logits of gigabytes. Block by block, neither has to be in memory at once,
and the blocks of a head that is streamed come from disk.

Shapes: N windows, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

# One block of the head, its logits and the tokens that they are of stay in a core's cache. Twice as many logits took
# twice as long for each: buffers of 4 MiB are given back to the system every time, and cleared by it for the next.
VOCABULARY_AT_ONCE = 1024
TOKENS_AT_ONCE = 512


class Head:
    """The final norm and the output head.

    Args:
        norm: the final norm, on `device`.
        rows: (start, stop) -> rows [stop - start, D] of the head's matrix [V, D].
        vocab_size: V.
        softcap: `softcap * tanh(logits / softcap)` where the family does that.
        device: where it is computed.
    """

    def __init__(
        self,
        norm: nn.Module,
        rows: Callable[[int, int], torch.Tensor],
        *,
        vocab_size: int,
        softcap: float | None,
        device: Any,
    ) -> None:
        self._norm, self._rows, self._vocab_size, self._softcap = norm, rows, vocab_size, softcap
        self._device = device

    def losses_nats(self, states: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> list[float]:
        """Sum of the tokens' losses for each residual stream [N, T, D] after the last layer and its targets [N, T]."""
        normed = [self._norm(h_NTD.to(self._device)).flatten(0, 1) for h_NTD in states]
        wanted = [target_NT.to(self._device).flatten() for target_NT in targets]
        # The loss is log(sum(exp(logits))) - logit of the target; blocks of the sum are joined at the end.
        sums: list[list[torch.Tensor]] = [[] for _ in normed]
        chosen = [torch.zeros(len(target_T), device=self._device) for target_T in wanted]
        for start, w_VD in self._blocks():
            for index, (h_TD, target_T) in enumerate(zip(normed, wanted, strict=True)):
                sums[index].append(self._block_losses(h_TD, w_VD, target_T - start, chosen[index]))
        return [
            (torch.stack(parts).logsumexp(0) - logit_T).sum(dtype=torch.float64).item()
            for parts, logit_T in zip(sums, chosen, strict=True)
        ]

    def logits(self, h_NTD: torch.Tensor) -> torch.Tensor:
        """Logits [N, T, V], on the CPU."""
        normed = self._norm(h_NTD.to(self._device))
        return torch.cat([self._capped(normed @ w_VD.T).cpu() for _, w_VD in self._blocks()], dim=-1)

    def _block_losses(
        self, h_TD: torch.Tensor, w_VD: torch.Tensor, local_T: torch.Tensor, chosen_T: torch.Tensor
    ) -> torch.Tensor:
        """log(sum(exp(logits))) [T] over a block; the logits of targets inside the block are put into `chosen_T`."""
        parts: list[torch.Tensor] = []
        for first in range(0, len(h_TD), TOKENS_AT_ONCE):
            tokens = slice(first, first + TOKENS_AT_ONCE)
            logits_TV = self._capped(h_TD[tokens] @ w_VD.T)
            inside = ((local_T[tokens] >= 0) & (local_T[tokens] < len(w_VD))).nonzero()[:, 0]
            chosen_T[first + inside] = logits_TV[inside, local_T[tokens][inside]]
            # cross_entropy is one fused pass where logsumexp is four.
            first_id = torch.zeros(len(logits_TV), dtype=torch.int64, device=logits_TV.device)
            loss_T = torch.nn.functional.cross_entropy(logits_TV, first_id, reduction="none")
            parts.append(loss_T + logits_TV[:, 0])
        return torch.cat(parts)

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        for start in range(0, self._vocab_size, VOCABULARY_AT_ONCE):
            stop = min(start + VOCABULARY_AT_ONCE, self._vocab_size)
            yield start, self._rows(start, stop).to(self._device)

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap
