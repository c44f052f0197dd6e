"""Optimizer steps on gradients, also as plain operations for functions that are traced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from sb3_erl.compiled.operators import operators
from sb3_erl.core.interrupts import uninterrupted

Group = dict[str, Any]
"""One of ``optimizer.param_groups``."""


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """
    Inside, networks with these parameters pass gradients on to their inputs without computing their own.

    Autograd skips what its caller did not ask for, but not inside a node with a hand-written backward.

    :param parameters: of networks that are evaluated but not trained
    """
    live = [parameter for parameter in parameters if parameter.requires_grad]
    with uninterrupted():  # a network that stays frozen would never learn again
        for parameter in live:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in live:
                parameter.requires_grad_(True)


def step_optimizer(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    parameters: Iterable[nn.Parameter],
    max_grad_norm: float | None = None,
) -> Tensor | None:
    """
    One optimizer step on the gradient of ``loss`` with respect to ``parameters`` only.

    :param optimizer: drives ``parameters``
    :param loss: scalar
    :param parameters: no other gradient is computed
    :param max_grad_norm: clip the joint gradient at this norm
    :return: gradient norm before clipping, ``None`` without clipping
    """
    live = [parameter for parameter in parameters if parameter.requires_grad]
    return (
        apply_gradients(optimizer, live, torch.autograd.grad(loss, live, allow_unused=True), max_grad_norm) if live else None
    )


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    grads: Sequence[Tensor | None],
    max_grad_norm: float | None = None,
) -> Tensor | None:
    """
    One optimizer step on given gradients; otherwise as :func:`step_optimizer`.

    :param grads: one for each parameter, ``None`` where the loss does not depend on it, which is left as it is
    :return: as :func:`step_optimizer`; ``None`` in a function that is traced
    """
    pairs = [(parameter, grad) for parameter, grad in zip(parameters, grads, strict=True) if grad is not None]
    parameters = [parameter for parameter, _ in pairs]
    traced = _traced.get()
    if traced is not None:
        traced.step(optimizer, parameters, [grad for _, grad in pairs], max_grad_norm)
        return None
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None  # of what was frozen since, or is not used any more
    for parameter, grad in pairs:
        parameter.grad = grad.contiguous()  # fused optimizers read gradients in memory order
    norm = None if max_grad_norm is None else nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return norm


class TracedSteps:
    """
    Stands in for ``optimizer.step`` of Adam and AdamW while a function is traced.

    Learning rates are no part of the trace, which stays right when they change: they are in :attr:`rates`, one for each group
    of parameters, which :meth:`prepare` writes.

    :param optimizers: all that the function may step
    """

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]):
        self._groups: list[Group] = []
        self.link(optimizers)
        self.rates = torch.zeros(len(self._groups), dtype=torch.float64)
        self._places = self.rates.numpy()

    def link(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Take the groups of the same optimizers again, as after loading."""
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]

    def prepare(self) -> None:
        """Write :attr:`rates` for the steps to come."""
        for number, group in enumerate(self._groups):
            self._places[number] = group["lr"]

    @torch.no_grad()
    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        grads: Sequence[Tensor],
        max_grad_norm: float | None,
    ) -> None:
        """
        See :func:`apply_gradients`.

        :raises ValueError: if the optimizer has several groups of parameters
        """
        if len(optimizer.param_groups) > 1:
            raise ValueError("an optimizer with several groups of parameters")
        (group,) = optimizer.param_groups
        number = next(number for number, known in enumerate(self._groups) if known is group)
        states = [optimizer.state[parameter] for parameter in parameters]
        parts = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
        decoupled = bool(group.get("decoupled_weight_decay", False))
        constants = (*group["betas"], group["weight_decay"], decoupled, group["eps"], max_grad_norm)
        grads = [grad.contiguous() for grad in grads]
        operators().adam_.default(list(parameters), grads, *parts, self.rates[number], *constants)


_traced: ContextVar[TracedSteps | None] = ContextVar("_traced", default=None)


@contextmanager
def traceable(steps: TracedSteps) -> Iterator[None]:
    """Inside, optimizer steps are plain operations; see :class:`TracedSteps`."""
    token = _traced.set(steps)
    try:
        yield
    finally:
        _traced.reset(token)


def can_trace(optimizer: torch.optim.Optimizer) -> bool:
    """Whether :class:`TracedSteps` can stand in for this optimizer."""
    unknown = ("amsgrad", "maximize", "differentiable", "capturable")
    plain = not any(group.get(name) for group in optimizer.param_groups for name in unknown)
    return plain and len(optimizer.param_groups) == 1 and type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)


@torch.no_grad()
def create_moments(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Make what Adam makes in its first step, where it is missing: a trace can only use tensors that there are."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if not optimizer.state[parameter]:
                    moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                    optimizer.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **moments}
