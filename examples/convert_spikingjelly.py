"""Converts a SpikingJelly network to the fused kernels, shows that its spikes stay the same, and trains it a few steps.

python examples/convert_spikingjelly.py
"""

import argparse
import copy
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ckd_kernels

CLASSES, SIDE = 10, 16


def network(width: int) -> nn.Module:
    """A convolutional network of SpikingJelly's layers and neurons, [T, B, 1, 16, 16] -> [T, B, 10]."""
    try:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate
    except ImportError as error:
        raise SystemExit(
            f"this example needs SpikingJelly ({error}): pip install spikingjelly, which asks for torchvision; or "
            "pip install --no-deps 'spikingjelly==2.0.0' loguru (Python 3.11 or later)"
        ) from None
    options = {"tau": 2.0, "detach_reset": True, "surrogate_function": surrogate.ATan()}
    net = nn.Sequential(
        layer.Conv2d(1, width, 3, padding=1, bias=False),
        layer.BatchNorm2d(width),
        neuron.LIFNode(**options),
        layer.MaxPool2d(2),
        layer.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        layer.BatchNorm2d(2 * width),
        neuron.LIFNode(**options),
        layer.AdaptiveAvgPool2d(1),
        layer.Flatten(),
        layer.Linear(2 * width, CLASSES),
    )
    functional.set_step_mode(net, "m")  # conversion is of the multi-step mode
    return net


def reset(net: nn.Module) -> None:
    """A converted neuron keeps its membrane potential as before, and forgets it as before."""
    from spikingjelly.activation_based import functional

    functional.reset_net(net)


def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar, whose row is the class."""
    target = torch.randint(0, CLASSES, (size,), generator=generator)
    images = 0.3 * torch.randn(size, 1, SIDE, SIDE, generator=generator)
    images[torch.arange(size), 0, target + 3] += 1.5
    return images, target


def train(net: nn.Module, args: argparse.Namespace) -> list[float]:
    """The losses of a training in SpikingJelly's own words; nothing in here knows of the conversion."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(args.updates):
        images, target = (part.to(args.device) for part in batch(args.batch, generator))
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images.expand(args.steps, *images.shape)).mean(0), target)
        loss.backward()
        optimizer.step()
        reset(net)
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def main(argv: list[str] | None = None) -> tuple[list[float], list[float]]:
    """Returns the losses of the network as it was and of the converted one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = {"updates": 30, "batch": 64, "width": 32, "steps": 4, "seed": 0}
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    before = network(args.width).to(args.device)
    after = copy.deepcopy(before)
    # fuse=True: the neurons compute the batch normalisation before them, too.
    print(ckd_kernels.convert(after, fuse=True))

    plain = copy.deepcopy(before)
    ckd_kernels.convert(plain)  # without fuse no bit of a spike changes
    images, _ = batch(args.batch, torch.Generator().manual_seed(args.seed))
    frames = images.to(args.device).expand(args.steps, *images.shape)
    spikes = [nn.Sequential(*net[:3])(frames) for net in (copy.deepcopy(before), plain)]
    print(f"spikes of the first neuron equal: {torch.equal(*spikes)}, rate {spikes[0].mean().item():.3f}")

    curves = []
    for name, net in (("SpikingJelly", before), ("converted", after)):
        began = time.perf_counter()
        curves.append(train(net, args))
        seconds = time.perf_counter() - began
        print(f"{name}: loss {curves[-1][0]:.3f} -> {curves[-1][-1]:.3f}, {args.updates / seconds:.1f} updates/s")
    return curves[0], curves[1]


if __name__ == "__main__":
    main()
