"""A training function for two processes; in a module of its own, so that they import little."""

import torch

from training import parallel


def gradients():
    """In process 0 gradients of 10 and 20, in process 1 of 20 and 30."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    for number, weight in enumerate(weights):
        weight.grad = torch.full((2,), 10.0 * (1 + number + parallel.rank()))
    parallel.share_gradients(weights)
    return {"means": [weight.grad.tolist() for weight in weights]}
