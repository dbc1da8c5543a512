"""The registry, CKD and its presets, and what holds for every method."""

import copy
import io

import pytest
import torch

from ckdsnn.losses import (
    METHODS,
    PRESETS,
    FrozenTeacher,
    NoiseSource,
    build_method,
    grad_cam_closed_form,
    grad_cam_spiking,
    kd_loss,
    nld_loss,
    samd_loss,
)
from ckdsnn.models import build_model

LOGITS = ("kd", "dkd", "tser", "decoupled", "hta_kl", "seal", "nld")
ALL = ("ce", *LOGITS, "kdsnn", "bkdsnn", "catkd", "e2kd", "samd", "samd_dense", "ckd")


def networks(method, time_steps=2, **options):
    torch.manual_seed(0)
    student = build_model(
        "snn_resnet_small",
        num_classes=10,
        widths=(4, 6, 8),
        time_steps=time_steps,
        sam_stages=method.sam_stages,
        **method.student_options,
        **options,
    )
    teacher = build_model("ann_resnet_small", num_classes=10)
    return student, teacher


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(6, 1, 20, 20), torch.randint(0, 10, (6,))


def run(method, batch, **options):
    images, target = batch
    student, teacher = networks(method, **options)
    method.bind(student, teacher if method.needs_teacher else None)
    frozen = FrozenTeacher(teacher, method) if method.needs_teacher else None
    out, wanted = student(images), None if frozen is None else frozen(images, target)
    return method(out, wanted, target), out, wanted, student


def test_all_methods_are_registered():
    assert set(ALL) == set(METHODS)


@pytest.mark.parametrize("name", ALL)
def test_every_method_trains_the_whole_student(name, batch):
    method = build_method(name)
    parts, *_, student = run(method, batch)
    assert next(iter(parts)) == "ce"
    assert all(part.dim() == 0 and part.dtype == torch.float32 for part in parts.values())
    sum(parts.values()).backward()
    for key, parameter in (*student.named_parameters(), *method.named_parameters()):
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", [name for name in ALL if name != "ce"])
def test_every_part_is_a_gradient_of_its_own(name, batch):
    """No part that is computed and has no effect."""
    parts, *_, student = run(build_method(name), batch)
    weight = student.stages[0][0].conv1.weight
    for part in parts.values():
        (gradient,) = torch.autograd.grad(part, weight, retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in ALL if name != "ce"])
def test_every_method_needs_its_teacher(name, batch):
    method = build_method(name)
    student, _ = networks(method)
    with pytest.raises(ValueError, match="needs a teacher, got None"):
        method.bind(student, None)
    with pytest.raises(ValueError, match="needs the teacher's output, got None"):
        method(student(batch[0]), None, batch[1])


@pytest.mark.parametrize("name", [name for name in ALL if name != "ce"])
def test_other_classes_are_refused(name):
    method = build_method(name)
    student, _ = networks(method)
    with pytest.raises(ValueError, match="the student has 10 classes but the teacher 7"):
        method.bind(student, build_model("ann_resnet_small", num_classes=7))


@pytest.mark.parametrize("name", ALL)
def test_label_smoothing_reaches_the_cross_entropy(name, batch):
    plain, _, _, _ = run(build_method(name), batch)
    smooth, *_ = run(build_method(name, label_smoothing=0.2), batch)
    assert not torch.equal(plain["ce"], smooth["ce"])
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], got 2"):
        build_method(name, label_smoothing=2)


def test_ce_is_cross_entropy_of_the_mean_logits(batch):
    parts, out, _, _ = run(build_method("ce"), batch)
    assert list(parts) == ["ce"]
    torch.testing.assert_close(parts["ce"], -torch.log_softmax(out.logits, 1)[range(6), batch[1]].mean())


def test_kd_is_ce_plus_kd(batch):
    parts, out, wanted, _ = run(build_method("kd", tau=3.0, weight=0.5), batch)
    torch.testing.assert_close(parts["kd"], 0.5 * kd_loss(out.logits, wanted.logits, 3.0))


def test_ckd_default(batch):
    parts, out, wanted, _ = run(build_method("ckd", beta=2.0, gamma=0.5, seed=3), batch)
    torch.testing.assert_close(parts["samd"], 2 * samd_loss(out.sams[3], wanted.cams[-1]))
    generator = torch.Generator().manual_seed(3)
    torch.testing.assert_close(parts["nld"], 0.5 * nld_loss(out.logits, wanted.logits, generator=generator))


def test_ckd_paper(batch):
    parts, out, wanted, _ = run(build_method("ckd", preset="paper"), batch)
    torch.testing.assert_close(parts["samd"], samd_loss(out.sams[3], wanted.cams[-1], normalisation="none"))


