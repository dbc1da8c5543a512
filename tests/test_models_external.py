"""Networks from elsewhere as teachers: hooks, tokens to maps, Grad-CAM through them."""

import copy

import pytest
import torch
from torch import nn

from ckdsnn.losses import FrozenTeacher, build_method, grad_cam
from ckdsnn.models import build_model
from ckdsnn.models.external import HookedANN


class Attention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return torch.softmax(q @ k.transpose(1, 2), -1) @ v


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim)

    def forward(self, x):
        return x + self.attention(self.norm1(x))


class TinyViT(nn.Module):
    """A vision transformer that classifies by its class token."""

    def __init__(self, dim=6, classes=7):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.Sequential(Block(dim), Block(dim))
        self.head = nn.Linear(dim, classes)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], dim=1))
        return self.head(x[:, 0])


class ChannelsLast(nn.Module):
    """Features [B, H, W, C], mean, linear."""

    def __init__(self, classes=7):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.last = nn.ReLU()
        self.head = nn.Linear(5, classes)

    def forward(self, images):
        return self.head(self.last(self.conv(images).permute(0, 2, 3, 1)).mean((1, 2)))


def vit(layers=("blocks.0.norm1", "blocks.1.norm1"), **options):
    torch.manual_seed(0)
    return HookedANN(TinyViT(), layers, num_classes=7, in_channels=3, image_size=16, layout="tokens", **options)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(5, 3, 16, 16), torch.randint(0, 7, (5,))


def test_tokens_become_maps(batch):
    teacher = vit().eval()
    out = teacher(batch[0])
    torch.testing.assert_close(out.logits, teacher.model(batch[0]))
    seen = []
    teacher.model.blocks[1].norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    teacher.model(batch[0])
    assert out.features[2].shape == (5, 6, 4, 4)
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(out.features[2][:, :, row, column], seen[0][:, 1 + 4 * row + column])
    assert teacher.stage_channels == (6, 6)
    assert teacher.classifier_weight is None


def test_grad_cam_through_a_transformer(batch):
    """By finite differences: the map's weights are the mean gradient of the target's logit by each channel."""
    images, target = batch
    teacher = vit().eval()
    out = FrozenTeacher(teacher, build_method("samd", stages=(-1,)))(images, target)
    assert out.cams[-1].shape == (5, 4, 4)
    assert out.cams[-1].max() > 0

    double = copy.deepcopy(teacher).double()
    features = double(images.double()).features[2].detach()
    weights = torch.zeros(5, 6, dtype=torch.float64)
    for channel in range(6):
        for sign in (1, -1):

            def shift(module, inputs, output, channel=channel, sign=sign):
                output = output.clone()
                output[:, 1:, channel] += sign * 1e-5
                return output

            handle = double.model.blocks[1].norm1.register_forward_hook(shift)
            score = double.model(images.double()).gather(1, target[:, None])[:, 0].detach()
            handle.remove()
            weights[:, channel] += sign * score / 2e-5 / 16
    expected = torch.einsum("bchw,bc->bhw", features, weights).relu()
    torch.testing.assert_close(out.cams[-1].double(), expected, rtol=1e-3, atol=1e-5)


def test_frozen_teacher_equals_plain_autograd_at_every_stage(batch):
    images, target = batch
    teacher = vit().eval()
    plain = teacher(images)
    expected = {stage: grad_cam(plain.logits, plain.features[stage], target) for stage in (1, 2)}
    out = FrozenTeacher(teacher, build_method("samd", stages=(1, 2)))(images, target)
    for stage in (1, 2):
        torch.testing.assert_close(out.cams[stage], expected[stage])


def test_layers_behind_the_class_token_are_refused():
    teacher = vit(layers=("blocks.0.norm1", "blocks.1"))
    assert teacher.differentiable_stages == (1,)
    with pytest.raises(ValueError, match=r"logits do not depend on the features of stage -1.*hook an earlier layer"):
        FrozenTeacher(teacher, build_method("ckd"))
    FrozenTeacher(teacher, build_method("kdsnn"))  # features are there all the same


def test_channels_last_with_a_linear_head(batch):
    images, target = batch
    torch.manual_seed(0)
    model = ChannelsLast()
    options = {"num_classes": 7, "in_channels": 3, "image_size": 16, "layout": "channels_last"}
    closed = HookedANN(model, ["last"], classifier="head", **options)
    by_autograd = HookedANN(model, ["last"], **options)
    assert closed.stage_channels == (5,)
    maps = [FrozenTeacher(t, build_method("samd"))(images, target).cams[-1] for t in (closed, by_autograd)]
    torch.testing.assert_close(*maps)
    assert maps[0].max() > 0


def test_images_of_another_size_are_resized(batch):
    big = torch.nn.functional.interpolate(batch[0], (32, 32), mode="nearest")
    teacher = vit().eval()
    assert teacher(big).logits.shape == (5, 7)
    torch.testing.assert_close(teacher(batch[0].expand(2, -1, -1, -1, -1)).logits, teacher(batch[0]).logits)


@pytest.mark.parametrize("name", ["ckd", "kd", "kdsnn", "bkdsnn", "e2kd", "hta_kl"])
def test_a_transformer_teaches_a_spiking_resnet(name, batch):
    images, target = batch
    method = build_method(name)
    student = build_model("snn_resnet_small", num_classes=7, in_channels=3, widths=(4, 4, 4), time_steps=2)
    teacher = vit()
    method.bind(student, teacher)
    frozen = FrozenTeacher(teacher, method)
    with torch.no_grad():
        wanted = frozen(images, target)
    loss = sum(method(student(images), wanted, target).values())
    loss.backward()
    assert torch.isfinite(loss)


