"""Joining linear layers of one input into one, for inference."""

import torch
from torch import Tensor, nn


class Joined(nn.Module):
    """Several projections of one input as one matrix product."""

    def __init__(self, linear: nn.Linear, sizes: list[int]) -> None:
        super().__init__()
        self.linear: nn.Module = linear
        self.sizes = sizes

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., in] → one [..., size] per projection, views of one tensor."""
        return torch.split_with_sizes(self.linear(x), self.sizes, -1)


def join(parent: nn.Module, *names: str) -> Joined:
    """Take the named linear layers, of which all or none have a bias, out of `parent` or the
    modules in it, and return them as one."""
    parts = [parent.get_submodule(name) for name in names]
    linears = [part for part in parts if isinstance(part, nn.Linear)]
    assert len(linears) == len(names)
    biases = [part.bias.data for part in linears if part.bias is not None]
    assert len(biases) in (0, len(linears))
    weight = torch.cat([part.weight.data for part in linears])
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases), device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        linear.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    for name in names:
        owner, _, own_name = name.rpartition(".")
        delattr(parent.get_submodule(owner), own_name)
    return Joined(linear, [part.out_features for part in linears])
