"""Residual networks: parameter counts, direct encoding, features, spike activation maps, bad input."""

import pytest
import torch

from ckd_kernels import Neuron
from ckdsnn.models import MODELS, build_model
from ckdsnn.models.outputs import pick_stage, resolve_stage


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "ten", "hundred"),
    [
        ("ann_resnet19", {}, 12_569_226, 12_615_396),
        ("snn_resnet19", {"head": "released"}, 12_697_994, 12_721_124),
        ("snn_resnet19", {}, 12_569_226, 12_615_396),
        ("ann_resnet20", {}, 272_474, 278_324),
        ("snn_resnet20", {"head": "released"}, 291_034, 314_164),
        ("snn_resnet20", {}, 272_474, 278_324),
        ("snn_resnet20_dvs", {}, 11_247_370, 11_293_540),
        ("ann_resnet20_dvs", {}, 11_247_370, 11_293_540),
    ],
)
def test_parameter_counts(name, options, ten, hundred):
    with torch.device("meta"):
        assert count(build_model(name, num_classes=10, **options)) == ten
        assert count(build_model(name, num_classes=100, **options)) == hundred


def small(**options):
    torch.manual_seed(0)
    return build_model("snn_resnet_small", num_classes=10, **options)


def test_small_pair_shapes():
    images = torch.randn(3, 1, 20, 20)
    ann = build_model("ann_resnet_small", num_classes=10)(images)
    out = small(sam_stages=(1, -1))(images)
    assert ann.logits.shape == out.logits.shape == (3, 10)
    assert out.step_logits.shape == (4, 3, 10)
    for stage, (channels, size) in {1: (12, 20), 2: (24, 10), 3: (48, 5)}.items():
        assert ann.features[stage].shape == (3, channels, size, size)
        assert out.features[stage].shape == (4, 3, channels, size, size)
        assert set(out.features[stage].unique().tolist()) <= {0.0, 1.0}
    assert {stage: sam.shape for stage, sam in out.sams.items()} == {1: (3, 20, 20), 3: (3, 5, 5)}


def test_fused_maps_are_the_mean_over_time_and_channels():
    out = small(sam_stages=(1, 2, 3))(torch.randn(3, 1, 20, 20))
    for stage, sam in out.sams.items():
        counts = out.features[stage].sum((0, 2))
        assert counts.sum() > 0
        assert sam.dtype == torch.float32
        torch.testing.assert_close(sam, counts / (4 * out.features[stage].shape[2]), rtol=1e-6, atol=0)


def test_no_map_is_made_where_none_is_asked_for():
    assert small(sam_stages=())(torch.randn(2, 1, 20, 20)).sams == {}


def test_only_the_last_neuron_of_a_stage_makes_a_map():
    model, asked = small(blocks=(2, 2, 2), sam_stages=(2,)), []
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(
                lambda module, args, kwargs, output, name=name: asked.append((name, kwargs.get("return_sam", False))),
                with_kwargs=True,
            )
    model(torch.randn(2, 1, 20, 20))
    assert [name for name, sam in asked if sam] == ["stages.1.1.neuron2.norm"]
    assert len(asked) == 13


def test_logits_are_the_mean_of_the_step_logits():
    out = small()(torch.randn(3, 1, 20, 20))
    torch.testing.assert_close(out.logits, out.step_logits.mean(0))


@pytest.mark.parametrize("name", ["snn_resnet_small", "snn_resnet20_dvs"])
def test_direct_encoding_is_the_same_frame_at_every_step(name):
    options = {"snn_resnet_small": {}, "snn_resnet20_dvs": {"in_channels": 1, "width": 0.125}}[name]
    torch.manual_seed(0)
    model = build_model(name, num_classes=10, time_steps=3, **options).eval()
    images = torch.randn(2, 1, 20, 20)
    static, frames = model(images), model(images.expand(3, -1, -1, -1, -1))
    for stage in static.features:
        assert torch.equal(static.features[stage], frames.features[stage])
    torch.testing.assert_close(static.logits, frames.logits)


