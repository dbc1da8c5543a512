"""Saliency maps of teacher and student, how they agree, and what noise does."""

import math

import pytest
import torch

from ckdsnn.analysis import agreement, figures, maps, maps_report
from ckdsnn.data import Batch, DigitsCanvas
from ckdsnn.losses import build_method, grad_cam_closed_form, grad_cam_spiking, nld_loss
from ckdsnn.models import build_model


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    options = {"widths": (4, 6, 8)}
    student = build_model("snn_resnet_small", 10, time_steps=2, sam_stages=(1, 3), **options).eval()
    return student, build_model("ann_resnet_small", 10, **options).eval()


@pytest.fixture(scope="module")
def batches():
    data = DigitsCanvas()
    data.setup("test")
    images, targets = data.arrays("test")
    return [Batch(images[a:b], targets[a:b], torch.arange(a, b)) for a, b in ((0, 3), (3, 4))]


def test_maps_are_those_of_the_losses(pair, batches):
    student, teacher = pair
    images, targets = (torch.cat(part) for part in list(zip(*batches, strict=True))[:2])
    seen = maps.teacher_maps(teacher, batches, maps.Places(), [3, 1])
    out = teacher(images)
    torch.testing.assert_close(seen.maps, grad_cam_closed_form(out.features[3], teacher.classifier_weight, targets))
    torch.testing.assert_close(seen.logits, out.logits)
    assert seen.indices.tolist() == [0, 1, 2, 3]
    assert seen.size == (20, 20)
    assert sorted(seen.shown) == [1, 3]
    assert torch.equal(seen.shown[3], images[3])
    for stage in (-1, 1):
        spiking = student(images)
        number = 3 if stage == -1 else 1
        looked = maps.student_maps(student, batches, stage)
        assert torch.equal(looked.sam, spiking.sams[number])
        torch.testing.assert_close(
            looked.grad_cam, grad_cam_spiking(spiking.step_logits, spiking.features[number], targets).detach()
        )
        assert not looked.logits.requires_grad


def test_frames_are_shown_by_sample(pair):
    _, teacher = pair
    frames = torch.rand(2, 3, 1, 20, 20)  # T 2, B 3
    seen = maps.teacher_maps(teacher, [Batch(frames, torch.zeros(3).long(), torch.arange(3))], maps.Places(), [2])
    assert torch.equal(seen.shown[2], frames[:, 2])


def test_the_method_says_what_is_compared():
    assert maps.Places.of(build_method("kd")) == maps.Places()
    method = build_method("ckd", samd={"stages": [1, 2], "teacher_stages": [2, 3], "teacher_map": "grad_cam_predicted"})
    assert maps.Places.of(method) == maps.Places(2, 3, "grad_cam_predicted")


def test_agreement_by_hand():
    a = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    p = torch.tensor([0.0, 0.25, 0.5, 1.0]).softmax(0)
    kl = agreement.map_divergence(a, torch.zeros_like(a))  # a map without a peak is the uniform distribution
    torch.testing.assert_close(kl, torch.tensor([float((p * (p * 4).log()).sum()), 0.0]))
    assert agreement.map_cosine(a, torch.zeros_like(a)).tolist() == [0.0, 0.0]
    assert agreement.top_region(a, 2).tolist() == [[[False, False], [True, True]], [[False] * 2] * 2]
    # What lies at the minimum is in no region, though it is asked for.
    assert agreement.top_region(a, 4)[0].tolist() == [[False, True], [True, True]]
    box = agreement.box_region(torch.tensor([[1, 2], [0, 0]]), 2, (4, 5))
    wanted = torch.zeros(2, 4, 5, dtype=torch.bool)
    wanted[0, 1:3, 2:4] = wanted[1, :2, :2] = True
    assert torch.equal(box, wanted)
    empty = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert agreement.intersection_over_union(empty, empty).tolist() == [0.0]
    assert agreement.entropy(torch.tensor([[0.0, -math.inf]])).tolist() == [0.0]


