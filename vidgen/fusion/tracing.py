"""Graphs of modules that others wrote, or the reason why there is none.

`torch.fx` runs `forward` once with stand-ins for tensors and writes down what happens to them. Where Python asks a
stand-in something that only a tensor knows it mostly raises, but some answers are silently wrong: `isinstance` is
False, `is None` is False, a `with` block leaves no trace, drawn numbers become constants, and assignments to attributes
happen once instead of at each call. A graph with one of these computes something else than the module, so that each is
turned into an error here, which counts even if the forward catches it; a submodule in which one occurs is then left in
the graph as a call.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.fx.proxy import Attribute, TraceError
from torch.nn.utils.parametrize import is_parametrized

from vidgen.nn.dropout import Dropout
from vidgen.nn.prepack import PackedWeights

_CONTAINERS = (list, dict, set)


class UntraceableError(Exception):
    """`module` cannot be written down as a graph; the message says why."""

    def __init__(self, module: nn.Module, reason: str):
        super().__init__(reason)
        self.module = module
        self.reason = reason


@dataclass
class Trace:
    """What became of a module's forward.

    graph: its placeholders are `inputs`; other arguments have their defaults.
    inlined: modules whose forward is part of the graph, by path, the root ("") included.
    opaque: path -> why this submodule is a call in the graph though it is made of others.
    """

    graph: Graph
    inputs: tuple[str, ...]
    inlined: dict[str, nn.Module]
    opaque: dict[str, str]


def hooks_of(module: nn.Module) -> str | None:
    """What acts on a module's calls or weights from outside, in words; None if nothing does."""
    if is_parametrized(module):
        return f"its {' and '.join(module.parametrizations)} is parametrized"  # type: ignore[arg-type]
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks):
        return "it has hooks"
    return "its forward was replaced" if "forward" in module.__dict__ else None


def is_layer(module: nn.Module) -> bool:
    """Whether the module is one of vidgen's, or computed by a forward of torch.nn and no container."""
    if isinstance(module, (PackedWeights, Dropout)):
        return True
    # a convolution's forward is in two methods
    methods = (type(module).forward, getattr(type(module), "_conv_forward", type(module).forward))
    of_torch = all(getattr(method, "__module__", "").startswith("torch.nn") for method in methods)
    return of_torch and not isinstance(module, nn.Sequential)


def _wraps_its_calls(module: nn.Module) -> bool:
    """Whether the module's class has a `__call__` of its own around that of torch.nn.Module."""
    return next(kind for kind in type(module).__mro__ if "__call__" in vars(kind)) is not nn.Module


def _asked_by_torch() -> bool:
    """Whether it is PyTorch or this package that calls the method that calls this, not the code that is traced."""
    frame = sys._getframe(2)
    if frame.f_code is torch.is_tensor.__code__ and frame.f_back is not None:
        frame = frame.f_back
    name = frame.f_globals.get("__name__", "")
    return name.split(".")[0] == "torch" or name.startswith("vidgen.fusion")


class _Value(Proxy):
    """A stand-in that tells when it is asked what it cannot know, and writes assignments down."""

    tracer: _Tracer

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # isinstance comes here once it has seen that the stand-in itself is of no such class
        if _asked_by_torch():
            return type(self)
        raise self.tracer.failed("it asks for the type of a traced value")

    def __getattr__(self, name: str) -> Attribute:
        # numpy asks for these before __array__
        return self._as_constant() if name in ("__array_struct__", "__array_interface__") else _Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("tracer", "node"):
            object.__setattr__(self, name, value)
        elif name == "data":
            self.tracer.create_proxy("call_function", setattr, (self, name, value), {})
        else:
            raise self.tracer.failed(f"it assigns to .{name} of a traced value")

    def _as_constant(self, *_args: Any) -> NoReturn:
        raise self.tracer.failed("it makes a Python value of a traced one")

    __int__ = __float__ = __complex__ = __index__ = __len__ = __array__ = _as_constant


