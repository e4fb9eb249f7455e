"""Views of plain modules, so that mathematics can be tested on models worked out by hand."""

import torch
from torch import nn

from supple.diagnostics.features import Features
from supple.diagnostics.views import View


class PlainView(View):
    """One member; its outputs are the module's."""

    layers = ()

    def __init__(self, module):
        super().__init__("value", module, 1)

    def features(self, x_ND):
        return Features(x_ND[None], x_ND[None])

    def outputs(self, module, x_ND):
        return module(x_ND)[None]


class Parameters(nn.Module):
    """Named tensors; what they mean is up to the loss."""

    def __init__(self, **named):
        super().__init__()
        for name, value in named.items():
            setattr(self, name, nn.Parameter(torch.as_tensor(value, dtype=torch.float64)))


def linear(weight):
    """(N, D) -> (N, outputs), without bias, float64."""
    weight = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    return layer
