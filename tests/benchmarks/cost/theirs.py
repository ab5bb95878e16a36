"""The PyTorch original, empirical_init 0.0.2, on networks of linear layers."""

import copy
import itertools
from collections.abc import Callable

import empirical_init
import numpy as np
import torch

STEP = 1e-5


class Theirs(torch.nn.Module):
    """The same networks for the original, whose decorator wraps every linear layer."""

    @empirical_init.wrap_all_leaf_modules
    def __init__(self, sizes: tuple, biased: int, between: Callable, last: Callable):
        super().__init__()
        self.between, self.last = between, last
        pairs = enumerate(itertools.pairwise(sizes))
        self.layers = torch.nn.ModuleList(
            [torch.nn.Linear(n, m, bias=i < biased) for i, (n, m) in pairs]
        )

    def forward(self, x):
        for i, layer in enumerate(self.layers[:-1]):
            x = self.between(i)(layer(x))
        return self.last(self.layers[-1](x))


def random_loss(outputs: torch.Tensor) -> torch.Tensor:
    """Cross entropy to random labels, of logits or, for two classes, probabilities."""
    labels = torch.randint(outputs.shape[1], (len(outputs),))
    logs = outputs.log() if outputs.shape[1] == 2 else outputs.log_softmax(1)
    return torch.nn.functional.nll_loss(logs, labels)


def tune_theirs(model: torch.nn.Module, width: int) -> None:
    wrapped = empirical_init.get_wrapped_submodules(model)
    draw = lambda batch: torch.randn(batch, width)
    empirical_init.empirical_init(wrapped, model, draw, random_loss, batchsz=64)


def strength(t: torch.Tensor) -> float:
    return float(t.square().mean().sqrt())


def pillars_of_theirs(model: torch.nn.Module, width: int) -> np.ndarray:
    """The three pillars of each wrapped module on a fresh batch."""
    model, calls, grads = copy.deepcopy(model).double(), {}, {}
    wrapped = empirical_init.get_wrapped_submodules(model)
    for unit in wrapped:
        unit.register_forward_hook(lambda m, x, y: calls.update({m: (x, y)}))
        unit.register_full_backward_hook(lambda m, gx, _: grads.update({m: gx[0]}))
    x = torch.randn(64, width, dtype=torch.double, requires_grad=True)
    random_loss(model(x)).backward()
    seen, found = dict(calls), []
    with torch.no_grad():
        for unit in wrapped:
            (x, *_), y = seen[unit]
            for p in unit.parameters():
                p -= STEP * p.grad
            update = (unit(x) - y) / STEP
            found.append([strength(t) for t in (y, grads[unit], update)])
    return np.array(found).T
