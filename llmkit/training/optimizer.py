"""Muon for hidden matrices and AdamW for everything else, as one optimizer."""

from typing import Any

import torch
from torch import nn

_STACKED = 2**24  # elements that are orthogonalized at a time; more gains no speed and takes memory


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` that orthogonalizes all matrices of one shape together.

    The settings and the state are those of the parent, and so are the updates, up to the rounding of bfloat16. What changes is
    that a small model makes a few large matrix products a step instead of hundreds of small ones, in half of the time.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[torch.Tensor] = []
            gradients: list[torch.Tensor] = []
            momenta: list[torch.Tensor] = []
            self._init_group(group, params, gradients, momenta)
            if not params:
                continue
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            for numbers in _of_equal_shape(params):
                orthogonal = _orthogonalized(torch.stack([_wide(updates[n]) for n in numbers]), group)
                rows, columns = params[numbers[0]].shape
                rate = group["lr"] * _scale(group["adjust_lr_fn"], rows, columns)
                steps = [o.T if rows > columns else o for o in orthogonal.to(params[0].dtype)]
                torch._foreach_add_([params[n] for n in numbers], steps, alpha=-rate)
        return loss


def _of_equal_shape(params: list[torch.Tensor]) -> list[list[int]]:
    """Positions of parameters by shape, in stacks of a limited size."""
    by_shape: dict[torch.Size, list[int]] = {}
    for number, param in enumerate(params):
        by_shape.setdefault(param.shape, []).append(number)
    stacks = []
    for shape, numbers in by_shape.items():
        most = max(_STACKED // shape.numel(), 1)
        stacks += [numbers[i : i + most] for i in range(0, len(numbers), most)]
    return stacks


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _scale(adjust_lr_fn: str | None, rows: int, columns: int) -> float:
    """torch's adjustment of the learning rate to the shape of a matrix."""
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * max(rows, columns) ** 0.5
    return max(1.0, rows / columns) ** 0.5


def _orthogonalized(stack: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """Newton-Schulz iteration, as torch's Muon does it, on a stack [matrices, rows, columns] with rows <= columns."""
    a, b, c = group["ns_coefficients"]
    x = stack.bfloat16()
    x /= x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


ALGORITHMS = {"muon": BatchedMuon, "adamw": torch.optim.AdamW}


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW behind one interface.

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
    model: nn.Module, hidden: dict[str, Any], embeddings: dict[str, Any], vectors: dict[str, Any]
) -> list[dict[str, Any]]:
    """Put every parameter that is trained in exactly one group.

    Args:
        model: a causal language model.
        hidden: settings ("algorithm", "lr", …) of the matrices between hidden layers, Muon's place.
        embeddings: of embeddings and an untied output layer: each row learns from its own token alone, which is AdamW's.
        vectors: of norms and biases, which have no reason to shrink.

    Raises:
        ValueError: a parameter is in no group or in two.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ends = [model.get_output_embeddings(), *(m for m in model.modules() if isinstance(m, nn.Embedding))]
    at_an_end = {id(p) for module in ends if module is not None for p in module.parameters()}
    parts = [
        (hidden, [p for p in trained.values() if p.ndim == 2 and id(p) not in at_an_end]),
        (embeddings, [p for p in trained.values() if p.ndim > 2 or (p.ndim == 2 and id(p) in at_an_end)]),
        (vectors, [p for p in trained.values() if p.ndim < 2]),
    ]
    groups = [{**settings, "params": params} for settings, params in parts if params]
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
