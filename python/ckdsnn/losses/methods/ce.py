"""No distillation."""

from .base import Method, register_method


@register_method("ce")
class CrossEntropy(Method):
    """Cross-entropy with the labels alone: ``CE(z_st, y)``, the baseline of all baselines."""

    needs_teacher = False