def test_copies_watch_their_own_layers(batch):
    teacher = vit().eval()
    twin = copy.deepcopy(teacher)
    with torch.no_grad():
        twin.model.token.add_(1.0)
    first = teacher(batch[0]).features[2]
    assert not torch.equal(twin(batch[0]).features[2], first)
    torch.testing.assert_close(teacher(batch[0]).features[2], first)
    assert not any(module._forward_hooks for module in teacher.modules())


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (("blocks.2",), {}, "the model has no layer 'blocks.2'; did you mean 'blocks"),
        ((), {}, "layers must name at least one layer"),
        (("patches",), {}, r"layer 'patches' must return a tensor of 3 dimensions .* got \[1, 6, 4, 4\]"),
        (("blocks.0",), {"prefix_tokens": 3}, "are 14, no square map: set prefix_tokens"),
        (("blocks.0",), {"classifier": "head"}, "does not make the logits; leave classifier out"),
        (("blocks.0",), {"classifier": "haed"}, "no layer 'haed'; did you mean 'head'"),
    ],
)
def test_bad_options(layers, options, message):
    with pytest.raises(ValueError, match=message):
        vit(layers, **options)


def test_more_bad_options():
    with pytest.raises(ValueError, match="layout must be one of channels_first"):
        HookedANN(TinyViT(), ["blocks"], 7, 3, 16, layout="nchw")
    with pytest.raises(ValueError, match="prefix_tokens=1 is only used with layout='tokens'"):
        HookedANN(TinyViT(), ["patches"], 7, 3, 16, prefix_tokens=1)
    with pytest.raises(ValueError, match=r"the model must return logits \[B, 5\], got \[1, 7\]"):
        HookedANN(TinyViT(), ["patches"], 5, 3, 16)
    unused = TinyViT()
    unused.spare = nn.Identity()
    with pytest.raises(ValueError, match=r"layers \['spare'\] are not called"):
        HookedANN(unused, ["patches", "spare"], 7, 3, 16)


class Tail(nn.Module):
    """Works in place on what it watched, as densenet121 does, or on what that shares its memory with."""

    def __init__(self, work):
        super().__init__()
        self.stem, self.watched, self.head, self.work = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Linear(4, 7), work

    def forward(self, images):
        stem = self.stem(images)
        watched = self.watched(stem)
        return self.head(self.work(stem, watched).mean((2, 3)))


def by_output(stem, watched):
    return nn.functional.relu(watched, inplace=True)


def by_input(stem, watched):
    stem.mul_(-3.0)  # what an identity, a dropout or a flatten returns shares its input's memory
    return stem


@pytest.mark.parametrize("differentiated", [None, 1])
@pytest.mark.parametrize("make", [
    lambda: (Tail(by_output), "watched"),
    lambda: (Tail(by_input), "watched"),
    lambda: (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                           nn.Dropout(inplace=True), nn.Linear(4, 7)), "1"),
], ids=["densenet", "identity", "vgg"])  # fmt: skip
def test_layers_that_work_in_place_leave_the_features_alone(batch, make, differentiated):
    images, _ = batch
    torch.manual_seed(0)
    model, layer = make()
    plain = copy.deepcopy(model).eval()
    teacher = HookedANN(model, [layer], 7, 3, 16).eval()
    seen = []
    plain.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    with torch.set_grad_enabled(differentiated is not None):
        wanted = plain(images)
        out = teacher(images, differentiable_from=differentiated)
    assert torch.equal(out.logits, wanted)
    assert torch.equal(out.features[1], seen[0])
    assert bool((seen[0] < 0).any())  # what the layers behind would overwrite


def test_grad_cam_before_a_layer_that_works_in_place(batch):
    images, target = batch
    maps = []
    for inplace in (True, False):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)
        teacher = HookedANN(nn.Sequential(*layers), ["0"], 7, 3, 16)
        maps.append(FrozenTeacher(teacher, build_method("samd"))(images, target).cams[-1])
    assert torch.equal(*maps)
    assert maps[0].max() > 0


def test_a_head_can_be_trained_alone(batch):
    images, target = batch
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7)
    network = HookedANN(nn.Sequential(*layers), ["2"], 7, 3, 16, trainable=["5"]).train()
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(network(images).logits, target).backward()
    optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"model.5.weight", "model.5.bias"}
    with pytest.raises(ValueError, match="the model has no layer 'fc'"):
        HookedANN(nn.Sequential(*layers), ["2"], 7, 3, 16, trainable=["fc"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "resnet"}, TypeError, r"model must be an nn\.Module, got str"),
        ({"layers": "blocks"}, TypeError, "layers must be a list of layer names, got 'blocks'"),
        ({"layers": [1]}, TypeError, r"layers must be a list of layer names, got \[1\]"),
        ({"trainable": "head"}, TypeError, "trainable must be a list of layer names, got 'head'"),
        ({"image_size": True}, ValueError, "image_size must be a positive integer, got True"),
        ({"image_size": 0}, ValueError, "image_size must be a positive integer, got 0"),
        ({"classifier": "blocks"}, ValueError, "classifier 'blocks' is no linear layer"),
    ],
)
def test_wrong_types_are_named(options, error, message):
    given = {"model": TinyViT(), "layers": ["blocks.0"], "image_size": 16, **options}
    with pytest.raises(error, match=message):
        HookedANN(num_classes=7, in_channels=3, layout="tokens", **given)
