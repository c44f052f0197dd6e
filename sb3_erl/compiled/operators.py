"""
Operators of compiled programs that are better not translated.

Matrix products go to the faster one of the two libraries that torch has for them on a CPU. Optimizer steps and soft updates
are torch's own kernels for many tensors: code for each tensor would be no faster, and take most of the compiler's time.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

aten = torch.ops.aten
SMALLEST = 16
"""Rows, columns and terms of the smallest product that is worth another library."""
FEWEST = 2**18
"""Multiplications of the smallest product that is worth it."""
MOST_TOWERS = 4
"""Products in a stack that are taken one by one."""


@cache
def prefers_onednn() -> bool:
    """
    Whether float32 products are faster by oneDNN than by MKL, which torch calls.

    MKL leaves processors of AMD with AVX512 at half their speed (a Zen 5: 108 GFLOP/s, oneDNN 220 to 240). The machine
    is asked and nothing is measured, so that a run on the same machine always computes the same numbers.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        return False
    path = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (path.read_text() if path.is_file() else platform.processor())


@cache
def operators() -> Any:
    """
    :return: ``linear``, oneDNN's ``x @ w.t() + b``, which torch's compiler takes for one with fixed weights under its own
        name; ``adam_``, a step of torch's fused Adam or AdamW with clipped gradients; and ``lerp_``, a soft update
    """
    library = torch.library.Library("sb3_erl", "FRAGMENT")
    library.define("linear(Tensor x, Tensor w, Tensor? b) -> Tensor")
    library.define(
        "adam_(Tensor(a!)[] parameters, Tensor[] grads, Tensor(b!)[] means, Tensor(c!)[] squares, Tensor(d!)[] counts, "
        "Tensor rate, float first, float second, float decay, bool decoupled, float epsilon, float? max_norm) -> ()"
    )
    library.define("lerp_(Tensor(a!)[] targets, Tensor[] sources, float weight) -> ()")
    kernel = torch.ops.mkldnn._linear_pointwise.default
    library.impl("linear", lambda x, w, b: kernel(x, w, b, "none", [], ""), "CPU")
    library.impl("linear", lambda x, w, b: x.new_empty(x.shape[0], w.shape[0]), "Meta")
    library.impl("adam_", _adam, "CPU")
    library.impl("lerp_", _lerp, "CPU")
    for name in ("adam_", "lerp_"):
        library.impl(name, lambda *_: None, "Meta")
    _libraries.append(library)
    return torch.ops.sb3_erl


_libraries: list[Any] = []
"""Operators live as long as the object that defined them."""


def _lerp(targets: list[Tensor], sources: list[Tensor], weight: float) -> None:
    torch._foreach_lerp_(targets, sources, weight)


def _adam(
    parameters: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    counts: list[Tensor],
    rate: Tensor,
    first: float,
    second: float,
    decay: float,
    decoupled: bool,
    epsilon: float,
    max_norm: float | None,
) -> None:
    if max_norm is not None:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        grads = list(torch._foreach_mul(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0)))
    torch._foreach_add_(counts, 1)
    step = torch._fused_adamw_ if decoupled else torch._fused_adam_
    constants: dict[str, Any] = {"beta1": first, "beta2": second, "weight_decay": decay, "eps": epsilon}
    constants |= {"amsgrad": False, "maximize": False}
    step(parameters, grads, means, squares, [], counts, lr=rate.item(), **constants)


