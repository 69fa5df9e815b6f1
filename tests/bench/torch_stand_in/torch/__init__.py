"""Stands in for PyTorch beside guidellm, which goes through its prompts with its `DataLoader`.

PyTorch from PyPI brings CUDA: 5 GB to install for one loop, and none of it is in a request's path.
The `datasets` package tells its values from tensors, generators and modules by these types.
"""

from types import SimpleNamespace

from torch import utils

__all__ = ["Generator", "Tensor", "nn", "utils"]


class Tensor:
    """No value is one."""


class Module:
    """No value is one."""


class Generator:
    """Shuffles nothing: prompts come in the file's order."""

    def manual_seed(self, seed: int) -> "Generator":
        return self


nn = SimpleNamespace(Module=Module)
