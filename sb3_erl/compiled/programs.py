"""
Functions of tensors as compiled programs: a whole update is traced once, as one list of operations, and translated as one.

The function is the one that runs without a compiler and that becomes a CUDA graph on a GPU (``learners/graphs.py``); there is
no second version of any update.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from sb3_erl.compiled.gradients import TracedSteps, create_moments, traceable
from sb3_erl.compiled.operators import keep_soft_updates_whole, use_faster_products

Compiler = Callable[[GraphModule, list[Tensor]], Callable[..., Sequence[Tensor]]]
"""From a list of operations and examples of its inputs to something that computes the same."""
MOST = 32
"""Programs; where constants change so often that more are needed, compiling does not pay."""


def inductor(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Translate with torch's compiler for graphs; see :data:`Compiler`."""
    import torch._inductor

    with _cacheable():
        return torch._inductor.compile(graph, inputs)  # type: ignore[arg-type]


def _cacheable() -> AbstractContextManager[Any]:
    """Inside, the compiler looks for what it made of the same graph before, which it does only where shapes have a place."""
    try:
        from torch._guards import TracingContext, tracing
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv
    except ImportError:  # a version of torch that has them elsewhere compiles each time
        return nullcontext()
    return tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv())))


def keep_compiled_code() -> None:
    """
    Let torch keep what it compiles in a folder of the user's, ``sb3_erl/inductor`` in the folder for caches; a folder in the
    environment variable ``TORCHINDUCTOR_CACHE_DIR`` has precedence. Torch's own choice is emptied when a machine starts.
    """
    chosen = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    # torch writes its own choice into the variable, too
    is_torchs = chosen.parent == Path(tempfile.gettempdir()) and chosen.name.startswith("torchinductor_")
    if is_torchs or not chosen.name:
        try:
            caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sb3_erl" / "inductor"
            caches.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # a home that cannot be written, or none: torch's own choice stays
            return
        if os.access(caches, os.W_OK):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(caches)


EXCHANGED = "a module puts new tensors in the place of its buffers, into which it has to write, as with copy_"
"""Why an update can be neither traced nor recorded."""


def exchanged(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether some of the tensors are other objects now, which a program or a recording would not see."""
    return any(old is not new for old, new in zip_longest(before, after))


@dataclass
class _Program:
    """
    :param run: the translated function
    :param places: for each input that is no argument its number among the tensors of the state, or the tensor itself
    :param steps: optimizer steps in it
    :param outer: makes the function's result of the tensors that ``run`` returns
    :param tensors: what ``places`` stand for now
    """

    run: Callable[..., Sequence[Tensor]]
    places: list[int | Tensor]
    steps: TracedSteps
    outer: Callable[[Sequence[Tensor]], Any]
    tensors: list[Tensor]


class UpdatePrograms:
    """
    Runs functions of tensors as compiled programs, from the first call on.

    Where something cannot be compiled there is one warning, and functions run as they are from then on.

    :param state: gives the tensors that functions change: parameters, buffers, states of optimizers
    :param optimizers: gives the optimizers that functions use; :func:`~sb3_erl.compiled.gradients.can_trace` is true of all
    :param compiler: translates

    :attr:`problem` is the reason why nothing is compiled any more, ``None`` while updates are compiled.
    """

    def __init__(
        self,
        state: Callable[[], list[Tensor]],
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        compiler: Compiler | None = None,
    ):
        self._state, self._optimizers, self._compiler = state, optimizers, compiler
        self._programs: dict[Hashable, _Program] = {}
        self._addresses: list[int] = []
        self._constants: list[Hashable] = []
        self.problem: str | None = None

    def refresh(self) -> None:
        """Find the tensors again if some were exchanged, as happens when optimizers are loaded."""
        create_moments(self._optimizers())
        state = _storage(self._state())
        addresses, constants = [tensor.data_ptr() for tensor in state], _constants(self._optimizers())
        if constants != self._constants:
            self._programs.clear()
        if addresses != self._addresses:
            for program in self._programs.values():
                self._link(program, state)
        self._addresses, self._constants = addresses, constants

    def _link(self, program: _Program, state: list[Tensor]) -> None:
        program.tensors = [state[place] if isinstance(place, int) else place for place in program.places]
        program.steps.link(self._optimizers())

    def run(self, key: Hashable, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        """
        :param key: names the function and all numbers in it that are no tensors, but for learning rates
        :param function: from tensors to tensors, whose control flow does not depend on values
        :param inputs: tensors, ``None``, and tuples and dicts of them
        :return: what the function returns
        """
        if self.problem is not None:
            return function(*inputs)
        leaves: list[Tensor] = []
        key = (key, _flatten(inputs, leaves))
        program = self._programs.get(key) or self._made(key, function, inputs, leaves)
        if program is None:
            return function(*inputs)
        program.steps.prepare()
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return program.outer(program.run(*program.tensors, *leaves))

    def _made(self, key: Hashable, function: Callable[..., Any], inputs: Any, leaves: list[Tensor]) -> _Program | None:
        """A new program; ``None`` and the state as before where it cannot be made."""
        if len(self._programs) >= MOST:
            self._give_up("constants change too often")
            return None
        self.refresh()
        tensors = self._state()
        state = _storage(tensors)
        before = [tensor.clone() for tensor in state]
        try:
            with torch.random.fork_rng(devices=[]):
                program = self._compiled(function, inputs, leaves, state)
            after = self._state()
        except Exception as error:  # whatever it is, the update itself is not at fault
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            self._give_up(f"{reason}. It needs a C++ compiler such as g++; compile=False is without this warning")
            return None
        finally:
            for tensor, value in zip(_storage(self._state()), before, strict=False):
                tensor.copy_(value)
        if exchanged(tensors, after):
            self._give_up(EXCHANGED)
            return None
        self._programs[key] = program
        return program

    def _compiled(self, function: Callable[..., Any], inputs: Any, leaves: list[Tensor], state: list[Tensor]) -> _Program:
        keep_compiled_code()
        from torch.fx.experimental.proxy_tensor import make_fx  # slow, and asks for that folder

        steps = TracedSteps(self._optimizers())
        shapes: list[Any] = []

        def flat(*arguments: Tensor) -> list[Tensor]:
            found: list[Tensor] = []
            rest = iter(arguments)
            with traceable(steps):
                result = function(*_rebuilt(inputs, rest))
            shapes.append(_outline(result, found))
            return [tensor.detach() for tensor in found]

        graph = make_fx(flat)(*leaves)
        lifted = _lift_constants(graph)
        keep_soft_updates_whole(graph)
        use_faster_products(graph)
        for node in graph.graph.nodes:
            node.meta.clear()  # what the tracer noted there is another compiler's business
        graph.recompile()
        numbers = {_address(tensor): number for number, tensor in reversed([*enumerate(state)])}
        places: list[int | Tensor] = [numbers.get(_address(tensor), tensor) for tensor in lifted]
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            examples = [*(state[place] if isinstance(place, int) else place for place in places), *leaves]
            run = (self._compiler or inductor)(graph, examples)
        outline = shapes[-1]
        program = _Program(run, places, steps, lambda tensors: _refilled(outline, iter(tensors)), [])
        self._link(program, state)
        return program

    def _give_up(self, why: str) -> None:
        self.problem = why
        self._programs.clear()
        warnings.warn(f"updates are not compiled, which is slower: {why}", stacklevel=2)


def _constants(optimizers: Sequence[torch.optim.Optimizer]) -> list[Hashable]:
    """What a program holds of its optimizers, also which parameters learn; the learning rate is no part of it."""
    names = ("betas", "eps", "weight_decay")
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [(*map(group.get, names), *(parameter.requires_grad for parameter in group["params"])) for group in groups]


def _storage(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same memory as tensors that have nothing to do with autograd; what ``detach`` gives are views of parameters."""
    return [tensor.data for tensor in tensors]


def _address(tensor: Tensor) -> Hashable:
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype) if tensor.numel() else id(tensor)


