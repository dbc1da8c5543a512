"""A spiking ResNet on CIFAR-10 in one file, with PyTorch and `ckd_kernels` alone.

python examples/cifar_single_file.py --root DATA --graph  # https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz
python examples/cifar_single_file.py --fake --device cpu --samples 100 --batch 20 --width 8
"""

import argparse
import math
import pickle
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ckd_kernels import layers


class Stored:  # an array as a pickle holds it: bytes, which nothing interprets
    def __init__(self, *_: object) -> None: ...
    def __setstate__(self, state: tuple) -> None:
        self.pixels = state[-1]


class Reader(pickle.Unpickler):  # whatever but arrays a file asks to be imported and called is refused
    def find_class(self, module: str, name: str) -> type:
        module = module.replace("numpy._core", "numpy.core")  # as NumPy 2 writes it
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}:
            return Stored
        raise ValueError(f"it asks for {module}.{name}")


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one of the official Python files."""
    try:
        with path.open("rb") as file:
            content = Reader(file, encoding="bytes").load()
        images = torch.frombuffer(bytearray(content[b"data"].pixels), dtype=torch.uint8).view(-1, 3, 32, 32)
        labels = F.one_hot(torch.tensor(content[b"labels"]), 10).argmax(1)  # refuses what is no class
        return images[: len(labels)], labels[: len(images)]
    except Exception as error:
        raise SystemExit(f"{path} is no file of CIFAR-10 ({error}): mend --root (see --help), or give --fake") from None


def load(args: argparse.Namespace) -> tuple[Tensor, ...]:  # images and labels, test images and test labels
    if args.fake:
        labels = torch.arange(args.samples) % 10
        noise, colours = torch.rand(args.samples, 3, 32, 32), torch.rand(10, 3, 1, 1)
        return ((128 * noise + 127 * colours[labels]).byte(), labels) * 2
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    *files, test = [read(args.root / "cifar-10-batches-py" / name) for name in names]
    return *(torch.cat(tensors)[: args.samples] for tensors in zip(*files, strict=True)), *test


def augmented(images: Tensor) -> Tensor:
    """Random shifts by up to 4 pixels and flips, of uint8 [B, 3, 32, 32] on its device."""
    count, to = len(images), {"device": images.device}
    corners = torch.randint(0, 9, (count, 2), **to)
    rows, columns = (corners[:, i : i + 1] + torch.arange(32, **to) for i in (0, 1))
    columns = torch.where(torch.rand(count, 1, **to) < 0.5, columns.flip(1), columns)
    places = torch.arange(count, **to)[:, None, None], slice(None), rows[:, :, None], columns[:, None, :]
    return F.pad(images, (4, 4, 4, 4))[places].permute(0, 3, 1, 2)


class Layer(nn.Module):  # a convolution, and one kernel for normalisation, residual and neuron
    def __init__(self, before: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.fire = layers.BatchNormLIF(channels)  # the neuron is Neuron.paper() unless another one is given

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # which knows nothing of time
        return self.fire(y, x if x.shape == y.shape else None)


class SpikingResNet(nn.Module):  # uint8 [B, 3, 32, 32] -> logits [B, 10]
    def __init__(self, w: int, steps: int) -> None:
        super().__init__()
        self.steps, self.stem, self.fire = steps, nn.Conv2d(3, w, 3, 1, 1, bias=False), layers.BatchNormLIF(w)
        shapes = (w, w), (w, w), (w, 2 * w, 2), (2 * w, 2 * w), (2 * w, 4 * w, 2), (4 * w, 4 * w)
        self.layers, self.head = nn.Sequential(*(Layer(*shape) for shape in shapes)), nn.Linear(4 * w, 10)

    def forward(self, images: Tensor) -> Tensor:
        frame = self.stem((images - 121.0) / 64.0)  # mean and deviation of CIFAR's pixels
        current = frame.expand(self.steps, -1, -1, -1, -1)  # one frame at every step, which the kernel reads once
        return self.head(self.layers(self.fire(current)).mean((0, 3, 4), dtype=torch.float32)).float()


def main(argv: list[str] | None = None) -> float:
    """Trains, prints a line an epoch, and returns the accuracy on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", action="store_true", help="noise on a colour for each class, not ROOT's images")
    parser.add_argument("--graph", action="store_true", help="replay the step as a CUDA graph")
    others = {"root": Path("data"), "device": "cuda" if torch.cuda.is_available() else "cpu", "seed": 0}
    above_0 = {"lr": 0.1, "samples": 50_000, "epochs": 30, "batch": 128, "width": 64, "steps": 4}
    for name, default in (others | above_0).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"({default})")
    args = parser.parse_args(argv)
    if wrong := [name for name in above_0 if not 0 < vars(args)[name] < math.inf]:
        parser.error(f"--{(n := wrong[0])} {vars(args)[n]} must be above 0 and finite; the default is {above_0[n]}")
    kind = args.device.partition(":")[0]
    if args.graph and kind != "cuda":
        parser.error(f"--graph needs an NVIDIA GPU, and --device is {args.device}")
    if args.graph:  # which is captured on a stream that is not the default one
        torch.cuda.set_stream(torch.cuda.Stream())
    torch.manual_seed(args.seed)
    images, labels, test_images, test_labels = (part.to(args.device) for part in load(args))
    if not 1 <= args.batch <= len(images):
        parser.error(f"--batch {args.batch} must lie in [1, {len(images)}], the number of training images")
    model = SpikingResNet(args.width, args.steps).to(args.device, memory_format=torch.channels_last)
    rate = torch.zeros((), device=args.device)  # a tensor: of a number, a graph would keep the value for ever
    optimizer = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
    chosen = torch.zeros(args.batch, dtype=torch.int64, device=args.device)  # the batch, always in the same memory
    told = torch.zeros(2, device=args.device)  # sums of loss and accuracy, which the host reads once an epoch

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind, torch.bfloat16, cache_enabled=False):
            logits = model(augmented(images[chosen]))
        loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        told.add_(torch.stack([loss.detach(), (logits.argmax(1) == labels[chosen]).float().mean()]))

    run, an_epoch = step, len(images) // args.batch
    for epoch in range(args.epochs):
        began, order = time.perf_counter(), torch.randperm(len(images), device=args.device)
        told.zero_()
        for done, batch in enumerate(order.split(args.batch)[:an_epoch], epoch * an_epoch):
            chosen.copy_(batch)
            share = done / (args.epochs * an_epoch)  # a linear warm-up over a tenth, then a cosine
            rate.fill_(args.lr * min(10 * share + 1e-3, (1 + math.cos(math.pi * share)) / 2))
            if args.graph and done == 3:  # the libraries have chosen their algorithms by now
                with torch.cuda.graph(graph := torch.cuda.CUDAGraph(), stream=torch.cuda.current_stream()):
                    step()
                run = graph.replay
            run()
        (loss, accuracy), seconds = (told / an_epoch).tolist(), time.perf_counter() - began
        print(f"epoch {epoch + 1}/{args.epochs}  loss {loss:.3f}  accuracy {accuracy:.4f}  {seconds:.1f} s", flush=True)
    model.eval()
    with torch.no_grad(), torch.autocast(kind, torch.bfloat16):
        answers = [model(part).argmax(1) for part in test_images.split(500)]
    accuracy = (torch.cat(answers) == test_labels).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")
    return accuracy


if __name__ == "__main__":
    main()
