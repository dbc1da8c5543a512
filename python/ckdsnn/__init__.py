"""ANN-to-SNN knowledge distillation: models, data, losses, training and analysis on fused spiking-neuron kernels."""
