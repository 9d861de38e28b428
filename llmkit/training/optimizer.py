"""Muon for hidden matrices and AdamW for everything else, as one optimizer."""

from typing import Any

import torch
from torch import nn

ALGORITHMS = {"muon": torch.optim.Muon, "adamw": torch.optim.AdamW}


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` behind one interface.

    A Trainer knows one optimizer: one list of groups for the scheduler, one state to save. Here both algorithms work
    on the groups and the state of this object, so nothing is kept twice and a checkpoint is that of any optimizer.

    Muon: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. It replaces the momentum of
    a matrix by the nearest orthogonal matrix, so that every direction learns at the same speed. It makes sense for
    matrices between hidden layers; embeddings, the output layer, norms and biases belong to AdamW.

    Args:
        groups: dicts with "params", "algorithm" ("muon" or "adamw") and the algorithm's own settings.
    """

    def __init__(self, groups: list[dict[str, Any]]):
        complete = []
        for group in groups:
            settings = dict(group)
            algorithm = settings.pop("algorithm")
            # The algorithm checks its settings and fills in its defaults.
            own = ALGORITHMS[algorithm]([settings]).param_groups[0]
            complete.append({**own, "algorithm": algorithm})
        super().__init__(complete, {})
        self._optimizers = {
            name: algorithm([nn.Parameter(torch.zeros(1, 1))]) for name, algorithm in ALGORITHMS.items()
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, optimizer in self._optimizers.items():
            # Set at every step, since loading a checkpoint replaces both.
            optimizer.state = self.state
            optimizer.param_groups = [group for group in self.param_groups if group["algorithm"] == name]
            optimizer.step()
        return loss


def optimizer_groups(
    model: nn.Module,
    muon_learning_rate: float,
    adamw_learning_rate: float,
    muon_weight_decay: float,
    adamw_weight_decay: float,
    adamw_betas: tuple[float, float] = (0.9, 0.95),
) -> list[dict[str, Any]]:
    """Put every parameter that is trained in exactly one group.

    Muon takes the matrices between hidden layers. AdamW takes embeddings and an untied output layer, with weight
    decay, and everything of one dimension, without: a norm's scale has no reason to shrink.

    Args:
        model: a causal language model.
        muon_learning_rate: the size of an update relative to an orthogonal matrix; times sqrt(rows / columns) for a
            matrix with more rows than columns, so that outputs move equally whatever the shape.
        adamw_learning_rate: the usual one.
        muon_weight_decay, adamw_weight_decay: decoupled, each multiplied by its learning rate.
        adamw_betas: averages of gradient and its square; a second one of 0.95 forgets within a short run.

    Raises:
        ValueError: a parameter is in no group or in two.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ends = [model.get_output_embeddings(), *(m for m in model.modules() if isinstance(m, nn.Embedding))]
    at_an_end = {id(p) for module in ends if module is not None for p in module.parameters()}
    matrices = [p for p in trained.values() if p.ndim == 2 and id(p) not in at_an_end]
    embeddings = [p for p in trained.values() if p.ndim > 2 or (p.ndim == 2 and id(p) in at_an_end)]
    vectors = [p for p in trained.values() if p.ndim < 2]
    adamw = {"algorithm": "adamw", "lr": adamw_learning_rate, "betas": adamw_betas, "eps": 1e-10, "fused": True}
    groups = [
        {"algorithm": "muon", "params": matrices, "lr": muon_learning_rate, "weight_decay": muon_weight_decay},
        {**adamw, "params": embeddings, "weight_decay": adamw_weight_decay},
        {**adamw, "params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    check_coverage(trained, groups)
    return groups


def check_coverage(trained: dict[str, nn.Parameter], groups: list[dict[str, Any]]) -> None:
    """Raise a ValueError unless every parameter is in exactly one group."""
    times = {id(p): 0 for p in trained.values()}
    for group in groups:
        for p in group["params"]:
            times[id(p)] = times.get(id(p), 0) + 1
    wrong = [f"{name} is in {times[id(p)]} groups" for name, p in trained.items() if times[id(p)] != 1]
    if wrong or len(times) != len({id(p) for p in trained.values()}):
        raise ValueError(
            "every parameter belongs in exactly one optimizer group: " + "; ".join(wrong or ["a stranger"])
        )
