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

    def divergence(self, h_NTD: torch.Tensor, dense_NTD: torch.Tensor) -> tuple[float, torch.Tensor]:
        """How far the predictions of one residual stream are from another's: sum over tokens of KL(dense || h), nats.

        Returned with its gradient [N, T, D] in `h_NTD`. With p and q the two softmaxes, KL = sum p log(p / q), whose
        gradient in q's logits is q - p. No logits are kept: blocks go by twice, first for the softmaxes' sums.
        """
        h_NTD = h_NTD.detach().to(self._device).requires_grad_()
        with torch.enable_grad():
            normed_TD = self._norm(h_NTD).flatten(0, 1)
        with torch.no_grad():
            pair = normed_TD.detach(), self._norm(dense_NTD.to(self._device)).flatten(0, 1)
            sums: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
            for _, w_VD in self._blocks():
                for x_TD, parts in zip(pair, sums, strict=True):
                    parts.append(self._capped(x_TD @ w_VD.T).logsumexp(-1))
            log_q_T1, log_p_T1 = (torch.stack(parts).logsumexp(0)[:, None] for parts in sums)
            total, gradient_TD = 0.0, torch.zeros_like(pair[0])
            for _, w_VD in self._blocks():
                logits_TV, dense_TV = (self._capped(x_TD @ w_VD.T) for x_TD in pair)
                p_TV, q_TV = (dense_TV - log_p_T1).exp(), (logits_TV - log_q_T1).exp()
                total += (p_TV * (dense_TV - log_p_T1 - logits_TV + log_q_T1)).sum(dtype=torch.float64).item()
                slope_TV = q_TV - p_TV
                if self._softcap is not None:
                    slope_TV *= 1 - (logits_TV / self._softcap).square()
                gradient_TD += slope_TV @ w_VD
        normed_TD.backward(gradient_TD)
        assert h_NTD.grad is not None
        return total, h_NTD.grad

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
