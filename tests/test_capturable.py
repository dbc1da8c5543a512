"""Every method can be captured in a CUDA graph: neither forward nor backward waits for the device."""

import pytest
import torch
from torch import Tensor

from ckdsnn.checkpoint import RunError
from ckdsnn.losses import METHODS, PRESETS, FrozenTeacher, Method, NoiseSource, build_method
from ckdsnn.losses.nld import DISTRIBUTIONS
from ckdsnn.losses.saliency import TEACHER_MAPS
from ckdsnn.losses.samd import NORMALISATIONS, SCALINGS
from ckdsnn.models import ANNOutput, SNNOutput, build_model
from no_host_wait import HostWaitError, NoHostWait

VARIANTS = (
    [(name, {}) for name in sorted(METHODS)]
    + [(name, {"label_smoothing": 0.1}) for name in ("ce", "tser")]
    + [(name, {"preset": preset}) for name in ("ckd", "samd", "nld") for preset in PRESETS]
    + [("nld", {"distribution": distribution}) for distribution in DISTRIBUTIONS]
    + [("nld", {"noise": "fixed", "sigma": 1.0}), ("nld", {"noise": "none"}), ("nld", {"spread": "variance"})]
    + [
        ("nld", {"distribution": "laplace", "match": "mean_abs"}),
        ("nld", {"learnable_strength": True, "strength_prior": 0}),
    ]
    + [("nld", {"learnable_strength": True, "mixing": mixing}) for mixing in ("logits", "probabilities")]
    + [("samd", {"normalisation": kind, "scaling": scaling}) for kind in NORMALISATIONS for scaling in SCALINGS]
    + [("samd", {"stages": (stage,)}) for stage in (1, 2, 3)]
    + [("samd", {"stages": (1, 2, 3), "student_map": "grad_cam"}), ("samd", {"reduction": "sum"})]
    + [("samd", {"teacher_map": kind}) for kind in TEACHER_MAPS]
    + [("kdsnn", {"stages": (1, 2, 3)}), ("bkdsnn", {"stage": 1}), ("samd", {"stages": (1,), "teacher_stages": (3,)})]
)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return build_model("ann_resnet_small", num_classes=10, widths=(4, 6, 10))


@pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_no_method_waits_for_the_device(name, options, teacher):
    method = build_method(name, **options)
    assert method.capturable
    student = build_model(
        "snn_resnet_small",
        num_classes=10,
        widths=(4, 6, 8),
        time_steps=2,
        sam_stages=method.sam_stages,
        **method.student_options,
    )
    images, target, epoch = torch.randn(4, 1, 20, 20), torch.tensor([0, 9, 3, 3]), torch.tensor(2.5)
    method.bind(student, teacher if method.needs_teacher else None)
    output = student(images)
    frozen = FrozenTeacher(teacher, method) if method.needs_teacher else None
    with NoHostWait():
        wanted = frozen and frozen(images, target)
        loss = torch.stack(list(method(output, wanted, target, epoch=epoch).values())).sum()
        loss.backward()
    assert student.stages[0][0].conv1.weight.grad.abs().sum() > 0


class Waiting(Method):
    """A user's method that is not capturable, and says so."""

    capturable = False

    def distill(self, student, teacher, target, epoch):
        others = ~torch.nn.functional.one_hot(target, student.logits.shape[1]).bool()
        return {"others": student.logits[others].mean()}


def test_a_method_that_waits_is_seen():
    logits = torch.randn(2, 3, requires_grad=True)
    mask = logits > 0
    for wait in (
        lambda: logits[mask].sum(),
        lambda: logits.sum().item(),
        lambda: bool(mask.any()),
        lambda: mask.nonzero(),
        lambda: logits.masked_select(mask),
        lambda: logits.detach().clone().index_put_((mask,), torch.zeros(())),
        lambda: torch.unique(logits.detach()),
        lambda: torch.equal(logits, logits),
        lambda: logits * torch.tensor(0.5),
        lambda: logits.to("meta"),
    ):
        with NoHostWait(), pytest.raises(HostWaitError):
            wait()
    with NoHostWait():
        torch.where(mask, logits, 0.0).sum().backward()
    assert not Waiting.capturable


