"""Training with PyTorch: step sizes, one step of an optimiser, and processes that train together.

The loop itself is in run.py.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

NAN_STEPS = 10
"""Steps in a row without a finite loss after which a run ends."""


class Diverged(ArithmeticError):
    """Ten steps in a row had no finite loss or gradient."""


def step_size(schedule: str, lr: float, step: int, warmup: int, steps: int) -> float:
    """Of step 1, 2, ..: rises over `warmup` steps to lr, then falls.

    Parameters
    ----------
    schedule : str
        `cosine`: to 0 at the end of `steps`; `inverse_sqrt`: as step**-0.5; `constant`.
    """
    if step <= warmup:
        return lr * step / warmup
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * (step - 1 - warmup) / (steps - warmup))) / 2
    return lr * math.sqrt(max(warmup, 1) / step) if schedule == "inverse_sqrt" else lr


class Step(NamedTuple):
    """What a step reports: the mean loss and the norm of the gradient before it was clipped; whether it was made."""

    loss: float
    gradient_norm: float
    made: bool


class Stepper:
    """Steps of AdamW, with gradients added up over parts of a batch and averaged over processes.

    Parameters
    ----------
    model : module
    lr, betas, weight_decay : float, (float, float), float
        Of torch.optim.AdamW; matrices alone decay.
    clip : float
        The largest norm of a gradient; 0: any.
    """

    def __init__(
        self, model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, clip: float
    ) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr, betas, fused=True)
        self.clip = clip
        self.skipped, self.in_a_row = 0, 0

    def step(self, lr: float, losses: Iterable[Callable[[], Tensor]]) -> Step:
        """A step on the mean of the losses, each of which is computed, and its gradient added, before the next.

        A step whose loss or gradient is not finite is left out and counted.

        Raises
        ------
        Diverged
            At the tenth in a row.
        """
        self.optimiser.zero_grad(set_to_none=True)
        parts, total = 0, 0.0
        for loss in losses:
            value = loss()
            value.backward()
            total += float(value.detach())
            parts += 1
        mean = self._average(parts, total)
        norm = float(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            self.skipped += 1
            self.in_a_row += 1
            if self.in_a_row >= NAN_STEPS:
                raise Diverged(
                    f"{NAN_STEPS} steps in a row had no finite loss: a lower lr, or a longer warm-up, may help"
                )
            return Step(mean, norm, False)
        self.in_a_row = 0
        if self.clip:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, torch.tensor(norm))
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        return Step(mean, norm, True)

    def _average(self, parts: int, total: float) -> float:
        """Makes of sums of gradients their mean over parts and processes; returns the mean loss."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        shared = world() > 1
        if shared:
            flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([total])])
            dist.all_reduce(flat)
            flat /= parts * world()
            for gradient, part in zip(gradients, flat[:-1].split([gradient.numel() for gradient in gradients])):
                gradient.copy_(part.view_as(gradient))
            return float(flat[-1])
        if parts > 1:
            torch._foreach_div_(gradients, float(parts))
        return total / parts

    # ---- what a resume needs ----

    def tensors(self) -> dict[str, Tensor]:
        """Adam's moments and steps, by the place of the parameter."""
        found = {}
        for i, parameter in enumerate(self.parameters):
            for name, tensor in self.optimiser.state.get(parameter, {}).items():
                found[f"optimiser.{i}.{name}"] = tensor
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        for i, parameter in enumerate(self.parameters):
            names = [name for name in tensors if name.startswith(f"optimiser.{i}.")]
            self.optimiser.state[parameter] = {name.rsplit(".", 1)[1]: tensors[name] for name in names}


# ---- processes that train together (torchrun) ----


def world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def gathered(fact: Any) -> list[Any]:
    """What each process gives, in the order of their ranks: of process 0; of the others nothing."""
    if world() == 1:
        return [fact]
    found: list[Any] | None = [None] * world() if rank() == 0 else None
    dist.gather_object(fact, found)
    return found or []


def shared(fact: Any) -> Any:
    """What process 0 gives, for all."""
    if world() == 1:
        return fact
    box = [fact]
    dist.broadcast_object_list(box)
    return box[0]


@contextlib.contextmanager
def processes() -> Iterator[bool]:
    """Join the processes that torchrun started, if it did; whether this is the first of them, or the only one."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield True
        return
    dist.init_process_group("gloo")
    try:
        yield rank() == 0
    finally:
        dist.destroy_process_group()
