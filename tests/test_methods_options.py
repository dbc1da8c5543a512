"""Every option of every method: it changes the loss, and values that are none are refused by its name."""

import math

import numpy as np
import pytest
import torch

from ckdsnn.losses import METHODS, NoiseSource, build_method
from ckdsnn.models import ANNOutput, SNNOutput

T, B, K, C, SIZE = 3, 4, 5, 4, 4
STAGES = (1, 2, 3)
TARGET = torch.tensor([0, 4, 2, 2])

# Another value of each option than its default, and what else has to be said for it to count.
OTHER = {
    "tau": {"tau": 2.5},
    "weight": {"weight": 0.7},
    "feature_weight": {"feature_weight": 0.7},
    "explanation_weight": {"explanation_weight": 0.7},
    "alpha": {"alpha": 0.37},
    "beta": {"beta": 0.7},
    "gamma": {"gamma": 0.7},
    "entropy": {"entropy": 0.7},
    "entropy_tau": {"entropy_tau": 4.0},
    "warmup": {"warmup": 3},
    "drop": {"drop": 0.6},
    "stage": {"stage": 1},
    "stages": {"stages": (1, -1)},
    "teacher_stages": {"teacher_stages": (2,)},
    "label_smoothing": {"label_smoothing": 0.2},
    "head_mass": {"head_mass": 0.9},
    "resolution": {"resolution": 4},
    "seed": {"seed": 7},
    "preset": {"preset": "paper"},
    "reduction": {"reduction": "sum", "normalisation": "none"},
    "normalisation": {"normalisation": "zscore"},
    "scaling": {"scaling": "l2"},
    "temperature": {"temperature": 1.3},
    "temperature_factor": {"temperature_factor": False},
    "teacher_map": {"teacher_map": "grad_cam_predicted"},
    "student_map": {"student_map": "grad_cam"},
    "cam_error": {"cam_error": 0.5},
    "cam_error_kind": {"cam_error_kind": "noise"},
    "kd_weight": {"kd_weight": 0.7},
    "maps": {"maps": "classes"},
    "background": {"background": 2},
    "noise": {"noise": "none"},
    "strength": {"strength": 0.5},
    "distribution": {"distribution": "laplace"},
    "match": {"distribution": "laplace", "match": "mean_abs"},
    "spread": {"spread": "variance"},
    "sigma": {"noise": "fixed", "sigma": 2.0},
    "mixing": {"mixing": "probabilities"},
    "samd": {"samd": {"scaling": "l2"}},
    "nld": {"nld": {"strength": 0.5}},
}
# The loss is the same with these; what changes is what trains, or the gradient.
GRADIENT_ONLY = {
    "detach_statistics": {"detach_statistics": False},
    "learnable_strength": {"learnable_strength": True},
    "strength_prior": {"learnable_strength": True, "strength_prior": 3.0},
}
# What has to be said, too, for an option to count.
NEEDED = {
    ("samd", "seed"): {"cam_error": 0.5, "cam_error_kind": "noise"},
    ("samd", "cam_error_kind"): {"cam_error": 0.5},
    ("samd_dense", "tau"): {"kd_weight": 1.0},
}
NO_PRESET_EFFECT = {("nld", "preset")}  # `default` and `paper` differ in SAMD alone


class Network:
    """What `make_modules` asks of a network."""

    num_stages, stage_channels, classifier_weight = len(STAGES), (C,) * len(STAGES), torch.ones(())
    num_classes = K


def outputs(requires_grad=False):
    """Of a student and a teacher of three stages each, as plain tensors."""
    torch.manual_seed(0)
    features = {stage: torch.rand(T, B, C, SIZE, SIZE, requires_grad=True) for stage in STAGES}
    weight = torch.randn(K, C, requires_grad=True)
    steps = sum(features.values()).mean((3, 4)) @ weight.T
    sams = {stage: x.mean((0, 2)) for stage, x in features.items()}
    student = SNNOutput(steps.mean(0), steps, features, sams, weight)
    wanted = {stage: torch.rand(B, C, SIZE, SIZE, requires_grad=requires_grad) for stage in STAGES}
    theirs = torch.randn(K, C, requires_grad=requires_grad)
    cams = {stage: torch.rand(B, SIZE, SIZE, requires_grad=requires_grad) for stage in (1, 2)}
    logits = 3 * torch.randn(B, K)
    teacher = ANNOutput(logits.requires_grad_(requires_grad), wanted, theirs, cams)
    return student, teacher