def keep_soft_updates_whole(module: GraphModule) -> None:
    """Let soft updates in a traced function be one operator each."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is aten._foreach_lerp_.Scalar:
            with graph.inserting_before(node):
                _call(graph, operators().lerp_.default, *node.args)
            graph.erase_node(node)


def use_faster_products(module: GraphModule) -> None:
    """
    Replace products in a traced function where another library is faster; the results differ in their last digits.

    :param module: its nodes have examples of their values, as the tracer leaves them
    """
    if not prefers_onednn():
        return
    graph = module.graph
    for node in graph.nodes:
        if isinstance(value := node.meta.get("val"), Tensor):  # shapes and strides are enough
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    for node in list(graph.nodes):
        if node.target in _REPLACED:
            *bias, a, b = node.args
            place = node.kwargs.get("out")
            if len(node.kwargs) > (place is not None) or not _is_worth_it(_value(a), _value(b)):
                continue
            with graph.inserting_before(node):
                new = _REPLACED[node.target](graph, *bias, a, b)
                if place is not None:
                    new = _call(graph, aten.copy_.default, place, new)
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def _value(node: Any) -> Tensor:
    return node.meta["val"]


def _is_worth_it(a: Tensor, b: Tensor) -> bool:
    *towers, rows, terms = a.shape
    sizes = rows, terms, b.shape[-1]
    is_known = a.dtype == torch.float32 and all(n <= MOST_TOWERS for n in towers)
    return is_known and min(sizes) >= SMALLEST and rows * terms * sizes[2] >= FEWEST


def _transposed(graph: Graph, node: Node) -> Node:
    if node.target is aten.t.default:
        return node.args[0]  # type: ignore[return-value]
    return _call(graph, aten.transpose.int, node, -2, -1)


def _call(graph: Graph, target: Callable[..., Any], *arguments: Any) -> Node:
    node = graph.call_function(target, arguments)
    node.meta["val"] = target(*map_arg(arguments, _value))
    return node


def _linear(graph: Graph, x: Node, w: Node, bias: Node | None = None) -> Node:
    return _call(graph, operators().linear.default, _dense(graph, x), _dense(graph, w), bias)


def _dense(graph: Graph, node: Node) -> Node:
    """A copy of what has gaps between its rows, where oneDNN falls back to something a thousand times slower."""
    value = _value(node)
    if value.is_contiguous() or value.t().is_contiguous():
        return node
    copied = graph.call_function(aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
    copied.meta["val"] = value.contiguous()
    return copied


def _mm(graph: Graph, a: Node, b: Node) -> Node:
    return _linear(graph, a, _transposed(graph, b))


def _addmm(graph: Graph, bias: Node, a: Node, b: Node) -> Node:
    if _value(bias).dim() == 1:
        return _linear(graph, a, _transposed(graph, b), bias)
    return _call(graph, aten.add.Tensor, _mm(graph, a, b), bias)


def _bmm(graph: Graph, a: Node, b: Node, bias: Node | None = None) -> Node:
    columns = _transposed(graph, b)
    parts = []
    for tower in range(len(_value(a))):
        row = None if bias is None else _call(graph, aten.select.int, _call(graph, aten.select.int, bias, 0, tower), 0, 0)
        x, w = (_call(graph, aten.select.int, each, 0, tower) for each in (a, columns))
        parts.append(_linear(graph, x, w, row))
    return _call(graph, aten.stack.default, parts)


def _baddbmm(graph: Graph, bias: Node, a: Node, b: Node) -> Node:
    if _value(bias).dim() == 3 and _value(bias).shape[1] == 1:
        return _bmm(graph, a, b, bias)
    return _call(graph, aten.add.Tensor, _bmm(graph, a, b), bias)


def _into(replacement: Callable[..., Node]) -> Callable[..., Node]:
    """The same for a product that writes into its first argument."""

    def replace(graph: Graph, place: Node, a: Node, b: Node) -> Node:
        return _call(graph, aten.copy_.default, place, replacement(graph, place, a, b))

    return replace


_REPLACED: dict[Any, Callable[..., Node]] = {
    aten.mm.default: _mm,
    aten.mm.out: _mm,
    aten.addmm.default: _addmm,
    aten.addmm_.default: _into(_addmm),
    aten.bmm.default: _bmm,
    aten.baddbmm.default: _baddbmm,
    aten.baddbmm_.default: _into(_baddbmm),
}
