"""Cross entropy of generated sequences, with label smoothing, restricted answers, row weights and loss truncation."""

from typing import NamedTuple

import torch
from torch import Tensor

from onepeace.special_ids import PAD


class TokenLosses(NamedTuple):
    """Losses of N tokens, without padding."""

    loss: Tensor
    """(N,): the loss to minimise."""
    nll: Tensor
    """(N,): negative log-probability of the target, times its row's weight."""

    def without_worst(self, share: float) -> "TokenLosses":
        """Drop this share of the tokens, those with the largest loss: captions from the web are often wrong."""
        kept = self.loss.topk(int(len(self.loss) * (1 - share)), largest=False).indices
        return TokenLosses(self.loss[kept], self.nll[kept])


def token_losses(
    logits: Tensor,
    target: Tensor,
    *,
    real: Tensor | None = None,
    allowed: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> TokenLosses:
    """Losses of a decoder's logits (B, T, V) for the next ids ``target`` (B, T), row by row; padding in the targets
    is ignored.

    Args:
        real: (N,) int64, the targets that are not padding, in the flattened (B, T), from `real_targets`. None: they are
            looked up, which waits for the device of the targets.
        allowed: (V,) or (B, T, V) bool: the ids in the softmax, e.g. the continuations in a trie of answers. Targets
            must be among them, or the loss is infinite. None: all.
        weights: (B,), factors on the log-probabilities of each row.
        label_smoothing: see `smoothed_cross_entropy`.
    """
    if logits.shape[:2] != target.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must share (B, T)")
    if real is None:
        real = real_targets(target)
    if allowed is not None and allowed.ndim == 3:
        allowed = allowed.flatten(0, 1)[real]
    scores = logits.flatten(0, 1)[real].float()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    log_probs = scores.log_softmax(-1)
    if weights is not None:
        weights_of_tokens = weights.unsqueeze(1).expand_as(target).flatten()[real]
        log_probs = log_probs * weights_of_tokens.unsqueeze(1)
    return smoothed_cross_entropy(log_probs, target.flatten()[real], allowed, label_smoothing)


def real_targets(target: Tensor) -> Tensor:
    """(N,) int64: the targets (B, T) that are not padding, in the flattened (B, T)."""
    return (target != PAD).flatten().nonzero().squeeze(1)


def smoothed_cross_entropy(
    log_probs: Tensor, target: Tensor, allowed: Tensor | None = None, label_smoothing: float = 0.0
) -> TokenLosses:
    """Losses of log-probabilities (N, V) and targets (N,), without padding (released code).

    Args:
        allowed: (V,) or (N, V) bool, the ids that share the smoothing's mass; None: all.
        label_smoothing: mass spread evenly over the wrong ids.
    """
    nll = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1)
    if allowed is None:
        num_wrong: Tensor | int = log_probs.shape[1] - 1
        smooth = -log_probs.sum(1)
    else:
        num_wrong = (allowed.sum(-1) - 1).clamp_min(1)  # a token without alternatives has no loss for any share
        smooth = -log_probs.masked_fill(~allowed, 0.0).sum(1)
    share = label_smoothing / num_wrong
    return TokenLosses((1 - label_smoothing - share) * nll + share * smooth, nll)
