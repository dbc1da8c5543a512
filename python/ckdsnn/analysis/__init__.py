"""What a trained spiking network does: firing rates."""

from ckdsnn.analysis.firing_rate import FiringRate

__all__ = ["FiringRate"]
