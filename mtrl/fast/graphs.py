"""An update's functions as graphs: each is traced once, compiled by torch's inductor, and from then on is one call.

A graph holds forward and backward pass together, so that between two matrix products there is one loop over the
numbers, and no Python. What is traced is what would have run: any network and any loss that is a function of its
arguments. An operation that depends on a number in an argument is an error, and so is another tensor that changes in
place; what a network keeps in Python (a counter, a flag) stays as it was at the trace. A graph is of the shapes that
it was traced with; others are traced anew.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from mtrl.config import ConfigError

ATTEMPTS = 3  # a signal that stops the run, or has stopped one before, ends the compiler, too
Versions = list[tuple[Tensor, int]]
MOST = 32  # graphs of one agent: more are a sign of shapes that never repeat


class Graphs:
    """Functions of tensors, called by graph.

    Args are tensors, numbers and None, in nests of tuples, dictionaries and dataclasses; so are results. A result's
    tensors have no history.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[Callable[..., Any], Any, Versions]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy compiles its own."""
        return Graphs, ()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``, traced in the caller's grad mode. What is not in ``args`` has to be the same for every
        call with an equal function.

        Raises:
            ConfigError: the function cannot be traced, or its graph not be compiled; a tensor of its own changed.
            OSError: the compiler could not write.
        """
        given: list[Tensor] = []
        key = (function, torch.is_grad_enabled(), layout(args, given))
        if key not in self._graphs:
            self._graphs[key] = self._compiled(function, args, given)
        run, result, constants = self._graphs[key]
        require_unchanged(constants)
        with torch.no_grad():
            found = iter(run(*given))
        return mapped(result, lambda _: next(found))

    def _compiled(
        self, function: Callable[..., Any], args: Any, given: list[Tensor]
    ) -> tuple[Callable[..., Any], Any, Versions]:
        import torch._inductor.config  # seconds

        if len(self._graphs) == MOST:
            raise ConfigError(
                f"agent.kernels: 'compiled' failed, use torch: every update has other shapes than the {MOST} that have "
                "been compiled"
            )
        result = None

        def flat(*tensors: Tensor) -> list[Tensor]:
            nonlocal result
            left = iter(tensors)
            made: list[Tensor] = []
            result = function(*mapped(args, lambda _: next(left)))
            mapped(result, made.append)
            return made

        examples = [tensor.detach() for tensor in given]

        # on a processor what lies between the kernels is C++, too: a tenth of an update's time at mt10_fast's size;
        # before torch 2.13 its cache does not tell graphs of other numbers of threads apart
        on_cpu = all(tensor.device.type == "cpu" for tensor in given)
        settings = torch._inductor.config.patch(
            {"cpp_wrapper": on_cpu, "cpp.threads": torch.get_num_threads()}
        )

        def eager() -> None:
            with torch.random.fork_rng(devices=[]):
                flat(*(tensor.clone() for tensor in examples))

        def compiled() -> tuple[Callable[..., Any], Versions]:
            # by numbers that are not there: none can become part of the graph
            graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples)
            constants = own_tensors(graph)
            with torch.no_grad(), settings:
                run = torch._inductor.standalone_compile(
                    graph, [*examples], dynamic_shapes="from_example_inputs"
                )
            return run, constants

        try:
            eager()  # what a network makes at its first call is made of real numbers
            for left in reversed(range(ATTEMPTS)):
                try:
                    run, constants = compiled()
                    break
                except Exception as error:
                    if left == 0:
                        raise
                    forget(error)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # a full disk, say: no fault of the settings
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"agent.kernels: 'compiled' failed, use torch: {reason}") from error
        if constants:
            eager()
            require_unchanged(constants)
        return run, mapped(result, lambda _: PLACE), constants


PLACE = torch.empty(0)  # where a result has a tensor


def own_tensors(graph: torch.fx.GraphModule) -> Versions:
    """The tensors that a graph has from elsewhere than its arguments, with their versions: these count changes."""
    found = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    return [(tensor, tensor._version) for tensor in found if isinstance(tensor, Tensor)]


def require_unchanged(constants: Versions) -> None:
    """Raise ConfigError if one changed in place: the graph goes on with what it was."""
    if any(tensor._version != version for tensor, version in constants):
        raise ConfigError(
            "agent.kernels: 'compiled' failed, use torch: the network or the loss changes a tensor that is no parameter"
        )


def forget(error: Exception) -> None:
    """Remove what the compiler left when it was ended: inductor's memory of it, and a file that cannot be loaded."""
    from torch._inductor.codecache import cache_dir  # type: ignore[attr-defined]
    from torch._inductor.utils import clear_caches

    clear_caches()
    folder = Path(cache_dir())
    for library in re.findall(r"/\S+?\.so\b", str(error)):
        if Path(library).is_relative_to(folder):
            Path(library).unlink(missing_ok=True)


def layout(value: Any, found: list[Tensor]) -> Hashable:
    """What a graph depends on of its arguments; their tensors, in order, go to ``found``."""
    if isinstance(value, Tensor):
        found.append(value)
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, dict):
        return tuple(value), tuple(layout(item, found) for item in value.values())
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        return type(value), tuple(layout(item, found) for item in value)
    if dataclasses.is_dataclass(value):
        return type(value), tuple(layout(getattr(value, f.name), found) for f in dataclasses.fields(value))
    return type(value), repr(value) if isinstance(
        value, float
    ) else value  # 1, 1.0 and True are equal, as are ±0


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nest with its tensors changed, in the order of :func:`layout`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: mapped(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        )
    return value


@dataclass(frozen=True)
class Traced:
    """A function of tensors, equal to another of the same origin: what :class:`Graphs` knows it by.

    Attributes:
        body: called as ``body(*of, *args)``.
        of: what it is made of, compared by identity or value.
    """

    body: Callable[..., Any]
    of: tuple[Any, ...]

    def __call__(self, *args: Any) -> Any:
        return self.body(*self.of, *args)