def test_the_pointing_game():
    image = torch.zeros(3, 4, 4)
    image[0, 1, 2], image[1, 3, 3] = 1.0, 1.0  # in the box, beside it, nowhere
    box = agreement.box_region(torch.tensor([[1, 1]] * 3), 2, (4, 4))
    assert agreement.points_into(image, box).tolist() == [True, False, False]
    small = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])  # its peak, enlarged, is the lower right corner
    assert agreement.points_into(small, agreement.box_region(torch.tensor([[3, 3]]), 1, (4, 4))).tolist() == [True]


def test_scores_of_equal_maps_and_of_the_place():
    teacher = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    same = maps.Scores.of(3 * teacher, teacher, None, (20, 20)).columns()
    assert list(same) == ["kl", "cosine", "iou"]
    torch.testing.assert_close(same["kl"], torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(same["cosine"], torch.ones(2))
    assert same["iou"].tolist() == [1.0, 1.0]
    image = torch.zeros(1, 20, 20)
    image[0, 4:16, 6:18] = torch.rand(12, 12) + 1
    image[0, 4, 6] = 0  # 143 of 144
    placed = maps.Scores.of(image, None, (torch.tensor([[4, 6]]), 12), (20, 20)).columns()
    assert list(placed) == ["pointing", "box_iou"]
    assert (placed["pointing"].tolist(), placed["box_iou"].tolist()) == ([True], [pytest.approx(143 / 144)])


@pytest.mark.parametrize(
    "options",
    [{}, {"strength": 0.7, "distribution": "gumbel"}, {"mixing": "probabilities", "spread": "variance"},
     {"noise": "fixed", "sigma": 2.0, "temperature": 3.0}],
)  # fmt: skip
def test_the_noise_is_that_of_the_loss(options):
    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    smoothing = maps.Smoothing.of(build_method("nld", **options), student, teacher, seed=3)
    assert smoothing.trained
    without, noisy = smoothing.divergences()
    loss = nld_loss(student, teacher, generator=torch.Generator().manual_seed(3), **options)
    plain = nld_loss(
        student, teacher, generator=torch.Generator(), noise="none", temperature=options.get("temperature", 2.0)
    )
    tau = options.get("temperature", 2.0)
    torch.testing.assert_close(noisy.mean() * tau**2, loss)
    torch.testing.assert_close(without.mean() * tau**2, plain)
    before, after = smoothing.logits("student")
    torch.testing.assert_close(before, student - student.mean(1, keepdim=True))
    assert not before.equal(after)


def test_strong_noise_and_no_noise():
    flat, peaked = torch.zeros(400, 10), torch.zeros(400, 10)
    peaked[:, 0] = 30.0
    mixed = build_method("nld", mixing="probabilities", strength=1.0, noise="fixed", sigma=1e-6)
    smoothing = maps.Smoothing.of(mixed, peaked, flat)  # all of the probability is the noise's, which is uniform
    before, after = smoothing.entropies("student")
    assert before.max() < 1e-3
    torch.testing.assert_close(after, torch.full((400,), math.log(10)))
    assert "higher in 100 % of samples" in maps_report.smoothing_words(smoothing, "epoch 1")
    without = maps.Smoothing.of(build_method("kd"), peaked, flat)
    assert not without.trained
    assert "adds no noise; that of nld by default" in maps_report.smoothing_words(without, "epoch 1")


def test_a_learnt_strength_is_used():
    method = build_method("nld", learnable_strength=True, strength=0.5)
    student, teacher = torch.randn(2, 6, 5)
    noisy = maps.Smoothing.of(method, student, teacher).after["student"]
    torch.testing.assert_close(
        noisy, maps.Smoothing.of(build_method("nld", strength=0.5), student, teacher).after["student"]
    )


def test_pictures():
    image = torch.rand(3, 2, 2)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)
    normalised = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(figures.picture(normalised, mean, std), image.permute(1, 2, 0))
    frames = torch.zeros(4, 2, 2, 2)  # T 4, two polarities
    frames[:, 1, 0, 1] = 2.0
    assert figures.picture(frames).tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert figures.picture(torch.ones(1, 2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]
