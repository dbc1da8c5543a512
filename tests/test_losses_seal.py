"""SeAl-KD against a loop over samples and time steps that follows the equations word for word."""

import math

import pytest
import torch

from ckdsnn.losses import build_method
from ckdsnn.losses.methods.seal import error_aware_loss, temporal_loss
from ckdsnn.models import ANNOutput, SNNOutput

DOUBLE = torch.float64


def softmax(z, tau=1.0):
    e = [math.exp(v / tau) for v in z]
    return [v / sum(e) for v in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_error_aware_by_hand():
    """Step 1 is right and compared as it is; step 2 takes class 2 for 0, and both get one logit on either side."""
    steps = torch.tensor([[[3.0, 1.0, 2.0]], [[1.0, 0.0, 4.0]]], dtype=DOUBLE, requires_grad=True)
    teacher, target, tau = torch.tensor([[5.0, 1.5, 2.0]], dtype=DOUBLE), torch.tensor([0]), 3.0
    loss = error_aware_loss(steps, teacher, target, tau)
    right = kl(softmax([5.0, 1.5, 2.0], tau), softmax([3.0, 1.0, 2.0], tau))
    wrong = kl(softmax([2.0, 1.5, 2.0], tau), softmax([1.0, 0.0, 1.0], tau))
    assert loss.item() == pytest.approx(9 * (right + wrong) / 2, rel=1e-12)
    loss.backward()
    # d(tau^2 KL)/dz = tau * (q - p); the logit of class 0 stands in two places of the wrong step, that of 2 in none.
    p, q = softmax([2.0, 1.5, 2.0], tau), softmax([1.0, 0.0, 1.0], tau)
    expected = [tau * (q[0] - p[0] + q[2] - p[2]) / 2, tau * (q[1] - p[1]) / 2, 0.0]
    torch.testing.assert_close(steps.grad[1, 0], torch.tensor(expected, dtype=DOUBLE))


def test_temporal_by_hand():
    torch.manual_seed(0)
    z = torch.randn(3, 2, 4, dtype=DOUBLE)
    rows, total = z.tolist(), 0.0
    for sample in range(2):
        steps = [rows[t][sample] for t in range(3)]
        sure = [1 + sum(p * math.log(p) for p in softmax(step)) / math.log(4) for step in steps]
        for i, mine in enumerate(steps):
            others = [j for j in range(3) if j != i]
            cosines = [sum(a * b for a, b in zip(mine, steps[j], strict=True)) for j in others]
            cosines = [c / (math.hypot(*mine) * math.hypot(*steps[j])) for c, j in zip(cosines, others, strict=True)]
            weights = softmax([sure[j] * c for c, j in zip(cosines, others, strict=True)])
            wanted = [sum(w * steps[j][k] for w, j in zip(weights, others, strict=True)) for k in range(4)]
            total += 9 * kl(softmax(wanted, 3.0), softmax(mine, 3.0)) / 6
    assert temporal_loss(z, 3.0).item() == pytest.approx(total, rel=1e-10)


def test_temporal_target_has_no_gradient():
    z = torch.randn(2, 1, 4, dtype=DOUBLE, requires_grad=True)
    (gradient,) = torch.autograd.grad(temporal_loss(z, 3.0), z)
    # With two steps the target of each is the other.
    q = torch.softmax(z.detach() / 3, 2)
    torch.testing.assert_close(gradient, 3 * (q - q.flip(0)) / 2)


def test_the_method_weighs_its_terms():
    torch.manual_seed(0)
    steps, teacher, target = torch.randn(3, 4, 5), torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    student = SNNOutput(steps.mean(0), steps, {}, {})
    parts = build_method("seal")(student, ANNOutput(teacher, {}), target)
    assert list(parts) == ["ce", "ela", "sta"]
    log_p = torch.log_softmax(steps, 2)
    torch.testing.assert_close(parts["ce"], -torch.stack([log_p[:, i, k] for i, k in enumerate(target)]).mean())
    torch.testing.assert_close(parts["ela"], 0.6 * error_aware_loss(steps, teacher, target, 3.0))
    torch.testing.assert_close(parts["sta"], 0.15 * temporal_loss(steps, 3.0))


def test_one_time_step_has_no_others():
    steps = torch.randn(1, 2, 3)
    student = SNNOutput(steps[0], steps, {}, {})
    assert build_method("seal")(student, ANNOutput(torch.randn(2, 3), {}), torch.tensor([0, 2]))["sta"].item() == 0
