"""Batch statistics that processes share, and PyTorch's tools that look for batch normalisations in a network."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from ckd_kernels import layers
from test_lif_processes import run_python
from tolerances import assert_close, assert_same


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), layers.BatchNormLIF(3, momentum=0.3), nn.Linear(6, 4), layers.BatchNormLIF(3))


def test_two_processes_that_share_are_one_with_all_the_data(tmp_path):
    """By `convert_sync_batchnorm`, by ``process_group="world"``, and not at all: variances, gradients, spikes."""
    code = """
        import os, torch
        import torch.distributed as dist
        from torch import nn
        from ckd_kernels import layers

        def run(switch, rank, world):
            torch.manual_seed(0)
            group = "world" if switch == "world" else None
            net = nn.Sequential(nn.Linear(5, 6), layers.BatchNormLIF(3, process_group=group))
            if switch == "convert":
                net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
            if switch == "group":
                net = nn.SyncBatchNorm.convert_sync_batchnorm(net, dist.new_group([0, 1]))
            x = torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(1))
            x = (x * torch.linspace(0.5, 4.0, 6)[:, None, None]).chunk(world, dim=1)[rank]
            spikes = net(x)
            spikes.sum().backward()
            gradients = [p.grad.clone() for p in net.parameters()]
            if world > 1:
                for g in gradients:
                    dist.all_reduce(g)
            with torch.no_grad():
                evaluated = net.eval()(x)
            return [spikes.detach(), net[1].running_mean, net[1].running_var, evaluated, *gradients]

        def work(rank):
            dist.init_process_group("gloo", init_method="file://" + os.path.abspath("rendezvous"), rank=rank,
                                    world_size=2)
            torch.save({s: run(s, rank, 2) for s in ("convert", "group", "world", "off")}, f"{rank}.pt")
            dist.destroy_process_group()

        torch.set_num_threads(1)
        children = []
        for rank in range(2):
            children.append(os.fork())
            if children[-1] == 0:
                work(rank)
                os._exit(0)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        torch.save(run("off", 0, 1), "alone.pt")
        """
    run_python(code, tmp_path)
    alone, *both = (torch.load(tmp_path / f"{name}.pt") for name in ("alone", 0, 1))
    for switch in ("convert", "group", "world"):
        first, second = (process[switch] for process in both)
        for index in (0, 3):
            assert_same("spikes", torch.cat([first[index], second[index]], 1), alone[index])
        for index, expected in enumerate(alone):
            if index not in (0, 3):
                assert_same("both processes", first[index], second[index])
                assert_close(f"value {index}", first[index], expected)
    assert (both[0]["off"][2] - both[1]["off"][2]).abs().min() > 0.1  # variances that are not shared


def test_the_switch_changes_nothing_else():
    net, other = network(), network()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert converted is net
    assert [type(m) for m in net.modules()] == [type(m) for m in other.modules()]
    assert [m.process_group for m in net if isinstance(m, layers.BatchNormLIF)] == ["world", "world"]
    assert net.state_dict().keys() == other.state_dict().keys()
    x = torch.randn(4, 2, 3, 5)
    assert_same("spikes of one process", net(x).detach(), other(x).detach())


def test_the_switch_takes_a_group(tmp_path):
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        group = distributed.new_group([0])
        net = nn.SyncBatchNorm.convert_sync_batchnorm(network(), group)
        assert all(m.process_group is group for m in net if isinstance(m, layers.BatchNormLIF))
    finally:
        distributed.destroy_process_group()


def test_a_view_holds_nothing_and_travels():
    net = network()
    assert [name for name, _ in net.named_parameters() if "norm" in name] == []
    assert [name for name, _ in net.named_buffers() if "norm" in name] == []
    plain = {key: value for key, value in net.state_dict().items() if "norm" not in key}
    assert len(plain) == len(net.state_dict())
    net.load_state_dict(dict(plain))  # also without the metadata of a state_dict
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert other[1].norm._layer is other[1]
        other[1].norm.momentum = 0.7
        assert (other[1].momentum, net[1].momentum) == (0.7, 0.3)
    with pytest.raises(RuntimeError, match="view of a BatchNormLIF"):
        net[1].norm(torch.zeros(2, 3))


def test_swa_estimates_statistics_anew():
    """`torch.optim.swa_utils.update_bn`: running statistics become the plain average over a loader's batches."""
    net = network()
    net(torch.randn(4, 2, 3, 5) * 9)
    batches = [torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]
    torch.optim.swa_utils.update_bn(batches, net)
    assert (net[1].momentum, net[3].momentum) == (0.3, 0.1)
    means = [net[0](b).mean((0, 1, 3)) for b in batches]
    assert_close("running mean", net[1].running_mean, torch.stack(means).mean(0).detach())
    assert net[1].num_batches_tracked == 3


def test_a_view_resets_the_layer():
    layer = layers.BatchNormLIF(3, alpha=0.5)
    start = {key: value.clone() for key, value in layer.state_dict().items()}
    for reset, names in (("reset_running_stats", ["running_mean", "running_var"]), ("reset_parameters", list(start))):
        with torch.no_grad():
            for value in layer.state_dict().values():
                value.fill_(7)
        getattr(layer.norm, reset)()
        for name in names:
            assert_same(name, layer.state_dict()[name], start[name])


def test_functorch_can_take_running_statistics_away():
    net = torch.func.replace_all_batch_norm_modules_(network())
    assert net[1].running_mean is None
    assert net[1].track_running_stats is False
    x = torch.randn(6, 4, 2, 3, 5)
    assert_same("spikes", torch.vmap(net)(x).detach(), torch.stack([net(one) for one in x]).detach())


def test_a_layer_gives_its_group_to_every_call(monkeypatch):
    """In training alone; evaluation uses no statistics of the batch."""
    given = []
    monkeypatch.setattr(layers, "sharing_group", lambda group: given.append(group))
    layer = layers.BatchNormLIF(3, process_group="world")
    layer(torch.randn(4, 2, 3))
    assert given == ["world"]
    layer.eval()(torch.randn(4, 2, 3))
    assert given == ["world"]
