"""Grad-CAM in closed form and by autograd, and what the frozen teacher makes of them."""

import copy

import pytest
import torch

from ckdsnn.losses import (
    FrozenTeacher,
    build_method,
    class_activation_map,
    grad_cam,
    grad_cam_closed_form,
    grad_cam_spiking,
    saliency_map,
)
from ckdsnn.models import build_model


def teacher(**options):
    torch.manual_seed(0)
    return build_model("ann_resnet_small", num_classes=10, **options).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(6, 1, 20, 20), torch.randint(0, 10, (6,))


def test_by_hand():
    """One sample, two channels, 1x2 map, logits = W mean(F): w_c = W[y, c] / 2."""
    features = torch.tensor([[[[1.0, -2.0]], [[3.0, 1.0]]]], requires_grad=True)
    weight = torch.tensor([[9.0, 9.0], [2.0, -1.0]])
    logits = features.mean((2, 3)) @ weight.T
    target = torch.tensor([1])
    expected = torch.tensor([[[0.0, 0.0]]])  # relu([(2*1 - 3)/2, (2*-2 - 1)/2])
    torch.testing.assert_close(grad_cam(logits, features, target), expected)
    torch.testing.assert_close(grad_cam_closed_form(features, weight, target), expected)
    expected = torch.tensor([[[18.0, -4.5]]]).relu()  # class 0: (9*1 + 9*3)/2, (9*-2 + 9*1)/2
    torch.testing.assert_close(grad_cam(logits, features, torch.tensor([0])), expected)
    torch.testing.assert_close(class_activation_map(features, weight, torch.tensor([0])), 2 * expected)


def test_closed_form_equals_autograd(batch):
    images, target = batch
    out = teacher()(images)
    closed = grad_cam_closed_form(out.features[3], out.classifier_weight, target)
    assert closed.max() > 0
    torch.testing.assert_close(closed, grad_cam(out.logits, out.features[3], target), rtol=1e-5, atol=1e-7)


def test_closed_form_equals_autograd_for_a_spiking_network(batch):
    images, target = batch
    torch.manual_seed(0)
    out = build_model("snn_resnet_small", num_classes=10)(images)
    closed = grad_cam_closed_form(out.features[3].mean(0), out.classifier_weight, target)
    assert closed.max() > 0
    torch.testing.assert_close(closed, grad_cam_spiking(out.step_logits, out.features[3], target), rtol=1e-5, atol=1e-7)


def test_gradient_reaches_the_features_not_the_weights(batch):
    images, target = batch
    model = build_model("snn_resnet_small", num_classes=10)
    out = model(images)
    grad_cam_spiking(out.step_logits, out.features[2], target).sum().backward()
    assert model.stages[1][0].conv1.weight.grad.abs().sum() > 0
    assert model.head.weight.grad is None


def test_autograd_needs_a_graph(batch):
    images, target = batch
    with torch.no_grad():
        out = teacher()(images)
    with pytest.raises(RuntimeError, match=r"torch.enable_grad\(\), or use grad_cam_closed_form"):
        grad_cam(out.logits, out.features[3], target)


def test_frozen_teacher_gives_closed_form_maps_without_a_graph(batch):
    images, target = batch
    model = teacher()
    out = FrozenTeacher(model, build_method("samd"))(images, target)
    plain = model(images)
    torch.testing.assert_close(out.logits, plain.logits)
    torch.testing.assert_close(out.cams[-1], grad_cam_closed_form(plain.features[3], model.classifier.weight, target))
    assert out.features == {}
    assert not any(t.requires_grad for t in (out.logits, out.cams[-1], out.classifier_weight))


def test_frozen_teacher_differentiates_where_it_must(batch):
    images, target = batch
    model = teacher()
    frozen = FrozenTeacher(copy.deepcopy(model), build_method("samd", stages=(1, 2, -1)))
    with torch.no_grad():
        out = frozen(images, target)
    plain = model(images)
    for stage in (1, 2):
        torch.testing.assert_close(out.cams[stage], grad_cam(plain.logits, plain.features[stage], target))
    closed = grad_cam_closed_form(plain.features[3], plain.classifier_weight, target)
    torch.testing.assert_close(out.cams[-1], closed)
    assert not any(p.grad is not None or p.requires_grad for p in frozen.parameters())


def test_frozen_teacher_stays_frozen_and_in_eval_mode(batch):
    images, target = batch
    frozen = FrozenTeacher(teacher().train(), build_method("ckd"))
    before = copy.deepcopy(frozen.state_dict())
    frozen.train()
    frozen(images, target)
    assert not any(module.training for module in frozen.modules())
    assert all(torch.equal(before[key], value) for key, value in frozen.state_dict().items())


def test_released_code_puts_the_teacher_in_train_mode(batch):
    images, target = batch
    model = teacher()
    frozen = FrozenTeacher(model, build_method("ckd", preset="released-code")).eval()
    mean = model.stem[1].running_mean.clone()
    out = frozen(images, target)
    assert model.stem[1].training
    assert not torch.equal(mean, model.stem[1].running_mean)
    reference = copy.deepcopy(model)(images)
    predicted = class_activation_map(reference.features[3], reference.classifier_weight, reference.logits.argmax(1))
    torch.testing.assert_close(out.cams[-1], predicted)


def test_saliency_map_refuses(batch):
    images, target = batch
    out = teacher()(images)
    with pytest.raises(ValueError, match="must be one of grad_cam, grad_cam_predicted, class_weights, got 'cam'"):
        saliency_map("cam", out, -1, target)
    with pytest.raises(ValueError, match="stage 1 of this one is not: use teacher_map='grad_cam'"):
        saliency_map("class_weights", out, 1, target)
    with pytest.raises(ValueError, match="stage 4 are needed, but there are only those of stages"):
        saliency_map("grad_cam", out, 4, target)
    with pytest.raises(ValueError, match="stage 5 does not exist"):
        FrozenTeacher(teacher(), build_method("samd", stages=(5,)))


@pytest.mark.parametrize("function", [grad_cam_closed_form, class_activation_map])
def test_bad_shapes(function):
    features, weight, target = torch.rand(2, 3, 4, 4), torch.rand(10, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"features must be \[B, C, H, W\], got \[3, 4, 4\]"):
        function(features[0], weight, target)
    with pytest.raises(ValueError, match=r"classifier_weight must be \[K, 3\] to fit the features, got \[3, 10\]"):
        function(features, weight.T, target)
    with pytest.raises(ValueError, match=r"target must be \[2\], one class a sample, got \[1\]"):
        function(features, weight, target[:1])
