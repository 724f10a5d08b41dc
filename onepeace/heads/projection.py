"""From the CLS token to the shared space."""

from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.precision import at_least_float32


class Projection(nn.Linear):
    """CLS features -> a unit vector of the shared space (paper: the CLS token aggregates the global representation)."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, E), L2 norm 1, float32 also from half features."""
        x = super().forward(features)
        return F.normalize(x.to(at_least_float32(x.dtype)), dim=-1)