def test_first_convolution_runs_once_on_static_images():
    model, calls = small(), []
    model.stem.convs[0].register_forward_hook(lambda module, inputs, output: calls.append(output.shape[0]))
    model(torch.randn(3, 1, 20, 20))
    assert calls == [3]


def test_batch_statistics_are_those_of_time_and_batch():
    model = small(time_steps=2)
    frames = torch.randn(2, 3, 1, 20, 20)
    conv, norm = model.stem.convs[0], model.stem.neurons[0].norm
    model(frames)
    y = conv(frames.flatten(0, 1))
    torch.testing.assert_close(norm.running_mean, 0.1 * y.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * y.transpose(0, 1).flatten(1).var(1))


def test_residual_block_is_norm_plus_shortcut_then_neuron():
    """The last block of the network against the same arithmetic spelt out."""
    model = small(time_steps=2, fused=False).eval()
    out = model(torch.randn(2, 1, 20, 20))
    block = model.stages[2][0]
    x = out.features[2].flatten(0, 1)
    hidden = block.neuron1.activation(block.neuron1.norm(block.conv1(x)).unflatten(0, (2, 2)))
    current = block.neuron2.norm(block.conv2(hidden.flatten(0, 1))) + block.shortcut(x)
    v = torch.zeros_like(current[:2])
    for step, h in enumerate(current.unflatten(0, (2, 2))):
        v = v * 0.5 + h
        spikes = (v > 1).float()
        v = v * (1 - spikes)
        assert torch.equal(spikes, out.features[3][step])


def test_released_options():
    out = small(head="released", last_activation="relu")(torch.randn(2, 1, 20, 20))
    last = out.features[3]
    assert out.classifier_weight is None
    assert len(last.unique()) > 10  # real numbers, not spikes
    assert last.min() == 0
    torch.testing.assert_close(out.sams[3], last.mean((0, 2)))
    assert set(out.features[2].unique().tolist()) <= {0.0, 1.0}


def test_every_parameter_learns():
    model = small()
    model(torch.randn(8, 1, 20, 20)).logits.pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_ann_averages_frames():
    model = build_model("ann_resnet_small", num_classes=10).eval()
    frames = torch.randn(3, 2, 1, 20, 20)
    torch.testing.assert_close(model(frames).logits, model(frames.mean(0)).logits)


def test_neuron_by_name_and_by_value():
    assert small(neuron="spikingjelly_lif").stem.neurons[0].norm.neuron == Neuron.spikingjelly_lif()
    assert small(neuron="spikingjelly_if").stem.neurons[0].norm.neuron.charge == "integrate"
    neuron = Neuron(charge="decay", decay=0.25)
    assert small(neuron=neuron).stages[0][0].neuron2.norm.neuron == neuron


def test_odd_sizes():
    out = build_model("snn_resnet20", num_classes=10, time_steps=1, width=0.5)(torch.randn(2, 3, 25, 25))
    assert out.features[3].shape[-2:] == (7, 7)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"time_steps": 0}, "time_steps must be >= 1, got 0"),
        ({"sam_stages": (4,)}, "stage 4 does not exist"),
        ({"head": "mlp"}, "head must be one of linear, released, got 'mlp'"),
        ({"last_activation": "gelu"}, "last_activation must be one of lif, relu, got 'gelu'"),
        ({"neuron": "papr"}, "neuron must be one of paper, .*, got 'papr'; did you mean 'paper'"),
        ({"blocks": (1, 1)}, "must have the same length"),
    ],
)
def test_bad_options(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


def test_bad_images():
    model = small(time_steps=2)
    with pytest.raises(ValueError, match=r"images must be \[B, 1, H, W\]"):
        model(torch.zeros(2, 3, 20, 20))
    with pytest.raises(ValueError, match=r"frames have 5 time steps .* time_steps=2"):
        model(torch.zeros(5, 2, 1, 20, 20))
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\]"):
        build_model("ann_resnet20", num_classes=2)(torch.zeros(3, 8, 8))
    for name in ("ann_resnet_small", "snn_resnet_small"):
        with pytest.raises(TypeError, match=r"images must be of a floating-point dtype, got torch.uint8: images.float"):
            build_model(name, num_classes=2)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_registry_suggests():
    with pytest.raises(ValueError, match="unknown model 'snn_resnet91'; did you mean 'snn_resnet19'"):
        build_model("snn_resnet91", num_classes=10)
    with pytest.raises(TypeError, match="no option 'time_step'; did you mean 'time_steps'"):
        build_model("snn_resnet19", num_classes=10, time_step=2)
    with pytest.raises(ValueError, match="num_classes must be >= 1, got 0"):
        build_model("snn_resnet19", num_classes=0)
    for key in ("num_classes", "in_channels"):
        with pytest.raises(TypeError, match=f"{key} must be a whole number, got '3'"):
            build_model("snn_resnet19", **{"num_classes": 10, key: "3"})
    assert {"ann_resnet19", "snn_resnet19", "ann_resnet20", "snn_resnet20"} <= set(MODELS)


