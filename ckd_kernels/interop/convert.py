"""``convert(model)``: the neurons of a model that we know, on our kernels, in place."""

from __future__ import annotations

import torch
from torch import nn

from ..arguments import check_flag
from .adopt import PREFIX, Adopted, Unsupported, adopt
from .graph import consumers
from .paper import is_paper_neuron, plan_paper_neuron
from .report import ConversionReport, Entry
from .snntorch import is_snntorch_neuron
from .spikingjelly import MultiStepNode, is_spikingjelly_neuron, plan_neuron, plan_norm
from .unrecognised import norms_apart, unfused_norms, unrecognised_neurons

__all__ = ["convert"]


def convert(model: nn.Module, *, fuse: bool = False, strict: bool = False) -> ConversionReport:
    """Puts the spiking neurons of an existing model on our kernels, in place.

    Converted are SpikingJelly's ``IFNode``, ``LIFNode`` and ``ParametricLIFNode`` in multi-step mode (2.0.0 and
    0.0.0.0.14), their forerunners ``clock_driven.neuron.MultiStepIFNode``, ``MultiStepLIFNode`` and
    ``MultiStepParametricLIFNode`` (0.0.0.0.12 and 0.0.0.0.14), and neurons of the CKDSNN paper's shape (``LIFSpike``
    over ``[B, T, ...]``), which are run once on a small input to see that they compute what we think.  For snnTorch,
    whose neurons take one time step a call, see :class:`ckd_kernels.MultiStep`.

    A converted module stays the object that it was, with another ``forward``: parameters, membrane potential, hooks,
    ``state_dict``, optimisers, DDP and SpikingJelly's ``functional`` see no difference, and the model may be in the
    middle of a sequence.  All is decided before anything is changed.  What computes differently: state and arithmetic
    are float32 whatever the input (SpikingJelly computes in bfloat16 under autocast), gradients are rounded
    differently, and ParametricLIFNode divides by ``tau`` where SpikingJelly multiplies by ``1/tau``.  The memory format
    is the model's own: ``model.to(memory_format=torch.channels_last)``, before or after, holds through the neurons.

    Args:
        model: any module; single-step neurons, neurons that we do not know and options that we do not have are left
            alone, and reported: what is neither known nor PyTorch's own, and looks like a neuron by its name, its
            class's or that of the file it comes from.
        fuse: also let the neurons compute the batch normalisation before them, with the residual added in between
            (SpikingJelly's ``layer.BatchNorm*d`` in multi-step mode and ``ThresholdDependentBatchNorm*d``), where the
            model's code shows that a normalisation's output goes to nobody else.  Normalisation is then rounded
            differently, so that a potential within rounding of the threshold may fire differently.  Not under
            `torch.compile`, where the two stay apart.  All other batch normalisation is reported as left alone.
        strict: raise where something is left alone, but for normalisation whose output is no neuron's input.

    Returns:
        A :class:`ConversionReport`: what, where, and why not.

    Raises:
        TypeError: ``model`` is no nn.Module, or a scripted one (convert before `torch.jit.script`); ``fuse`` or
            ``strict`` is no bool.
        ValueError: ``strict=True`` and something would be left alone; the model is untouched.

    Example:
        >>> from torch import nn
        >>> from ckd_kernels import convert
        >>> report = convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        >>> len(report.converted), len(report.left_alone)
        (0, 0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is scripted, and its code cannot be changed; convert it before torch.jit.script")
    check_flag("fuse", fuse)
    check_flag("strict", strict)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)

    fronts: dict[nn.Module, type[Adopted]] = {}
    reasons: dict[nn.Module, str] = {}
    for module in names:
        try:
            front = _plan(module)
        except Unsupported as reason:
            reasons[module] = str(reason)
        else:
            if front is not None:
                fronts[module] = front
    results = {module: PREFIX + type(module).__name__ for module in fronts}
    ours = {m for m in names if isinstance(m, Adopted) or type(m).__module__.startswith("ckd_kernels.")}
    apart: dict[nn.Module, str] = {}
    if fuse:
        _plan_norms(model, names, fronts, results, reasons)
        reasons |= unfused_norms(names)
        apart = norms_apart(names, {*fronts, *reasons, *ours})
    reasons |= unrecognised_neurons(names, {*fronts, *reasons, *ours})
    objections, reasons = len(reasons), {**reasons, **apart}

    entries = []
    for module, where in names.items():
        if module in fronts or module in reasons:
            text = ", ".join(where)
            entries.append(Entry(text, type(module).__name__, results.get(module), reasons.get(module, "")))
    report = ConversionReport(tuple(entries))
    if strict and objections:
        raise ValueError(f"strict=True, and not everything can be converted; nothing was:\n{report}")
    for module, front in fronts.items():
        adopt(module, front)
    return report


def _plan(module: nn.Module) -> type[Adopted] | None:
    """What to put before a neuron's class; None for what is no neuron or ours already; or Unsupported."""
    if isinstance(module, Adopted):
        return None
    if isinstance(module, torch.jit.ScriptModule):
        raise Unsupported("it is scripted; convert before torch.jit.script")
    if is_spikingjelly_neuron(module):
        return plan_neuron(module)
    if is_paper_neuron(module):
        return plan_paper_neuron(module)
    if is_snntorch_neuron(module):
        raise Unsupported("snnTorch's neurons take one time step a call; wrap it: ckd_kernels.MultiStep(neuron)")
    return None


def _plan_norms(
    model: nn.Module,
    names: dict[nn.Module, list[str]],
    fronts: dict[nn.Module, type[Adopted]],
    results: dict[nn.Module, str],
    reasons: dict[nn.Module, str],
) -> None:
    """Adds the normalisations whose neuron is, or will be, on our kernels."""
    neurons = {m for m in names if isinstance(m, MultiStepNode) or issubclass(fronts.get(m, object), MultiStepNode)}
    norms = {m: front for m in names if (front := plan_norm(m)) is not None}
    for norm, consumer in consumers(model, set(norms), neurons).items():
        if isinstance(consumer, str):
            reasons[norm] = consumer
        elif len(names[norm]) > 1:
            reasons[norm] = "it is shared, and may normalise for somebody else too"
        else:
            fronts[norm] = norms[norm]
            results[norm] = f"fused into {', '.join(names[consumer])}"