def parts(name, *, epoch=0.0, **options):
    method = build_method(name, **options)
    torch.manual_seed(1)
    method.make_modules(Network, Network)
    return method(*outputs(), TARGET, epoch=epoch)


OPTIONS = [(name, option) for name in sorted(METHODS) for option in METHODS[name].Options.names()]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_changes_the_loss(name, option):
    if option in GRADIENT_ONLY or (name, option) in NO_PRESET_EFFECT:
        return
    needed = NEEDED.get((name, option), {})
    before, after = parts(name, **needed), parts(name, **needed, **OTHER[option])
    total = [torch.stack(list(p.values())).sum() for p in (before, after)]
    assert (total[0] - total[1]).abs() > 1e-7 * total[0].abs(), (before, after)


@pytest.mark.parametrize("name", ["nld", "ckd"])
def test_options_of_the_gradient(name):
    def gradient(**options):
        options = options if name == "nld" else {"nld": options}
        student, teacher = outputs()
        loss = build_method(name, **options)(student, teacher, TARGET)["nld"]
        return torch.autograd.grad(loss, student.features[1])[0]

    assert not torch.allclose(gradient(), gradient(**GRADIENT_ONLY["detach_statistics"]))
    assert list(build_method("nld", **GRADIENT_ONLY["learnable_strength"]).parameters())
    assert not list(build_method("nld").parameters())


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ce"}))
def test_no_gradient_reaches_the_teacher(name):
    """Though its outputs ask for one."""
    method = build_method(name)
    torch.manual_seed(1)
    method.make_modules(Network, Network)
    student, teacher = outputs(requires_grad=True)
    everything = [teacher.logits, teacher.classifier_weight, *teacher.features.values(), *teacher.cams.values()]
    assert all(tensor.requires_grad for tensor in everything)
    for part in method(student, teacher, TARGET).values():
        part.backward(retain_graph=True)
    assert [tensor.grad for tensor in everything] == [None] * len(everything)
    assert student.classifier_weight.grad is not None or name in ("samd",)


@pytest.mark.parametrize("name", ["kdsnn", "bkdsnn"])
def test_the_methods_own_weights_are_trained(name):
    method = build_method(name)
    method.make_modules(Network, type("Wider", (Network,), {"stage_channels": (C + 1,) * len(STAGES)}))
    student, teacher = outputs()
    teacher.features = {stage: torch.rand(B, C + 1, SIZE, SIZE) for stage in STAGES}
    method(student, teacher, TARGET)["features"].backward()
    assert len(list(method.parameters())) == {"kdsnn": 2, "bkdsnn": 6}[name]
    for key, parameter in method.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


def test_kdsnn_averages_its_stages():
    method = build_method("kdsnn", stages=(1, 3))
    method.projections.extend([torch.nn.Identity(), torch.nn.Identity()])
    student, teacher = outputs()
    each = [(student.features[stage].mean(0) - teacher.features[stage]).pow(2).mean() for stage in (1, 3)]
    torch.testing.assert_close(method(student, teacher, TARGET)["features"], sum(each) / 2)


def test_dkd_rises_epoch_by_epoch():
    values = [parts("dkd", warmup=4, epoch=epoch)["dkd"].item() for epoch in (0.0, 1.0, 2.0, 3.0, 9.0)]
    for value, rise in zip(values, (0.25, 0.5, 0.75, 1.0, 1.0), strict=True):
        assert value == pytest.approx(rise * values[-1], rel=1e-6)


WEIGHTS = ["weight", "kd_weight", "feature_weight", "explanation_weight", "alpha", "beta", "gamma", "entropy"]
SHARES = ["drop", "label_smoothing", "head_mass", "strength", "cam_error"]
NUMBERS = [*WEIGHTS, *SHARES, "tau", "entropy_tau", "temperature"]
WHOLE = ["warmup", "stage", "resolution", "seed"]
FLAGS = ["temperature_factor", "detach_statistics", "learnable_strength"]
NAMES = [
    *("preset", "reduction", "normalisation", "scaling", "teacher_map"),
    *("student_map", "noise", "distribution", "match", "spread", "mixing", "cam_error_kind", "maps"),
]


def options_of(kinds):
    return [(name, option) for name, option in OPTIONS if option in kinds]


def test_the_lists_above_have_all_options():
    known = {option for _, option in OPTIONS}
    nested = {"samd", "nld", "stages", "teacher_stages", "sigma", "strength_prior", "background"}
    assert known == {*NUMBERS, *WHOLE, *FLAGS, *NAMES, *nested}
    assert known == set(OTHER) | set(GRADIENT_ONLY)