@pytest.mark.parametrize("warmup", [1, 3, 4, 7, 20, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dkd_has_the_same_warm_up_from_a_tensor(warmup, dtype):
    method = build_method("dkd", warmup=warmup)
    loss = torch.tensor(1.2345678901234567, dtype=dtype)

    def weighted(epoch: float | Tensor) -> Tensor:
        return method._rise(epoch, loss) * loss

    for epoch in (0, 0.0, 0.99999, 1.0, 2.5, 5.9, 6.0, 12.3, 18.999, 19.0, 29.5, 300.25):
        for type_ in (torch.float32, torch.float64):
            assert torch.equal(weighted(epoch), weighted(torch.tensor(float(epoch), dtype=type_))), epoch


def test_noise_source_moves_to_a_device():
    source = NoiseSource(3)
    source.restart(1)
    torch.rand(2, generator=source.generator)
    before, state = source.generator, source.get_extra_state()
    source.to_device("cpu")
    source.to_device(torch.device("cpu", 0))
    assert source.generator is before
    assert torch.equal(source.get_extra_state(), state)
    assert source.process == 1


def test_noise_does_not_go_on_from_another_kind_of_device():
    """A run of a GPU can be looked at on a CPU, and keeps its state; but no noise is drawn that is not the run's."""
    state_of_a_gpu = torch.arange(16, dtype=torch.uint8)
    method = build_method("nld")
    weights = method.state_dict() | {"nld.noise._extra_state": state_of_a_gpu}
    method.load_state_dict(weights)
    assert torch.equal(method.state_dict()["nld.noise._extra_state"], state_of_a_gpu)
    with pytest.raises(RunError, match="another kind of device than cpu; go on with the run on the kind"):
        _ = method.nld.noise.generator
    student = SNNOutput(torch.zeros(2, 3), torch.zeros(1, 2, 3), {}, {})
    with pytest.raises(RunError, match="the noise cannot go on"):
        method(student, ANNOutput(torch.zeros(2, 3), {}), torch.tensor([0, 1]))

    usual = NoiseSource(0).get_extra_state()
    method.nld.noise.set_extra_state(usual)
    assert torch.equal(method.nld.noise.generator.get_state(), usual)
    method.load_state_dict(weights)
    method.nld.noise.restart(0)
    assert torch.equal(method.nld.noise.generator.get_state(), usual)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_source_starts_over_on_another_kind_of_device():
    source = NoiseSource(3)
    source.restart(2)
    torch.rand(2, generator=source.generator)
    source.to_device("cuda")
    first = torch.rand(5, generator=source.generator, device="cuda")
    assert torch.equal(first, torch.rand(5, generator=_cuda(3 + 2 * 1_000_003), device="cuda"))
    state = source.get_extra_state()
    second = torch.rand(5, generator=source.generator, device="cuda")
    source.set_extra_state(state)
    assert torch.equal(second, torch.rand(5, generator=source.generator, device="cuda"))
    loaded = NoiseSource(0)
    loaded.set_extra_state(state)
    loaded.to_device("cuda")
    assert torch.equal(second, torch.rand(5, generator=loaded.generator, device="cuda"))


def _cuda(seed):
    return torch.Generator("cuda").manual_seed(seed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_every_method_replays_in_a_cuda_graph(name, options):
    """A captured loss and its gradients are those of the same calls outside a graph."""
    losses, gradients = [], []
    for captured in (False, True):
        torch.manual_seed(0)
        method = build_method(name, **options)
        student = build_model(
            "snn_resnet_small",
            num_classes=10,
            widths=(4, 6, 8),
            time_steps=2,
            sam_stages=method.sam_stages,
            **method.student_options,
        ).cuda()
        teacher = build_model("ann_resnet_small", num_classes=10, widths=(4, 6, 10)).cuda()
        method.bind(student, teacher if method.needs_teacher else None).cuda()
        for module in method.modules():
            if isinstance(module, NoiseSource):
                module.to_device("cuda")
        frozen = FrozenTeacher(teacher, method) if method.needs_teacher else None
        images, target = torch.randn(4, 1, 20, 20, device="cuda"), torch.tensor([0, 9, 3, 3], device="cuda")
        epoch = torch.tensor(2.5, device="cuda")
        weight = student.stages[0][0].conv1.weight

        def step(method=method, student=student, frozen=frozen, images=images, target=target, epoch=epoch, w=weight):
            wanted = frozen and frozen(images, target)
            loss = torch.stack(list(method(student(images), wanted, target, epoch=epoch).values())).sum()
            return loss.detach(), torch.autograd.grad(loss, w)[0]

        sources = [module for module in method.modules() if isinstance(module, NoiseSource)]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            step()
            step()
        torch.cuda.synchronize()
        for source in sources:
            source.restart(0)
        if captured:
            graph = torch.cuda.CUDAGraph()
            for source in sources:
                graph.register_generator_state(source.generator)
            with torch.cuda.graph(graph, stream=stream):
                loss, gradient = step()
            for source in sources:
                source.restart(0)
            for _ in range(2):
                graph.replay()
        else:
            with torch.cuda.stream(stream):
                step()
                loss, gradient = step()
        torch.cuda.synchronize()
        losses.append(loss.clone())
        gradients.append(gradient.clone())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)
