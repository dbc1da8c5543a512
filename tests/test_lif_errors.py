"""Bad input to `lif`: an error that names the argument, its value and the remedy, before anything is launched."""

from __future__ import annotations

import pytest
import torch

from ckd_kernels import Neuron, lif, use_backend

X = torch.ones(4, 2, 3, 5)
JAGGED = torch.nested.nested_tensor([torch.ones(4, 3), torch.ones(2, 3)], layout=torch.jagged)
DECAY, LEAK, INTEGRATE = Neuron.paper(), Neuron(charge="leak"), Neuron.spikingjelly_if()
META = torch.ones(4, 2, 3, 5, device="meta")

BAD = {
    "no tensor": (([1.0, 2.0], DECAY), {}, TypeError, "x must be a torch.Tensor, got list"),
    "integer x": ((X.int(), DECAY), {}, TypeError, "x must be float32, .*got torch.int32; convert it first"),
    "boolean x": ((X > 0, DECAY), {}, TypeError, "x must be float32, .*got torch.bool; convert it first"),
    "complex x": ((X + 1j, DECAY), {}, TypeError, "x must be float32, .*got torch.complex64; convert it first"),
    "float8 x": ((X.to(torch.float8_e4m3fn), DECAY), {}, TypeError, "x must be float32, .*got torch.float8_e4m3fn"),
    "nested x": ((JAGGED, DECAY), {}, TypeError, r"layout torch.jagged; call torch.nested.to_padded_tensor\(x, 0.0\)"),
    "sparse x": ((X.to_sparse(), DECAY), {}, TypeError, r"x must be a dense .*got layout .*call x.to_dense\(\)"),
    "no neuron": ((X, "lif"), {}, TypeError, r"neuron must be a ckd_kernels.Neuron, e.g. Neuron.paper\(\); got str"),
    "neuron class": ((X, Neuron), {}, TypeError, "neuron must be a ckd_kernels.Neuron, .*got type"),
    "time_dim 2": ((X, DECAY), {"time_dim": 2}, ValueError, "time_dim must be 0 or 1 .*got 2 for 4 dimensions"),
    "time_dim -1": ((X, DECAY), {"time_dim": -1}, ValueError, "time_dim must be 0 or 1 .*got -1"),
    "time_dim of 1-D": ((X[:, 0, 0, 0], DECAY), {"time_dim": 1}, ValueError, "time_dim must .*got 1 for 1 dimensions"),
    "scalar x": ((X[0, 0, 0, 0], DECAY), {}, ValueError, "time_dim must .*a dimension of x, got 0 for 0 dimensions"),
    "time_dim text": ((X, DECAY), {"time_dim": "0"}, TypeError, "time_dim must be 0 or 1, got '0'"),
    "time_dim bool": ((X, DECAY), {"time_dim": True}, TypeError, "time_dim must be 0 or 1, got True"),
    "channel_dim unused": (
        (X, DECAY),
        {"channel_dim": 2},
        ValueError,
        "channel_dim=2 is only used with .*leave it out",
    ),
    "channel_dim of scalar decay": (
        (X, DECAY),
        {"channel_dim": 2, "decay": torch.tensor(0.5)},
        ValueError,
        "channel_dim=2 is only used with return_sam or a leak per channel; leave it out",
    ),
    "channel_dim 4": (
        (X, DECAY),
        {"channel_dim": 4, "return_sam": True},
        ValueError,
        "channel_dim 4 is out of range for 4 dimensions",
    ),
    "channel_dim is time": (
        (X, DECAY),
        {"channel_dim": 0, "return_sam": True},
        ValueError,
        "channel_dim and time_dim are both 0; they must differ",
    ),
    "channel_dim from the end is time": (
        (X, DECAY),
        {"channel_dim": -3, "time_dim": 1, "return_sam": True},
        ValueError,
        "channel_dim and time_dim are both 1; they must differ",
    ),
    "channel_dim text": (
        (X, DECAY),
        {"channel_dim": "2", "return_sam": True},
        TypeError,
        "channel_dim must be an integer, got '2'",
    ),
    "no channels": ((X[:, :, 0, 0], DECAY), {"return_sam": True}, ValueError, "channel_dim 2 is out of range for 2"),
    "v_init number": (
        (X, DECAY),
        {"v_init": 0.5},
        TypeError,
        r"v_init must be a tensor of shape \(2, 3, 5\), got float",
    ),
    "v_init integer": ((X, DECAY), {"v_init": X[0].int()}, TypeError, "v_init must be a floating-point .*torch.int32"),
    "v_init of x's shape": (
        (X, DECAY),
        {"v_init": X},
        ValueError,
        r"v_init must have x's shape without time, \(2, 3, 5\); got \(4, 2, 3, 5\)",
    ),
    "v_init to broadcast": (
        (X, DECAY),
        {"v_init": X[0, :1]},
        ValueError,
        r"v_init must .*\(2, 3, 5\); got \(1, 3, 5\)",
    ),
    "v_init of time_dim 0": (
        (X, DECAY),
        {"v_init": X[0], "time_dim": 1},
        ValueError,
        r"v_init must have .*\(4, 3, 5\); got \(2, 3, 5\)",
    ),
    "v_init elsewhere": ((X, DECAY), {"v_init": META[0]}, ValueError, "v_init is on meta but x is on cpu; move one"),
    "decay unused by leak": (
        (X, LEAK),
        {"decay": torch.tensor(0.5)},
        ValueError,
        "decay is not used with charge='leak'; leave it out",
    ),
    "tau unused by decay": (
        (X, DECAY),
        {"tau": torch.tensor(2.0)},
        ValueError,
        "tau is not used with charge='decay'; leave it out",
    ),
    "tau unused by integrate": (
        (X, INTEGRATE),
        {"tau": torch.tensor(2.0)},
        ValueError,
        "tau is not used with charge='integrate'; leave it out",
    ),
    "decay number": ((X, DECAY), {"decay": 0.5}, TypeError, r"decay must be a tensor, got 0.5; .*Neuron\(decay=...\)"),
    "tau number": ((X, LEAK), {"tau": 2.0}, TypeError, r"tau must be a tensor, got 2.0; .*Neuron\(tau=...\)"),
    "decay integer": (
        (X, DECAY),
        {"decay": torch.tensor(1)},
        TypeError,
        "decay must be a floating-point .*torch.int64",
    ),
    "decay elsewhere": ((X, DECAY), {"decay": META[0, 0, 0, 0]}, ValueError, "decay is on meta but x is on cpu"),
    "decay of 4 channels": (
        (X, DECAY),
        {"decay": torch.full((4,), 0.5)},
        ValueError,
        r"decay has shape \(4,\); .*each of the 3 channels \(dimension 2 of x\)",
    ),
    "decay of 2 dimensions": (
        (X, DECAY),
        {"decay": torch.full((3, 5), 0.5)},
        ValueError,
        r"decay has shape \(3, 5\); it must be one value, or one for each of the 3 channels",
    ),
    "empty decay": ((X, DECAY), {"decay": torch.ones(0)}, ValueError, r"decay has shape \(0,\); it must be one value"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, no_launch):
    arguments, options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        lif(*arguments, **options)


def test_gpu_backends_refuse_cpu_tensors():
    for name in ("cuda", "triton"):
        with (
            use_backend(name),
            pytest.raises(RuntimeError, match=f"backend '{name}' cannot run lif on cpu in float32: "),
        ):
            lif(X, DECAY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is present")
def test_devices_do_not_mix():
    on_gpu = X.cuda()
    with pytest.raises(ValueError, match="v_init is on cpu but x is on cuda:0; move one of them"):
        lif(on_gpu, DECAY, v_init=X[0])
    with pytest.raises(ValueError, match="decay is on cuda:0 but x is on cpu; move one of them"):
        lif(X, DECAY, decay=torch.tensor(0.5, device="cuda"))
    with use_backend("cpu"), pytest.raises(RuntimeError, match="backend 'cpu' cannot run lif on cuda:0 in float32"):
        lif(on_gpu, DECAY)
    for name in ("cuda", "triton"):
        with use_backend(name), pytest.raises(RuntimeError, match="cannot run lif on cuda:0 in float64"):
            lif(on_gpu.double(), DECAY)
