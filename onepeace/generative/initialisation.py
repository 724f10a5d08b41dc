"""BERT's initialisation, which OFA uses for everything except its convolutions."""

from torch import nn

STD = 0.02


def normal_init(root: nn.Module) -> None:
    """Initialise Linear and Embedding weights from a normal distribution, and biases and the padding row to 0.

    Classes with further parameters initialise them in ``reset_parameters``.
    """
    for module in root.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif module is not root and not type(module).__module__.startswith("torch."):
            getattr(module, "reset_parameters", lambda: None)()
