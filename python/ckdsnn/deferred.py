"""Modules that are imported but not used: their code runs when it is asked for something.

Lightning imports torch._dynamo (and with it SymPy) for the sake of one class, PyTorch's counter of operations (and with
it Triton) for a table that nobody here prints, and TorchMetrics, which imports SciPy and Matplotlib for signals and
plots: together more than half of the time that a command takes to start.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """As `importlib.util.LazyLoader`'s module, but some names have stand-ins, which do not run the module's code."""

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if name in own["__stand_ins__"]:
            return own["__stand_ins__"][name]
        if name.startswith("__") and name.endswith("__"):  # what the import system asks of every module
            raise AttributeError(name)
        return getattr(run(self), name)


class _Path(list[str]):
    """Where a deferred package's modules are. Only an import of one of them looks, and needs the package itself."""

    def __init__(self, package: ModuleType, entries: list[str]) -> None:
        super().__init__(entries)
        self._package = package

    def __iter__(self) -> Iterator[str]:
        run(self._package)
        return super().__iter__()


def run(module: ModuleType) -> ModuleType:
    """The module itself, after its code has run."""
    if type(module) is _Deferred:
        module.__class__ = ModuleType  # type: ignore[assignment]
        own = module.__dict__
        loader = own.pop("__deferred_loader__")
        del own["__stand_ins__"]
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = loader
        if "__path__" in own:
            own["__path__"] = list.copy(own["__path__"])
        loader.exec_module(module)
    return module


def is_deferred(name: str) -> bool:
    """Whether the module of that name is imported, but has not run."""
    return type(sys.modules.get(name)) is _Deferred


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, stand_ins: Mapping[str, Any]) -> None:
        self._loader, self._stand_ins = loader, stand_ins

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        own = module.__dict__
        own |= {"__deferred_loader__": self._loader, "__stand_ins__": self._stand_ins}
        if "__path__" in own:
            own["__path__"] = _Path(module, own["__path__"])
        module.__class__ = _Deferred


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, modules: Mapping[str, Mapping[str, Any]]) -> None:
        self._modules = modules

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules:
            return None
        if isinstance(path, _Path):  # to look for a deferred module does not run its package
            path = list.copy(path)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._modules[name])
        return spec


def _later(module: str, name: str) -> Callable[..., Any]:
    """The function `name` of `module`, whose code runs when the function is called."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(run(importlib.import_module(module)), name)(*arguments, **options)

    return call


class _IsCompiled(type):
    def __instancecheck__(cls, thing: object) -> bool:
        return not is_deferred("torch._dynamo") and isinstance(thing, _dynamo().OptimizedModule)


class _OptimizedModule(metaclass=_IsCompiled):
    """What Lightning asks its modules for: nothing is one before the compiler has run."""


def _dynamo() -> Any:
    return sys.modules["torch._dynamo"]


def _disable(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
    """Keeps the compiler out of `function`, once there is one."""
    disabled: list[Callable[..., Any]] = []

    def call(*inputs: Any, **named: Any) -> Any:
        if is_deferred("torch._dynamo"):
            return function(*inputs, **named)
        if not disabled:
            disabled.append(_dynamo().disable(function, *arguments, **options))
        return disabled[0](*inputs, **named)

    return call


def _graph_break(*message: Any) -> None:
    """Where the compiler has not run, there is no graph."""


FLOPS = "torch.utils.flop_counter"
PLOT = "torchmetrics.utilities.plot"
MODULES: Mapping[str, Mapping[str, Any]] = {
    # Lightning asks for the class, PyTorch's optimisers for the functions.
    "torch._dynamo": {"OptimizedModule": _OptimizedModule, "disable": _disable, "graph_break": _graph_break},
    # Lightning's table of a model asks for it, which nobody prints here.
    FLOPS: {"FlopCounterMode": _later(FLOPS, "FlopCounterMode")},
    # TorchMetrics gives scipy.signal the name `hamming`, where it has none, for the sake of an old library.
    "scipy": {},
    "scipy.signal": {"hamming": _later("scipy.signal.windows", "hamming")},
    PLOT: {"_AX_TYPE": object, "_CMAP_TYPE": object, "_PLOT_OUT_TYPE": tuple[object, object]}
    | {name: _later(PLOT, name) for name in ("plot_confusion_matrix", "plot_curve", "plot_single_or_multi_val")},
}


def install() -> None:
    """Defers what is not imported yet, in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(MODULES))
