"""GPUs with the rates of their data sheets: for the plan of a run, and for the share of its peak that a run reaches."""

from typing import NamedTuple


class Card(NamedTuple):
    """A GPU in a machine of its own kind; bytes and FLOPs per second. Rates of links are those of one direction."""

    name: str
    bfloat16: float
    """Peak of dense matrix products."""
    float32: float
    """Peak without TF32, which torch does not use by default."""
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes a second, between the memory and the processors of the card."""
    link: float
    """NVLink, to the other GPUs of the machine."""
    network: float
    """Network adapter of one GPU."""


CARDS = {
    # NVIDIA's data sheets of the A100 80GB SXM and the DGX A100: one 200 Gb/s adapter for each GPU.
    "a100": Card("A100 80 GB", 312e12, 19.5e12, memory=80 * 10**9, bandwidth=2.0e12, link=300e9, network=25e9),
    # Data sheets of the H100 SXM and the DGX H100: one 400 Gb/s adapter for each GPU.
    "h100": Card("H100 SXM", 989e12, 67e12, memory=80 * 10**9, bandwidth=3.35e12, link=450e9, network=50e9),
    # Data sheets of the H200 SXM and the DGX H200.
    "h200": Card("H200 SXM", 989e12, 67e12, memory=141 * 10**9, bandwidth=4.8e12, link=450e9, network=50e9),
    # Data sheets of the HGX B200 and the DGX B200.
    "b200": Card("B200 SXM", 2250e12, 75e12, memory=180 * 10**9, bandwidth=8e12, link=900e9, network=50e9),
}


def card_called(name: str) -> Card | None:
    """The card with the name that its driver tells; None if its peak is not known, as that of PCIe cards is lower."""
    name = name.lower()
    if "pcie" in name:
        return None
    return next((card for key, card in CARDS.items() if key in name), None)
