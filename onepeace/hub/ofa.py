"""OFA as an architecture. No torch until it is built."""

from typing import TYPE_CHECKING

from onepeace.config.ofa import OFAConfig

if TYPE_CHECKING:
    from onepeace.generative.model import OFA

CREDIT = "Weights by the authors of OFA (Wang et al., arXiv 2202.03052; https://github.com/OFA-Sys/OFA, Apache-2.0)."


def module(config: OFAConfig) -> "OFA":
    from onepeace.generative.model import OFA

    return OFA(config)
