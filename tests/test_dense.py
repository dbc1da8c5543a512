"""Networks that classify pixels: labels, heads, pixels as samples, SAMD whose maps keep position, mean IoU."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ckdsnn.checkpoint import RunError, load_checkpoint
from ckdsnn.cli import main
from ckdsnn.data import BatchLoader, DigitMasks, DigitsCanvas
from ckdsnn.data.batches import EpochSampler
from ckdsnn.losses import FrozenTeacher, build_method, samd_loss
from ckdsnn.losses.methods.samd_dense import class_evidence, label_shares
from ckdsnn.losses.resize import resize_to
from ckdsnn.models import build_model
from ckdsnn.models.outputs import by_pixel
from ckdsnn.training import EpochFeed
from ckdsnn.training.evaluation import Evaluation
from ckdsnn.training.lightning import check_classified
from ckdsnn.training.writer import ResumeCheckpoint
from no_host_wait import NoHostWait

K, SIZE = 4, 12
PIXELWISE = ("kd", "dkd", "tser", "decoupled", "hta_kl", "seal", "nld")


def networks(method=None, **options):
    torch.manual_seed(0)
    asked = {"sam_stages": method.sam_stages} if method is not None and method.sam_stages else {}
    student = build_model("snn_fcn_small", K, widths=(3, 4, 5), time_steps=2, **asked, **options)
    return student, build_model("ann_fcn_small", K, widths=(3, 4, 6))


def batch(count=3, size=SIZE):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, size, size, generator=generator)
    return images, torch.randint(K, (count, size, size), generator=generator)


def run(method):
    """The method bound to a pair, its parts, and what they were made of."""
    student, teacher = networks(method)
    images, target = batch()
    method.bind(student, teacher if method.needs_teacher else None)
    wanted = FrozenTeacher(teacher, method)(images, target) if method.needs_teacher else None
    output = student(images)
    return method(output, wanted, target), output, wanted, target, student


# Data


def test_an_epoch_on_the_device_has_the_labels_of_its_pixels():
    images, targets = batch(9)
    sampler = EpochSampler(9, 3, shuffle=True, drop_last=True, seed=2)
    feed = EpochFeed(BatchLoader(images, targets, sampler))
    feed.start(1, 0)
    seen = []
    with NoHostWait():
        for _ in range(3):
            seen.append(feed.batch())
            feed.advance()
    for found in seen:
        assert torch.equal(found.targets, targets[found.indices])
        assert torch.equal(found.images, images[found.indices])


# Networks


def test_scores_are_those_of_all_stages_enlarged_and_added():
    student, teacher = networks()
    images, _ = batch()
    for network in (student.eval(), teacher.eval()):
        output = network(images)
        head = network.head if network is student else network.classifier
        features = {s: x.mean(0) if x.dim() == 5 else x for s, x in output.features.items()}
        wanted = head.scores[2].bias[:, None, None]
        for stage, layer in zip((1, 2, 3), head.scores, strict=True):
            scores = torch.einsum("bchw,kc->bkhw", features[stage], layer.weight[:, :, 0, 0])
            wanted = wanted + F.interpolate(scores, (SIZE, SIZE), mode="bilinear", align_corners=False)
        assert output.logits.shape == (3, K, SIZE, SIZE)
        torch.testing.assert_close(output.logits, wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(output.classifier_weight, head.scores[2].weight[:, :, 0, 0])
    torch.testing.assert_close(student(images).step_logits.mean(0), student(images).logits)


def test_a_folded_teacher_says_the_same():
    _, teacher = networks()
    images, _ = batch()
    before = teacher.eval()(images).logits
    teacher.fold()
    torch.testing.assert_close(teacher(images).logits, before, rtol=1e-4, atol=1e-5)


def test_the_first_stage_sees_every_pixel():
    with pytest.raises(ValueError, match=r"strides must begin with 1.*got \(2, 2, 1\)"):
        build_model("ann_fcn_small", K, strides=(2, 2, 1))


# Pixels as samples


def test_pixels_are_samples_one_after_the_other():
    logits = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2).float()
    _, teacher = networks()
    output = teacher(batch()[0])
    output.logits = logits
    flat = by_pixel(output)
    assert flat.image_size == (2, 2)
    assert flat.logits[5].tolist() == [13.0, 17.0, 21.0]  # image 1, row 0, column 1
    assert torch.equal(flat.logits, torch.stack([logits[b, :, i, j] for b in (0, 1) for i in (0, 1) for j in (0, 1)]))


@pytest.mark.parametrize("name", ["ce", *PIXELWISE])
def test_methods_of_logits_take_pixels_for_samples(name):
    parts, output, wanted, target, student = run(build_method(name))
    flat = by_pixel(output)
    again = build_method(name)
    theirs = None if wanted is None else by_pixel(wanted)
    expected = again(flat, theirs, target.flatten())
    assert {key: part.item() for key, part in parts.items()} == {key: part.item() for key, part in expected.items()}
    if name in ("ce", "kd"):
        torch.testing.assert_close(parts["ce"], F.cross_entropy(output.logits, target), rtol=1e-5, atol=0)
    sum(parts.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in student.parameters())


@pytest.mark.parametrize("name", ["kdsnn", "bkdsnn", "catkd"])
def test_methods_of_features_work_as_they_are(name):
    parts, *_, student = run(build_method(name))
    sum(list(parts.values())[1:]).backward()
    assert student.stages[2][0].conv2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["samd", "ckd", "e2kd"])
def test_maps_of_one_class_an_image_are_refused(name):
    method = build_method(name)
    with pytest.raises(ValueError, match=r"explains one class an image.*samd_dense"):
        method.bind(*networks(method))


def test_networks_data_and_labels_that_do_not_fit():
    student, teacher = networks()
    images = build_model("ann_resnet_small", K)
    with pytest.raises(ValueError, match="the student classifies pixels but the teacher images"):
        build_method("kd").bind(student, images)
    with pytest.raises(ValueError, match=r"target must be \[3, 12, 12\], one class a pixel, got \[3\]"):
        build_method("ce")(student(batch()[0]), None, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="target must hold classes from 0 to 3, got 4"):
        build_method("ce")(student(batch()[0]), None, torch.full((3, 12, 12), 4))
    with pytest.raises(ValueError, match=r"target must be \[3, 12, 12\], one class a pixel"):
        FrozenTeacher(teacher, build_method("kd"))(batch()[0], torch.zeros(3, dtype=torch.int64))
    with pytest.raises(RunError, match="DigitMasks has one class for each pixel, but ANNResNet predicts one for each"):
        check_classified(DigitMasks(), images)
    with pytest.raises(RunError, match="DigitsCanvas has one class for each image, but SNNFCN predicts"):
        check_classified(DigitsCanvas(), student)


# SAMD whose maps keep position


def test_shares_of_labels():
    labels = torch.tensor([[[0, 0, 2, 2], [0, 1, 2, 2]]])
    shares = label_shares(labels, 3, (2, 4))
    assert torch.equal(shares[0].argmax(0), labels[0])
    assert torch.equal(shares.sum(1), torch.ones(1, 2, 4))
    assert label_shares(labels, 3, (1, 1)).flatten().tolist() == pytest.approx([3 / 8, 1 / 8, 4 / 8], abs=0.05)
    # The label of an image is that of all of its positions.
    assert label_shares(torch.tensor([[[1]]]), 3, (2, 2))[0].flatten(1).tolist() == [[0] * 4, [1] * 4, [0] * 4]


def test_the_teachers_map_is_hirescam_of_the_pixels_of_objects():
    """By autograd, away from the border, where weights are brought to a sum of 1; enlargement by 2 adds 4 pixels up."""
    _, teacher = networks()
    images, target = batch(2, 20)
    output = teacher(images)
    chosen = output.logits.gather(1, target[:, None])[:, 0] * (target != 1)
    (gradient,) = torch.autograd.grad(chosen.sum(), output.features[3], retain_graph=True)
    hirescam = (gradient * output.features[3]).sum(1).relu() / 4
    evidence = class_evidence(output.features[3], output.classifier_weight)
    shares = label_shares(target, K, evidence.shape[2:])
    shares[:, 1] = 0  # the background
    ours = (shares * evidence).sum(1).relu()
    assert hirescam[:, 1:-1, 1:-1].abs().max() > 0.01
    torch.testing.assert_close(ours[:, 1:-1, 1:-1], hirescam[:, 1:-1, 1:-1], rtol=1e-4, atol=1e-6)


def test_samd_compares_that_map_with_the_spikes():
    method = build_method("samd_dense", weight=0.5, kd_weight=2.0, tau=3.0, background=2, normalisation="zscore")
    parts, output, wanted, target, _ = run(method)
    assert list(parts) == ["ce", "samd", "kd"]
    evidence = torch.einsum("bchw,kc->bkhw", wanted.features[-1], wanted.classifier_weight)
    one_hot = F.one_hot(target, K).permute(0, 3, 1, 2).float()
    one_hot[:, 2] = 0
    maps = (resize_to(one_hot, (6, 6)) * evidence).sum(1).relu()
    sam = output.features[3].mean((0, 2))
    expected = samd_loss(sam, maps, normalisation="zscore", resolution=0.5 / (2 * 5))
    torch.testing.assert_close(parts["samd"], 0.5 * expected, rtol=1e-5, atol=0)
    rows = [x.movedim(1, 3).flatten(0, 2) / 3 for x in (output.logits, wanted.logits)]
    divergence = F.kl_div(rows[0].log_softmax(1), rows[1].softmax(1), reduction="batchmean")
    torch.testing.assert_close(parts["kd"], 2 * 9 * divergence, rtol=1e-5, atol=0)


def test_maps_of_classes_are_those_of_objects_in_the_image():
    method = build_method("samd_dense", maps="classes", background=0, normalisation="none")
    student, teacher = networks(method)
    images, _ = batch(2)
    target = torch.zeros(2, SIZE, SIZE, dtype=torch.int64)
    target[0, :4], target[0, 4:6], target[1, 3] = 1, 3, 2
    method.bind(student, teacher)
    output, wanted = student(images), FrozenTeacher(teacher, method)(images, target)
    losses = []
    for image, label in ((0, 1), (0, 3), (1, 2)):
        ours = torch.einsum("chw,c->hw", output.features[3][:, image].mean(0), output.classifier_weight[label])
        theirs = torch.einsum("chw,c->hw", wanted.features[-1][image], wanted.classifier_weight[label])
        losses.append(samd_loss(ours[None], theirs[None], normalisation="none"))
    torch.testing.assert_close(method(output, wanted, target)["samd"], sum(losses) / 3, rtol=1e-5, atol=0)
    nothing = method(output, wanted, torch.zeros_like(target))["samd"]
    assert nothing.item() == 0


def test_of_an_image_with_one_label_it_is_samd():
    torch.manual_seed(0)
    student, teacher = build_model("snn_resnet_small", K, time_steps=2), build_model("ann_resnet_small", K)
    images, target = batch()[0], torch.tensor([0, 3, 2])
    found = []
    for name in ("samd", "samd_dense"):
        method = build_method(name, normalisation="zscore").bind(student, teacher)
        found.append(method(student(images), FrozenTeacher(teacher, method)(images, target), target)["samd"])
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


@pytest.mark.parametrize("maps", ["sam", "classes"])
@pytest.mark.parametrize("scaling", ["softmax", "l2", "zscore", "none"])
def test_nothing_waits_for_the_device(maps, scaling):
    method = build_method("samd_dense", maps=maps, scaling=scaling, kd_weight=1.0, background=0)
    student, teacher = networks(method)
    method.bind(student, teacher)
    (images, target), frozen = batch(), FrozenTeacher(teacher, method)
    output = student(images)
    with NoHostWait():
        parts = method(output, frozen(images, target), target)
        sum(parts.values()).backward()
    assert student.stages[0][0].conv1.weight.grad.abs().sum() > 0


def test_background_has_to_be_a_class():
    with pytest.raises(ValueError, match="background must be >= 0, got -1"):
        build_method("samd_dense", background=-1)
    method = build_method("samd_dense", background=K)
    with pytest.raises(ValueError, match="background must be one of the classes 0 to 3 or None, got 4"):
        method.bind(*networks(method))


# Evaluation


def test_mean_iou_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    evaluation = Evaluation(build_method("ce"), None, pixel_classes=5)
    logits, target = torch.randn(6, 5, 7, 3, generator=generator), torch.randint(3, (6, 7, 3), generator=generator)
    logits[:, 4] = -9  # a class that does not occur
    for rows in (slice(0, 4), slice(4, 6)):  # a mean over batches would be another number
        evaluation.add(logits[rows], None, target[rows])
    found = evaluation.means(evaluation.sums)
    predicted, labels = logits.argmax(1).flatten(), target.flatten()
    wanted = metrics.jaccard_score(labels, predicted, labels=range(4), average="macro", zero_division=0.0)
    assert found == {
        "accuracy": pytest.approx((predicted == labels).double().mean().item()),
        "mean_iou": pytest.approx(wanted),
    }


def test_the_divergence_of_pixels_and_the_sums_of_two_processes():
    """Every process sees a part of the images; what they have counted is added up, and says what one would."""
    method = build_method("nld", strength=0.5)
    student, teacher = networks(method)
    images, target = batch(5)
    evaluation, sums, logits = (
        Evaluation(method, FrozenTeacher(teacher, method), K),
        [],
        student(images).logits.detach(),
    )
    for rows in (slice(0, 3), slice(3, 5)):
        evaluation.start(torch.device("cpu"), again=True)
        with NoHostWait():
            evaluation.add(logits[rows], images[rows], target[rows], 0)  # the number of each process's first batch
        sums.append(evaluation.sums)
    found = evaluation.means(sums[0] + sums[1])
    p, q = (x.double().log_softmax(1) for x in (teacher.eval()(images).logits, logits))
    predicted = logits.argmax(1)
    ious = [((predicted == k) & (target == k)).sum() / ((predicted == k) | (target == k)).sum() for k in range(K)]
    assert found.keys() == {"accuracy", "mean_iou", "kl", "kl_noisy"}
    assert found["accuracy"] == (predicted == target).double().mean()
    assert found["mean_iou"] == pytest.approx(torch.stack(ious).mean().item())
    assert found["kl"] == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-5)
    assert found["kl_noisy"] > found["kl"]


def test_images_have_no_iou_and_nothing_seen_is_nothing():
    for classes in (None, 2):
        evaluation = Evaluation(build_method("ce"), None, classes)
        assert evaluation.means(evaluation.sums) == {}
    evaluation = Evaluation(build_method("ce"), None)
    evaluation.add(torch.eye(2), None, torch.tensor([0, 0]))
    assert evaluation.means(evaluation.sums) == {"accuracy": 0.5}


# The whole way


SMALL = [
    *("--data.train_samples", "60", "--data.views", "2", "--model.teacher.epochs", "1", "--trainer.max_epochs", "2"),
    *("--model.network.options.time_steps", "2", "--trainer.enable_progress_bar", "false"),
]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dense"
    command = ["--config", "digits_dense", "--out", str(out), *SMALL]
    assert main(["distill", *command]) == 0
    return out, command


def test_a_run_reports_its_mean_iou(distilled, capsys):
    out, command = distilled
    tested = json.loads((out / "test.json").read_text())["metrics"]
    assert set(tested) == {"test/accuracy", "test/mean_iou", "test/kl", "test/firing_rate"}
    assert main(["predict", *command]) == 0
    found = np.load(out / "predictions.npz")
    assert {name: found[name].shape for name in found} == {
        "index": (600,),
        **dict.fromkeys(("target", "prediction", "confidence"), (600, 20, 20)),
    }
    assert (found["target"] == found["prediction"]).mean() == pytest.approx(tested["test/accuracy"])
    best = torch.load(out / "best.ckpt", weights_only=True)["callbacks"]
    assert any(state.get("monitor") == "val/mean_iou" for state in best.values())
    assert main(["energy", str(out), "--samples", "20", "--batch_size", "10"]) == 0
    table = capsys.readouterr().out
    assert "head.scores.2" in table
    for verb in ("maps", "gradient"):
        assert main([verb, str(out)]) == 1
        assert "classifies pixels" in capsys.readouterr().err


def test_an_interrupted_run_ends_with_the_same_weights(distilled, tmp_path, monkeypatch):
    out, command = distilled
    teacher = ["--model.teacher.checkpoint", str(out / "teacher" / "last.ckpt")]
    options = [*command[:2], "--out", str(tmp_path), *SMALL, *teacher, "--save_every_n_steps", "1"]
    save = ResumeCheckpoint.on_train_batch_end

    def save_and_stop(self, trainer, *args):
        save(self, trainer, *args)
        if trainer.global_step == 3:  # of 4, within the second epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ResumeCheckpoint, "on_train_batch_end", save_and_stop)
        assert main(["fit", *options]) == 130
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
    assert main(["fit", *options]) == 0
    whole, resumed = (load_checkpoint(folder / "last.ckpt")["state_dict"] for folder in (out, tmp_path))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