def _lift_constants(graph: GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a traced function found outside of its arguments; returns them in their order."""
    nodes = graph.graph
    lifted: list[Tensor] = []
    inputs: dict[Hashable, torch.fx.Node] = {}
    first = next(iter(nodes.nodes))
    for node in list(nodes.nodes):
        if node.op != "get_attr":
            continue
        (tensor,) = _storage([getattr(graph, node.target)])
        if _address(tensor) not in inputs:
            with nodes.inserting_before(first):
                place = inputs[_address(tensor)] = nodes.placeholder(f"lifted_{len(lifted)}")
            place.meta["val"] = tensor
            lifted.append(tensor)
        node.replace_all_uses_with(inputs[_address(tensor)])
        nodes.erase_node(node)
    for name in [*dict(graph.named_parameters()), *dict(graph.named_buffers())]:
        delattr(graph, name)  # or each is an input for the second time, and none is written where it is
    return lifted


def _flatten(value: Any, leaves: list[Tensor]) -> Hashable:
    """Collect the tensors of a nest of tuples and dicts; returns what programs depend on: structure, shapes and types."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return value.shape, value.dtype
    if isinstance(value, dict):
        return tuple([(name, _flatten(part, leaves)) for name, part in value.items()])
    return tuple([_flatten(part, leaves) for part in value]) if isinstance(value, tuple) else value


def _rebuilt(value: Any, tensors: Any) -> Any:
    """A nest of tuples and dicts with other tensors."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {name: _rebuilt(part, tensors) for name, part in value.items()}
    if not isinstance(value, tuple):
        return value
    parts = [_rebuilt(part, tensors) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def _outline(value: Any, tensors: list[Tensor]) -> Any:
    """A nest of dicts and tuples with numbers in place of its tensors, which are collected."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return len(tensors) - 1
    if isinstance(value, dict):
        return {name: _outline(part, tensors) for name, part in value.items()}
    parts = [_outline(part, tensors) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def _refilled(outline: Any, tensors: Any) -> Any:
    """The opposite of :func:`_outline`."""
    if isinstance(outline, int):
        return next(tensors)
    if isinstance(outline, dict):
        return {name: _refilled(part, tensors) for name, part in outline.items()}
    parts = [_refilled(part, tensors) for part in outline]
    return type(outline)(*parts) if hasattr(outline, "_fields") else tuple(parts)