@pytest.mark.parametrize(("name", "option"), options_of(NUMBERS))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5, True, "0.5", [1.0]], ids=str)
def test_no_number_or_none_in_range(name, option, value):
    with pytest.raises((TypeError, ValueError), match=rf"^{option} must be"):
        build_method(name, **{option: value})


@pytest.mark.parametrize(("name", "option"), options_of(NUMBERS))
def test_numbers_of_numpy_are_numbers(name, option):
    build_method(name, **{option: np.float32(0.5)})


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1.0, True, "1"])
def test_sigma(value):
    with pytest.raises((TypeError, ValueError), match=r"^sigma must be"):
        build_method("nld", noise="fixed", sigma=value)


@pytest.mark.parametrize(("name", "option"), options_of(WHOLE))
@pytest.mark.parametrize("value", [1.5, True, "1", None, math.nan], ids=str)
def test_no_whole_number(name, option, value):
    with pytest.raises(TypeError, match=rf"^{option} must be a whole number, got"):
        build_method(name, **{option: value})


@pytest.mark.parametrize(("name", "option"), options_of(FLAGS))
@pytest.mark.parametrize("value", ["no", 0, 1, "False"], ids=repr)
def test_no_flag(name, option, value):
    with pytest.raises(TypeError, match=rf"^{option} must be True or False, got"):
        build_method(name, **{option: value})


@pytest.mark.parametrize(("name", "option"), options_of(NAMES))
@pytest.mark.parametrize("value", ["", "nothing", 3, True, ["none"]], ids=repr)
def test_no_name(name, option, value):
    with pytest.raises((TypeError, ValueError), match=rf"{option}"):
        build_method(name, **{option: value})


@pytest.mark.parametrize(("name", "option"), options_of(["stages"]))
@pytest.mark.parametrize("value", ["1", (1.5,), (True,), ("a",), None, ()], ids=repr)
def test_no_stages(name, option, value):
    with pytest.raises((TypeError, ValueError), match="stages"):
        build_method(name, stages=value)


@pytest.mark.parametrize("term", ["samd", "nld"])
@pytest.mark.parametrize("value", ["none", 3, ["noise"], False], ids=repr)
def test_no_options_of_a_term(term, value):
    with pytest.raises(TypeError, match=f"{term} must be a mapping of options to values, got"):
        build_method("ckd", **{term: value})


def test_one_stage_needs_no_list():
    assert build_method("samd", stages=2).sam_stages == (2,)
    assert build_method("kdsnn", stages=2).student_feature_stages == (2,)


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("wrong", [-1, K, 100, -100])
def test_classes_that_do_not_exist(name, wrong):
    method = build_method(name)
    method.make_modules(Network, Network)
    with pytest.raises(ValueError, match=rf"target must hold classes from 0 to {K - 1}, got {wrong}"):
        method(*outputs(), torch.tensor([0, 1, wrong, 2]))


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (TARGET.float(), TypeError, "target must be int64, one class a sample, got torch.float32"),
        (TARGET[:3], ValueError, r"target must be \[4\], one class a sample, got \[3\]"),
        (torch.nn.functional.one_hot(TARGET), ValueError, r"target must be \[4\], one class a sample, got \[4, 5\]"),
        (None, TypeError, "target must be a torch.Tensor, got None"),
        ("0", TypeError, "target must be a torch.Tensor, got '0'"),
    ],
)
def test_targets_that_are_none(name, target, error, message):
    with pytest.raises(error, match=message):
        build_method(name)(*outputs(), target)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ce"}))
def test_outputs_that_are_none(name):
    method, (student, teacher) = build_method(name), outputs()
    for wrong in (None, "student", student.logits, teacher):
        with pytest.raises(TypeError, match="student must be the output of a spiking network, got"):
            method(wrong, teacher, TARGET)
    for wrong in ("teacher", teacher.logits, student):
        with pytest.raises(TypeError, match="teacher must be the output of a conventional network, got"):
            method(student, wrong, TARGET)
    with pytest.raises(ValueError, match="must both be"):
        method(student, ANNOutput(torch.randn(B, K + 1), {}), TARGET)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"ce"}))
def test_one_class_is_refused(name):
    one = torch.zeros(B, 1)
    student = SNNOutput(one, one[None], {}, {})
    with pytest.raises(ValueError, match="must be of at least 2 classes"):
        build_method(name)(student, ANNOutput(one, {}), torch.zeros(B, dtype=torch.int64))


def test_seeds_of_noise():
    for wrong in (-1, 1.5, "0", None, True):
        with pytest.raises((TypeError, ValueError), match="seed must be"):
            NoiseSource(wrong)
