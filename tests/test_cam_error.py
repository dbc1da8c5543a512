"""Errors that are put into the teacher's maps: how large they are, where they come from, that they can be resumed."""

import pytest
import torch

from ckdsnn.losses import FrozenTeacher, NoiseSource, build_method, samd_loss
from ckdsnn.losses.cam_error import ERRORS, with_error, wrong_maps
from ckdsnn.models import build_model
from no_host_wait import NoHostWait

MAPS = torch.tensor([[[0.0, 1.0, 2.0, 4.0], [8.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_shifted_map_is_moved_by_half_its_size_round_its_edges():
    assert wrong_maps(MAPS, "shift")[0].tolist() == [[0, 0, 8, 0], [2, 4, 0, 1]]
    # An odd size: 1 row of 3, 2 columns of 5.
    row = torch.arange(15.0).view(1, 3, 5)
    assert wrong_maps(row, "shift")[0].tolist() == [[13, 14, 10, 11, 12], [3, 4, 0, 1, 2], [8, 9, 5, 6, 7]]


def test_the_map_of_another_sample_is_brought_to_the_range_of_its_own():
    first, second = wrong_maps(MAPS, "other", generator())
    assert first.tolist() == [[0, 0, 8, 0], [0, 0, 0, 0]]  # (second - 1) / 1 * 8
    assert second.tolist() == [[1, 1.125, 1.25, 1.5], [2, 1, 1, 1]]  # 1 + first / 8


def test_no_sample_gets_its_own_map():
    maps = torch.eye(5)[:, None]  # the maximum of map i is at place i
    found = set()
    for seed in range(40):
        places = wrong_maps(maps, "other", generator(seed)).argmax(2)[:, 0]
        steps = (places - torch.arange(5)) % 5
        assert len(steps.unique()) == 1
        found.add(int(steps[0]))
    assert found == {1, 2, 3, 4}
    assert torch.equal(wrong_maps(maps[:1], "other", generator()), maps[:1])


def test_noise_has_the_range_of_the_map_and_nothing_else_of_it():
    maps = torch.rand(3, 40, 40, generator=generator(1)) * 6 - 2
    wrong = wrong_maps(maps, "noise", generator(2))
    for extreme in (torch.amin, torch.amax):
        assert torch.allclose(extreme(wrong, (1, 2)), extreme(maps, (1, 2)), atol=1e-6)
    assert wrong.flatten(1).mean(1).sub(1).abs().max() < 0.15
    assert torch.corrcoef(torch.stack([wrong.flatten(), maps.flatten()]))[0, 1].abs() < 0.05


def test_the_share_of_the_error():
    mixed = with_error(MAPS, 0.25, "shift")
    assert mixed[0].tolist() == [[0, 0.75, 3.5, 3], [6.5, 1, 0, 0.25]]
    assert torch.equal(with_error(MAPS, 1.0, "shift"), wrong_maps(MAPS, "shift"))
    assert with_error(MAPS, 0.0, "noise") is MAPS


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    student = build_model("snn_resnet_small", num_classes=10, widths=(4, 6, 8), time_steps=2)
    return student, build_model("ann_resnet_small", num_classes=10, widths=(4, 6, 10))


def compared(pair, name, **options):
    """The method, and what it says of a batch, its outputs and its labels."""
    student, teacher = pair
    images, target = torch.randn(4, 1, 20, 20, generator=generator()), torch.tensor([0, 9, 3, 3])
    method = build_method(name, **options).bind(student, teacher)
    output, wanted = student(images), FrozenTeacher(teacher, method)(images, target)
    return method, lambda: method(output, wanted, target), output, wanted


def test_samd_compares_with_the_wrong_maps(pair):
    _, parts, output, wanted = compared(pair, "samd", cam_error=0.5)
    sam, cam = output.sams[3], wanted.cams[-1]
    expected = samd_loss(sam, 0.5 * cam + 0.5 * cam.roll((2, 2), (1, 2)), resolution=0.5 / (2 * 8))
    assert torch.allclose(parts()["samd"], expected, rtol=1e-6)
    _, right, _, _ = compared(pair, "samd")
    assert not torch.allclose(right()["samd"], expected, rtol=1e-2)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("method", ["samd", "ckd"])
def test_what_is_drawn_is_in_the_checkpoint_and_nothing_waits(kind, method, pair):
    options = {"cam_error": 0.5, "cam_error_kind": kind}
    method, parts, _, _ = compared(pair, method, seed=7, **(options if method == "samd" else {"samd": options}))
    state = {name: value.clone() for name, value in method.state_dict().items()}
    with NoHostWait():
        first = parts()["samd"]
    second = parts()["samd"]
    assert torch.equal(first, second) == (kind == "shift")
    method.load_state_dict(state)
    assert torch.equal(parts()["samd"], first)
    sources = [module for module in method.samd.modules() if isinstance(module, NoiseSource)]
    assert len(sources) == (kind != "shift")  # checkpoints of runs without errors have no more than they had


def test_errors_do_not_change_the_noise_of_the_logits(pair):
    """Runs with more and less of an error differ in nothing else, and the two are drawn apart."""
    parts = [
        compared(pair, "ckd", seed=3, samd={"cam_error": share, "cam_error_kind": "noise"})[1]() for share in (0.0, 0.5)
    ]
    method, *_ = compared(pair, "ckd", seed=3, samd={"cam_error": 0.5, "cam_error_kind": "noise"})
    assert len({source.generator.initial_seed() for source in (method.samd.noise, method.nld.noise)}) == 2
    assert torch.equal(parts[0]["nld"], parts[1]["nld"])
    assert not torch.equal(parts[0]["samd"], parts[1]["samd"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cam_error": 1.5}, r"cam_error must be in \[0, 1\], got 1.5"),
        ({"cam_error": -0.1}, r"cam_error must be in \[0, 1\], got -0.1"),
        ({"cam_error": True}, "cam_error must be a number, got True"),
        ({"cam_error": 0.5, "cam_error_kind": "roll"}, "cam_error_kind must be one of shift, other, noise, got 'roll'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build_method("samd", **options)