def test_ckd_released_code(batch):
    method = build_method("ckd", preset="released-code")
    parts, out, wanted, _ = run(method, batch)
    assert method.teacher_mode == "train"
    assert method.student_options == {"last_activation": "relu", "head": "released"}
    sums = out.features[3].sum((0, 2))
    scaled = sums / (sums.max() + 1e-3) if sums.min() == 0 else (sums - sums.min()) / (sums.max() - sums.min() + 1e-3)
    cam = wanted.cams[-1] - wanted.cams[-1].min()
    p = torch.softmax((cam / (cam.max() + 1e-3)).flatten(1) / 2, 1)
    q = torch.softmax(scaled.flatten(1) / 2, 1)
    torch.testing.assert_close(parts["samd"], (p * (p / q).log()).sum(1).mean(), rtol=1e-3, atol=1e-7)
    generator = torch.Generator().manual_seed(0)
    expected = nld_loss(
        out.logits,
        wanted.logits,
        generator=generator,
        spread="variance",
        mixing="probabilities",
        detach_statistics=False,
    )
    torch.testing.assert_close(parts["nld"], expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradient_of_nld_with_and_without_the_statistics(preset, batch):
    parts, out, wanted, _ = run(build_method("nld", preset=preset), batch)
    options = {"spread": "variance", "mixing": "probabilities"} if preset == "released-code" else {}
    gradients = [
        torch.autograd.grad(
            nld_loss(
                out.logits,
                wanted.logits,
                generator=torch.Generator().manual_seed(0),
                detach_statistics=detach,
                **options,
            ),
            out.logits,
            retain_graph=True,
        )[0]
        for detach in (preset == "released-code", preset != "released-code")
    ]
    (actual,) = torch.autograd.grad(parts["nld"], out.logits)
    torch.testing.assert_close(actual, gradients[1])
    assert not torch.allclose(actual, gradients[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_samd_and_nld_alone_are_the_parts_of_ckd(preset, batch):
    both, *_ = run(build_method("ckd", preset=preset), batch)
    samd, *_ = run(build_method("samd", preset=preset), batch)
    nld, *_ = run(build_method("nld", preset=preset), batch)
    assert list(samd) == ["ce", "samd"]
    assert list(nld) == ["ce", "nld"]
    torch.testing.assert_close(samd["samd"], both["samd"])
    torch.testing.assert_close(nld["nld"], both["nld"])


def test_several_stages_are_averaged(batch):
    parts, out, wanted, _ = run(build_method("samd", stages=(1, -1)), batch)
    each = [samd_loss(out.sams[1], wanted.cams[1]), samd_loss(out.sams[3], wanted.cams[-1])]
    torch.testing.assert_close(parts["samd"], sum(each) / 2)


@pytest.mark.parametrize("name", ["samd", "ckd"])
def test_what_is_asked_of_the_teacher(name):
    options = {"teacher_map": "class_weights", "stages": (2, -1), "teacher_stages": (1, 3)}
    method = build_method(name, **(options if name == "samd" else {"samd": options}))
    assert (method.teacher_map, method.teacher_map_stages, method.sam_stages) == ("class_weights", (1, 3), (2, -1))


def test_a_teachers_stage_may_be_another(batch):
    parts, out, wanted, _ = run(build_method("samd", stages=(2,), teacher_stages=(-1,)), batch)
    torch.testing.assert_close(parts["samd"], samd_loss(out.sams[2], wanted.cams[-1]))


def test_spike_sums(batch):
    parts, out, wanted, _ = run(build_method("samd", reduction="sum", normalisation="none"), batch)
    sums = out.features[3].sum((0, 2))
    torch.testing.assert_close(parts["samd"], samd_loss(sums, wanted.cams[-1], normalisation="none"))


def test_cam_against_cam(batch):
    method = build_method("samd", student_map="grad_cam")
    assert method.sam_stages == ()
    parts, out, wanted, _ = run(method, batch)
    ours = grad_cam_spiking(out.step_logits, out.features[3], batch[1])
    torch.testing.assert_close(parts["samd"], samd_loss(ours, wanted.cams[-1]))


def test_maps_of_a_plain_teacher_output(batch):
    """Without FrozenTeacher the closed form still holds."""
    images, target = batch
    method = build_method("samd")
    student, teacher = networks(method)
    out, plain = student(images), teacher.eval()(images)
    expected = samd_loss(out.sams[3], grad_cam_closed_form(plain.features[3], plain.classifier_weight, target))
    torch.testing.assert_close(method(out, plain, target)["samd"], expected)


def test_learnable_strength(batch):
    method = build_method("nld", learnable_strength=True, strength=0.2)
    parts, *_ = run(method, batch)
    torch.testing.assert_close(parts["nld"], run(build_method("nld", strength=0.2), batch)[0]["nld"])
    parts["nld"].backward()
    assert method.nld.strength_shift.grad.abs() > 0
    assert "nld.strength_shift" in method.state_dict()


@pytest.mark.parametrize("name", ["nld", "ckd", "bkdsnn"])
def test_noise_continues_from_a_checkpoint(name, batch):
    images, target = batch
    method = build_method(name, seed=5)
    student, teacher = networks(method)
    method.bind(student, teacher)
    wanted = FrozenTeacher(teacher, method)(images, target)
    out = student(images)
    part = {"bkdsnn": "features"}.get(name, "nld")

    first = method(out, wanted, target)[part]
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    second = method(out, wanted, target)[part]
    assert not torch.equal(first, second)

    file.seek(0)
    resumed = build_method(name, seed=6).bind(student, teacher)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(resumed(out, wanted, target)[part], second)
    assert torch.equal(copy.deepcopy(resumed)(out, wanted, target)[part], resumed(out, wanted, target)[part])


def test_processes_draw_their_own_noise():
    streams = []
    for seed, process in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        source = NoiseSource(seed)
        torch.rand(3, generator=source.generator)
        source.restart(process)
        streams.append(torch.rand(5, generator=source.generator).tolist())
    assert len({tuple(stream) for stream in streams}) == 5
    assert streams[3] == torch.rand(5, generator=NoiseSource(1).generator).tolist()


def test_global_seed_does_not_touch_the_noise(batch):
    first, *_ = run(build_method("nld"), batch)
    torch.rand(7)
    second, *_ = run(build_method("nld"), batch)
    assert torch.equal(first["nld"], second["nld"])


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("ckdd", {}, ValueError, "unknown method 'ckdd'; did you mean 'ckd'"),
        (
            "kd",
            {"temperatur": 1},
            TypeError,
            "no option 'temperatur'; known: label_smoothing, tau, weight",
        ),
        ("samd", {"normalization": "none"}, TypeError, "no option 'normalization'; did you mean 'normalisation'"),
        ("ckd", {"nld": {"strenght": 1}}, TypeError, "no option 'strenght'; did you mean 'strength'"),
        ("ckd", {"preset": "papers"}, ValueError, "unknown preset 'papers'; did you mean 'paper'"),
        ("ckd", {"samd": {"scaling": "l3"}}, ValueError, "scaling must be one of"),
        ("samd", {"reduction": "max"}, ValueError, "reduction must be one of mean, sum, got 'max'"),
        ("samd", {"student_map": "grad_cam", "reduction": "sum"}, ValueError, "only used with student_map='sam'"),
        ("samd", {"stages": ()}, ValueError, "stages must have at least one value, got none"),
        ("samd", {"stages": (1, 2), "teacher_stages": (1,)}, ValueError, "must name one stage for each of"),
        ("samd", {"teacher_map": "cam"}, ValueError, "teacher_map must be one of"),
        ("nld", {"noise": "none", "learnable_strength": True}, ValueError, "learnable_strength=True is not used"),
        ("nld", {"preset": "released-code", "noise": "none"}, ValueError, "spread='variance' is not used"),
        ("kd", {"tau": 0.0}, ValueError, "tau must be > 0, got 0.0"),
        (3, {}, TypeError, "the method must be a name, got 3"),
        ("nld", {"learnable_strength": True, "strength": 0}, ValueError, "cannot start at the limit, strength=0"),
        (
            "nld",
            {"learnable_strength": True, "strength": 1, "mixing": "probabilities"},
            ValueError,
            "cannot start at the limit, strength=1",
        ),
    ],
)
def test_bad_options(name, options, error, message):
    with pytest.raises(error, match=message):
        build_method(name, **options)


def test_a_student_spikes():
    ann = build_model("ann_resnet_small", num_classes=10)
    with pytest.raises(TypeError, match="KD distils into a spiking network, got ANNResNet"):
        build_method("kd").bind(ann, ann)
    build_method("ce").bind(ann)


def test_a_teacher_does_not():
    snn = build_model("snn_resnet_small", num_classes=10)
    for wrong in (snn, "teacher", torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="the teacher must be a conventional network, got"):
            build_method("kd").bind(snn, wrong)


def test_one_class_is_refused():
    student, teacher = (build_model(f"{kind}_resnet_small", num_classes=1) for kind in ("snn", "ann"))
    with pytest.raises(ValueError, match="the networks have one class, whose distribution teaches nothing"):
        build_method("kd").bind(student, teacher)


def test_the_released_codes_head(batch):
    """512-256-classes for the ResNet-19, here 8-256-10; a head that the network's own options ask for stays."""
    student, _ = networks(build_method("ckd", preset="released-code"))
    assert [tuple(layer.weight.shape) for layer in student.head] == [(256, 8), (10, 256)]
    assert build_method("ckd").student_options == build_method("ckd", preset="paper").student_options == {}


def test_bind_checks_stages():
    method = build_method("samd", stages=(1,))
    student, teacher = networks(build_method("samd"))
    with pytest.raises(ValueError, match=r"map of stage 1, but the student returns those of \(3,\); build it with"):
        method.bind(student, teacher)
    with pytest.raises(ValueError, match="stage 4 does not exist: the model has stages 1 to 3"):
        build_method("kdsnn", stages=(4,)).bind(student, teacher)