class _Attribute(_Value, Attribute):
    """What is asked of a stand-in by name: a method that will be called, or a value itself."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("root", "attr", "_node"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def _surroundings() -> tuple[Any, ...]:
    """What a `with` block may change and a graph does not record."""
    devices = ("cpu", "cuda")
    autocast = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast, torch.get_default_dtype()


def _generators() -> tuple[Any, ...]:
    # the one that all share, which forwards that others wrote may use
    numpy_state = pickle.dumps(np.random.get_state(legacy=False))  # noqa: NPY002
    return random.getstate(), torch.get_rng_state().numpy().tobytes(), numpy_state


class _Tracer(Tracer):
    proxy_buffer_attributes = True

    def __init__(self, inputs: tuple[str, ...], opaque: dict[nn.Module, str]):
        super().__init__()
        self.inputs = inputs
        self.opaque = opaque
        self.inlined: dict[str, nn.Module] = {}
        self.surroundings = _surroundings()
        #: modules whose forward runs, and the first thing that went wrong: the code around it may catch the exception
        self.running: list[nn.Module] = []
        self.failure: UntraceableError | None = None

    def failed(self, reason: str, module: nn.Module | None = None) -> UntraceableError:
        """The error for `module`, by default the one whose forward runs."""
        error = UntraceableError(module or (self.running[-1] if self.running else self.root), reason)
        self.failure = self.failure or error
        return error

    def is_leaf_module(self, module: nn.Module, _path: str) -> bool:
        return is_layer(module) or module in self.opaque

    def call_module(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.is_leaf_module(module, ""):
            if _wraps_its_calls(module):
                # what this __call__ does would be in the graph, and done again by the graph's call of the module
                name = f"{self.path_of_module(module)} ({type(module).__name__})"
                raise self.failed(f"{name} has a __call__ of its own")
            return super().call_module(module, forward, args, kwargs)
        if why := hooks_of(module):
            raise self.failed(why, module)
        self.running.append(module)
        try:
            result = super().call_module(module, forward, args, kwargs)
        except UntraceableError:
            raise
        except Exception as error:
            raise self.failed(_words(error)) from error
        finally:
            self.running.pop()
        self.inlined[self.path_of_module(module)] = module
        return result

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        placeholders = [self.create_proxy("placeholder", name, (), {}) for name in self.inputs]
        return root_fn, [self.root, *placeholders]

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _surroundings() != self.surroundings:
            raise self.failed("it switches gradients or autocast on or off")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor) and not isinstance(a, nn.Parameter):
            known = a in self.tensor_attrs or any(a is buffer for buffer in self.root.buffers())
            if not known:
                raise self.failed("it makes a tensor that does not depend on its input")
        if isinstance(a, (dict, list)) and type(a) not in (dict, list, immutable_dict, immutable_list):
            # a graph would give back a plain dict or list
            raise self.failed(f"it uses a {type(a).__name__}")
        return super().create_arg(a)

    def to_bool(self, obj: Proxy) -> bool:
        raise self.failed("its control flow depends on the values of tensors")

    def iter(self, obj: Proxy) -> Iterator[Any]:
        raise self.failed("it iterates over a traced value")

    def proxy(self, node: Node) -> Proxy:
        return _Value(node, self)


def _words(error: Exception) -> str:
    first_line = (str(error) or type(error).__name__).splitlines()[0]
    return first_line if isinstance(error, TraceError) else f"{type(error).__name__}: {first_line}"


def _state(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes, and what stands in those that can be changed in place."""
    return {name: copy.copy(value) if isinstance(value, _CONTAINERS) else value for name, value in vars(module).items()}


def _same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    if type(before) is not type(after) or not isinstance(before, _CONTAINERS) or len(before) != len(after):
        return False
    if isinstance(before, dict):
        return all(key in after and after[key] is value for key, value in before.items())
    if isinstance(before, set):
        return before == after
    return all(one is other for one, other in zip(before, after, strict=True))


def _restore_changed(states: list[tuple[nn.Module, dict[str, Any]]]) -> nn.Module | None:
    """Undoes what tracing did to modules' attributes; returns the first module that was changed."""
    changed = None
    for module, before in states:
        now = vars(module)
        if before.keys() == now.keys() and all(_same(value, now[name]) for name, value in before.items()):
            continue
        changed = changed or module
        for name in [name for name in now if name not in before]:
            del now[name]
        for name, value in before.items():
            if isinstance(value, _CONTAINERS) and type(now.get(name)) is type(value):
                # other references to the container stay good
                container: Any = now[name]
                container.clear()
                add = container.extend if hasattr(container, "extend") else container.update
                add(value)
            else:
                now[name] = value
    return changed


def _trace_once(root: nn.Module, inputs: tuple[str, ...], opaque: dict[nn.Module, str]) -> _Tracer:
    tracer = _Tracer(inputs, opaque)
    states = [(module, _state(module)) for module in root.modules()]
    generators = _generators()
    failure = None
    try:
        tracer.trace(root)
    except UntraceableError as error:
        failure = error
    except Exception as error:
        failure = UntraceableError(root, _words(error))
    failure = tracer.failure or failure
    changed = _restore_changed(states)
    if failure is None and changed is not None:
        failure = UntraceableError(changed, "its forward changes its own attributes")
    if _generators() != generators:
        random.setstate(generators[0])
        torch.set_rng_state(torch.frombuffer(bytearray(generators[1]), dtype=torch.uint8))
        np.random.set_state(pickle.loads(generators[2]))  # noqa: NPY002
        failure = failure or UntraceableError(root, "its forward draws random numbers")
    if failure is not None:
        raise failure
    return tracer


def trace(root: nn.Module) -> Trace:
    """The graph of `root`, with as few submodules left as calls as can be.

    Raises:
        UntraceableError: it is root's own forward that cannot be written down.
    """
    if isinstance(root, torch.jit.ScriptModule):
        raise UntraceableError(root, "it is compiled by TorchScript")
    if "forward" in vars(root):
        raise UntraceableError(root, "its forward was replaced")
    forward = type(root).forward
    if not inspect.isfunction(forward):
        raise UntraceableError(root, "its forward is not a Python function")
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    required = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    required = [p for p in required if p.kind is not p.VAR_KEYWORD]
    if not required or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise UntraceableError(root, "its forward has no required arguments, or some by name only")
    inputs = tuple(p.name for p in required)
    opaque: dict[nn.Module, str] = {}
    while True:
        try:
            tracer = _trace_once(root, inputs, opaque)
        except UntraceableError as error:
            if error.module is root or error.module in opaque:
                raise UntraceableError(root, error.reason) from error
            opaque[error.module] = error.reason
            continue
        tracer.graph.lint()
        paths = {module: path for path, module in root.named_modules()}
        # a module may be opaque because one was that is called only there
        called = {root.get_submodule(str(node.target)) for node in tracer.graph.nodes if node.op == "call_module"}
        reasons = {paths[module]: reason for module, reason in opaque.items() if module in called}
        return Trace(tracer.graph, inputs, {"": root, **tracer.inlined}, reasons)
