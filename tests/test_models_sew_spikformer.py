"""SEW-ResNet and Spikformer: parameter counts, arithmetic against plain loops, features and maps."""

import pytest
import torch

from ckd_kernels.layers import BatchNormLIF
from ckdsnn.losses import FrozenTeacher, build_method
from ckdsnn.models import build_model
from ckdsnn.models.sew_resnet import SEWOptions, SEWResNet
from ckdsnn.models.spikformer import Spikformer, SpikformerOptions


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts():
    with torch.device("meta"):
        assert count(build_model("sew_resnet34", num_classes=1000)) == 21_797_672
        assert count(build_model("sew_resnet18", num_classes=1000)) == 11_689_512
        assert count(build_model("spikformer_4_384", num_classes=10)) == 9_330_874
        assert count(build_model("spikformer_4_384", num_classes=100)) == 9_365_524


def test_spikformers_published_count_holds_two_unused_layer_norms_a_block():
    with torch.device("meta"):
        bare = build_model("spikformer_4_384", num_classes=10, released_norms=False)
        full = build_model("spikformer_4_384", num_classes=10)
    assert count(full) - count(bare) == 4 * 2 * 2 * 384
    assert {name for name, p in full.named_parameters() if not p.requires_grad} == {
        name for name, _ in full.named_parameters()
    } - {name for name, _ in bare.named_parameters()}


def sew(**options):
    torch.manual_seed(0)
    return SEWResNet((1, 1, 1, 1), num_classes=7, options=SEWOptions(time_steps=2, **options))


def spikformer(**options):
    torch.manual_seed(0)
    options = {"time_steps": 2} | options
    model = Spikformer(dim=32, depth=2, heads=4, mlp_ratio=2, num_classes=7, options=SpikformerOptions(**options))
    for module in model.modules():
        if isinstance(module, BatchNormLIF):
            torch.nn.init.constant_(module.bias, 0.7)  # so few channels would hardly fire
    return model


MODELS = [sew, spikformer]


@pytest.mark.parametrize("make", MODELS)
def test_shapes_and_maps(make):
    model = make(sam_stages=(1, -1))
    out = model(torch.randn(3, 3, 32, 32))
    assert out.logits.shape == (3, 7)
    assert out.step_logits.shape == (2, 3, 7)
    assert sorted(out.features) == list(range(1, model.num_stages + 1))
    assert sorted(out.sams) == [1, model.num_stages]
    for stage, features in out.features.items():
        assert features.shape[:3] == (2, 3, model.stage_channels[stage - 1])
        assert torch.equal(features, features.round())
    assert max(features.max() for features in out.features.values()) > 1  # sums of spikes, not spikes
    for stage, sam in out.sams.items():
        assert sam.dtype == torch.float32
        torch.testing.assert_close(sam, out.features[stage].mean((0, 2)))


@pytest.mark.parametrize("make", MODELS)
def test_every_parameter_learns(make):
    model = make().train()
    model(torch.randn(8, 3, 32, 32)).logits.pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            # A bias before BN has no effect, as in the released code.
            assert parameter.grad.abs().sum() > 0 or name.endswith("linear.bias"), name


@pytest.mark.parametrize("make", MODELS)
def test_direct_encoding_is_the_same_frame_at_every_step(make):
    model = make().eval()
    images = torch.randn(2, 3, 32, 32)
    static, frames = model(images), model(images.expand(2, -1, -1, -1, -1))
    for stage in static.features:
        assert torch.equal(static.features[stage], frames.features[stage])


def test_sew_block_adds_spikes():
    """The second stage against the same arithmetic spelt out: integrate, fire at 1, hard reset."""
    model = sew(fused=False).eval()
    out = model(torch.randn(2, 3, 64, 64))
    block = model.stages[1][0]

    def neuron(current):
        v, spikes = torch.zeros_like(current[0]), []
        for h in current:
            v = v + h
            spikes.append((v >= 1).float())
            v = v * (1 - spikes[-1])
        return torch.stack(spikes)

    def fold(module, x):
        return module(x.flatten(0, 1)).unflatten(0, (2, 2))

    x = out.features[1]
    hidden = neuron(fold(block.neuron1.norm, fold(block.conv1, x)))
    hidden = neuron(fold(block.neuron2.norm, fold(block.conv2, hidden)))
    shortcut = neuron(fold(block.shortcut_neuron.norm, fold(block.shortcut_conv, x)))
    assert shortcut.sum() > 0
    assert torch.equal(out.features[2], hidden + shortcut)


def test_attention_by_hand():
    """Tokens first, heads split, (Q K^T) V * scale, a neuron at threshold 0.5: as the paper writes it."""
    attention = spikformer().stages[0].attention
    for linear in (attention.query, attention.key, attention.value):
        torch.nn.init.constant_(linear.neuron.norm.bias, 1.5)
    x = torch.randint(0, 3, (2, 3, 32, 4, 4)).float()
    steps, batch = x.shape[:2]

    def tokens(linear):
        return linear(x).flatten(3).transpose(2, 3).reshape(steps, batch, 16, 4, 8).transpose(2, 3)

    query, key, value = tokens(attention.query), tokens(attention.key), tokens(attention.value)
    assert min(query.sum(), key.sum(), value.sum()) > 0
    mixed = (query @ key.transpose(-2, -1)) @ value * 0.125
    current = mixed.transpose(2, 3).reshape(steps, batch, 16, 32).transpose(2, 3).reshape_as(x)
    v, spikes = torch.zeros_like(x[0]), []
    for step in current:
        v = v + (step - v) / 2
        spikes.append((v >= 0.5).float())
        v = v * (1 - spikes[-1])
    spikes = torch.stack(spikes)
    seen = []
    attention.attention_neuron.register_forward_hook(lambda module, inputs, output: seen.append(output))
    attention(x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(seen[0], spikes)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", ["ckd", "kdsnn", "bkdsnn", "catkd", "e2kd"])
def test_a_conventional_resnet_teaches_them(make, name):
    """Other layout, other map size, other channels."""
    method = build_method(name)
    student = make()
    teacher = build_model("ann_resnet20", num_classes=7, width=0.5)
    method.bind(student, teacher)
    images, target = torch.randn(4, 3, 32, 32), torch.randint(0, 7, (4,))
    parts = method(student(images), FrozenTeacher(teacher, method)(images, target), target)
    loss = sum(parts.values())
    loss.backward()
    assert torch.isfinite(loss)


def test_bad_options():
    with pytest.raises(ValueError, match="dim must be a multiple of 8 and of heads=5, got 32"):
        Spikformer(dim=32, depth=1, heads=5, mlp_ratio=2, num_classes=7)
    with pytest.raises(ValueError, match="stage 3 does not exist"):
        spikformer(sam_stages=(3,))
    with pytest.raises(ValueError, match="time_steps must be >= 1, got 0"):
        spikformer(time_steps=0)
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\]"):
        sew()(torch.zeros(1, 1, 32, 32))
