"""One of two data-parallel processes of tests/test_memory_around.py: `python data_parallel_memory.py RANK FOLDER`.

Saves its gradients without `one_bit_spikes` and with it.
"""

import contextlib
import sys

import torch
from torch import nn

from ckd_kernels import Neuron, layers, one_bit_spikes

rank, folder = int(sys.argv[1]), sys.argv[2]
store = torch.distributed.FileStore(f"{folder}/store", 2)
torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
found = []
for context in (contextlib.nullcontext(), one_bit_spikes()):
    torch.manual_seed(0)
    neurons = [layers.LIF(Neuron(threshold=0.2)) for _ in range(2)]
    network = nn.Sequential(nn.Linear(12, 33), neurons[0], nn.Linear(33, 33), neurons[1], nn.Linear(33, 5))
    module = nn.parallel.DistributedDataParallel(network)
    torch.manual_seed(rank)
    with context:
        out = module(torch.randn(4, 6, 12))
    out.square().sum().backward()
    found.append([p.grad for p in module.parameters()])
torch.save(found, f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