def test_stages_count_from_both_ends():
    assert [resolve_stage(s, 4) for s in (1, 4, -1, -4)] == [1, 4, 4, 1]
    for stage in (0, 5, -5):
        with pytest.raises(ValueError, match=f"stage {stage} does not exist"):
            resolve_stage(stage, 4)
    assert pick_stage({-1: torch.tensor(7)}, -1, "maps") == 7
    with pytest.raises(ValueError, match=r"maps of stage 2 are needed, but there are only those of stages \[3\]"):
        pick_stage({3: torch.tensor(0)}, 2, "maps")


def test_bfloat16_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        out = small()(torch.randn(3, 1, 20, 20))
    assert out.features[3].dtype == torch.bfloat16
    assert out.logits.dtype == out.sams[3].dtype == torch.float32
    torch.testing.assert_close(out.logits, out.step_logits.float().mean(0))


def test_compiles_without_a_graph_break():
    model, images = small(widths=(3,), blocks=(1,)).eval(), torch.randn(2, 1, 8, 8)
    expected, actual = model(images), torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    assert torch.equal(expected.features[1], actual.features[1])
    actual.logits.sum().backward()
    assert model.stem.convs[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("build", ["snn_resnet_small", "sew_resnet18", "spikformer_4_384"])
def test_fused_and_unfused_are_the_same_network(build):
    """The same parameters, and a loss that falls along the same curve to rounding."""
    options = {"widths": (4, 6, 8)} if build == "snn_resnet_small" else {}
    size = {"snn_resnet_small": 16, "sew_resnet18": 32, "spikformer_4_384": 8}[build]
    steps = 6 if build == "snn_resnet_small" else 2
    curves, states = [], []
    for fused in (True, False):
        torch.manual_seed(0)
        model = build_model(build, num_classes=5, in_channels=3, time_steps=2, fused=fused, **options)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        images, labels = torch.rand(6, 3, size, size), torch.arange(6) % 5
        curve = []
        for _ in range(steps):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images).logits, labels)
            loss.backward()
            optimiser.step()
            curve.append(loss.item())
        curves.append(curve)
        states.append(model.state_dict())
    assert list(states[0]) == list(states[1])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert len(set(curves[0])) == steps


@pytest.mark.parametrize("name", ["ann_resnet_small", "snn_resnet_small", "snn_fcn_small"])
def test_a_network_is_exported_and_read_back(name, tmp_path):
    network, images = build_model(name, num_classes=3, widths=(4, 6, 8)).eval(), torch.rand(2, 1, 12, 12)
    torch.export.save(torch.export.export(network, (images,)), tmp_path / "network.pt2")
    output = torch.export.load(tmp_path / "network.pt2").module()(images)
    assert type(output) is type(network(images))
    assert torch.equal(output.logits, network(images).logits)


def test_a_network_under_vmap():
    network, images = build_model("snn_resnet_small", num_classes=3, widths=(4, 6, 8)).eval(), torch.rand(3, 1, 12, 12)
    alone = torch.vmap(lambda image: network(image[None]))(images)
    assert torch.equal(alone.sams[3][:, 0], network(images).sams[3])
