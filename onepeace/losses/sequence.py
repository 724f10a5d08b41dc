"""Cross entropy of written sequences: label smoothing, confined answers, weights, hard tokens left out, R-Drop."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class TokenLosses(NamedTuple):
    """Of N tokens, padding left out."""

    loss: Tensor
    """(N,): what is minimised."""
    nll: Tensor
    """(N,): negative log-probability of the target, times its row's weight."""

    def without_worst(self, share: float) -> "TokenLosses":
        """Without this share of the tokens, those with the largest loss."""
        kept = self.loss.topk(int(len(self.loss) * (1 - share)), largest=False).indices
        return TokenLosses(self.loss[kept], self.nll[kept])


class SequenceLoss(NamedTuple):
    """Sums over tokens: who trains divides by the tokens of the whole step, on all devices."""

    total: Tensor
    """What is minimised."""
    nll: Tensor
    """Negative log-probability of the targets, times their weights."""
    tokens: int
    """How many tokens were summed."""


def sequence_loss(
    logits: Tensor,
    target: Tensor,
    *,
    padding: int = 1,
    allowed: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    drop_worst: float = 0.0,
    r_drop: float = 0.0,
) -> SequenceLoss:
    """Loss of a decoder's logits (B, T, V) against the ids ``target`` (B, T) that should follow.

    Args:
        padding: targets of this id do not count.
        allowed: (V,) or (B, T, V) bool: the ids that compete, e.g. those a trie of answers goes on with. Targets must
            be among them, else the loss is infinite. None: all.
        weights: (B,), factors on the log-probabilities of each row.
        label_smoothing, drop_worst, r_drop: see `smoothed_cross_entropy`.
    """
    log_probs, real, masked = _log_probs(logits, target, padding, allowed, weights)
    return smoothed_cross_entropy(log_probs, real, masked, label_smoothing, drop_worst, r_drop)


def token_losses(
    logits: Tensor,
    target: Tensor,
    *,
    padding: int = 1,
    allowed: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> TokenLosses:
    """The same of every token that is not padding, row by row, for those who sum them later; see `sequence_loss`."""
    log_probs, real, masked = _log_probs(logits, target, padding, allowed, weights)
    return _smoothed(log_probs, real, masked, label_smoothing)


def _log_probs(
    logits: Tensor, target: Tensor, padding: int, allowed: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probabilities (N, V), target (N,) and allowed ids of the tokens that are not padding."""
    if logits.shape[:2] != target.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must share (B, T)")
    real = target != padding
    masked = allowed[real] if allowed is not None and allowed.ndim == 3 else allowed
    scores = logits[real].float()
    log_probs = (scores if masked is None else scores.masked_fill(~masked, -torch.inf)).log_softmax(-1)
    if weights is not None:
        log_probs = log_probs * weights.unsqueeze(1).expand_as(target)[real].unsqueeze(1)
    return log_probs, target[real], masked


def smoothed_cross_entropy(
    log_probs: Tensor,
    target: Tensor,
    allowed: Tensor | None = None,
    label_smoothing: float = 0.0,
    drop_worst: float = 0.0,
    r_drop: float = 0.0,
) -> SequenceLoss:
    """The same of log-probabilities (N, V) and targets (N,), without padding (released code).

    Args:
        allowed: (V,) or (N, V) bool, the ids that share the smoothing's mass; None: all.
        label_smoothing: mass spread evenly over the wrong ids.
        drop_worst: share of the tokens, those with the largest loss, that is left out: captions found in the web are
            often wrong.
        r_drop: factor of the symmetric KL divergence between two passes over the same items under different dropout;
            the second pass is the second half of the N rows, and loses the tokens that the first one loses. 0: one
            pass.
    """
    loss, nll = _smoothed(log_probs, target, allowed, label_smoothing)
    if drop_worst > 0:
        first = len(loss) // 2 if r_drop else len(loss)
        kept = loss[:first].topk(int(first * (1 - drop_worst)), largest=False).indices
        kept = torch.cat([kept, kept + first]) if r_drop else kept
        loss, nll, log_probs = loss[kept], nll[kept], log_probs[kept]
    total = loss.sum()
    if r_drop:
        total = total + r_drop * _symmetric_kl(*log_probs.chunk(2))
    return SequenceLoss(total, nll.sum(), len(loss))


def _smoothed(log_probs: Tensor, target: Tensor, allowed: Tensor | None, label_smoothing: float) -> TokenLosses:
    nll = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1)
    if allowed is None:
        others: Tensor | int = log_probs.shape[1] - 1
        smooth = -log_probs.sum(1)
    else:
        others = (allowed.sum(-1) - 1).clamp_min(1)  # a token without alternatives has no loss, whatever the share
        smooth = -log_probs.masked_fill(~allowed, 0.0).sum(1)
    share = label_smoothing / others
    return TokenLosses((1 - label_smoothing - share) * nll + share * smooth, nll)


def _symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """Mean of both divergences of log-probabilities (N, V), summed over N; ids of probability 0 in both add nothing."""
    impossible = torch.isneginf(p) & torch.isneginf(q)
    p, q = p.masked_fill(impossible, 0.0), q.masked_fill(impossible, 0.0)
    forth = F.kl_div(q, p, reduction="none", log_target=True)
    back = F.kl_div(p, q, reduction="none", log_target=True)
    return (forth + back).sum() / 2
