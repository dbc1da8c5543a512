"""Training: a teacher that stays frozen, its cached answers, schedules, and what stops a run."""

import csv
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from ckd_kernels import layers, memory
from ckdsnn.analysis import FiringRate
from ckdsnn.checkpoint import AtomicCheckpointIO, RunError, load_checkpoint, save_atomically
from ckdsnn.configuration import MethodConfig, ModelConfig, TeacherConfig
from ckdsnn.data import Augmentation, DigitsCanvas
from ckdsnn.losses import FrozenTeacher
from ckdsnn.optimisation import OptimizerConfig
from ckdsnn.teacher import TeacherCache, load_teacher
from ckdsnn.train import Distillation

OPTIMIZER = OptimizerConfig(name="adamw", lr=0.01, schedule="one_cycle")


def digits(**options):
    return DigitsCanvas(**{"batch_size": 20, "train_samples": 60, "views": 2, **options})


def ann(**options):
    network = ModelConfig("ann_resnet_small", {"widths": [4, 6, 8]})
    return Distillation(network, optimizer=OPTIMIZER, in_channels=1, **options)


def snn(method="ckd", teacher=None, method_options=None, **options):
    network = ModelConfig("snn_resnet_small", {"widths": [4, 6, 8], "time_steps": 2})
    config = MethodConfig(method, method_options or {})
    return Distillation(network, config, teacher, in_channels=1, **{"optimizer": OPTIMIZER, **options})


def fit(task, data, epochs=1, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"logger": False, "log_every_n_steps": 1, **options},
    )
    trainer.fit(task, data)
    return trainer


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    L.seed_everything(0, verbose=False)
    path = tmp_path_factory.mktemp("teacher") / "last.ckpt"
    fit(ann(), digits()).save_checkpoint(path)
    return str(path)


@pytest.mark.parametrize("method", ["kd", "ckd"])
def test_teacher_stays_frozen_and_the_student_moves(teacher_file, method):
    task = snn(method, TeacherConfig(checkpoint=teacher_file))
    teacher_before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    student_before = {k: v.clone() for k, v in task.network.state_dict().items()}
    modes = []
    task.teacher.model.register_forward_hook(lambda module, *_: modes.append(module.training))
    fit(task, digits())
    assert modes
    assert not any(modes)  # eval, although Lightning puts everything it knows into training mode
    assert all(torch.equal(v, teacher_before[k]) for k, v in task.teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert not any(name.startswith(("teacher", "_frozen")) for name in task.state_dict())
    moved = [k for k, v in task.network.state_dict().items() if not torch.equal(v, student_before[k])]
    assert len(moved) > 10


def test_released_code_preset_runs_its_teacher_in_training_mode(teacher_file, tmp_path):
    task = snn("ckd", TeacherConfig(checkpoint=teacher_file), {"preset": "released-code"})
    before = {k: v.clone() for k, v in task.teacher.named_buffers()}
    fit(task, digits()).save_checkpoint(tmp_path / "released.ckpt")
    assert any(not torch.equal(v, before[k]) for k, v in task.teacher.named_buffers() if "running" in k)
    # Its last activation is a ReLU: the weights would fit a network with a neuron there, and mean something else.
    with pytest.raises(RunError, match=r"holds .*'last_activation': 'relu'.*, the configuration asks for"):
        snn("ckd", TeacherConfig(checkpoint=teacher_file)).check_checkpoint(load_checkpoint(tmp_path / "released.ckpt"))


def test_what_a_method_asks_of_its_student_is_never_dropped(teacher_file):
    teacher, released = TeacherConfig(checkpoint=teacher_file), MethodConfig("ckd", {"preset": "released-code"})
    with pytest.raises(ValueError, match=r"ckd asks its student for last_activation='relu', and sew_resnet18 has no"):
        Distillation(ModelConfig("sew_resnet18"), released, teacher)
    with pytest.raises(ValueError, match=r"samd asks its student for sam_stages=\(-1,\), and ann_resnet_small has no"):
        Distillation(ModelConfig("ann_resnet_small"), MethodConfig("samd"), teacher)


def test_one_bit_spikes_keep_bits_and_change_nothing(teacher_file, monkeypatch):
    packed, pack = [], memory._Packed.__init__
    monkeypatch.setattr(memory._Packed, "__init__", lambda self, spikes: (packed.append(1), pack(self, spikes))[1])
    weights = []
    for one_bit in (False, True):
        L.seed_everything(0, verbose=False)
        task = snn("ckd", TeacherConfig(checkpoint=teacher_file), one_bit_spikes=one_bit)
        fit(task, digits(), limit_train_batches=2, limit_val_batches=0)
        weights.append(task.network.state_dict())
        assert bool(packed) == one_bit
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    with pytest.raises(ValueError, match=r"one_bit_spikes has no effect on what torch\.compile keeps"):
        snn("ce", one_bit_spikes=True, compile=True)


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format_of_images_and_both_networks(teacher_file, channels_last):
    task = snn("ckd", TeacherConfig(checkpoint=teacher_file), channels_last=channels_last)
    strides = []
    for model in (task.network, task.teacher.model):
        model.stages[0][0].conv1.register_forward_pre_hook(lambda _, args: strides.append(args[0].stride(1)))
        wide = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert all((p.stride(1) == 1) == channels_last for p in wide)
    fit(task, digits(), limit_train_batches=1, limit_val_batches=0)
    assert [stride == 1 for stride in strides] == [channels_last] * 2


def test_cached_answers_are_the_teachers_own(teacher_file):
    data = digits()
    data.setup("fit")
    task = snn("ckd", TeacherConfig(checkpoint=teacher_file))
    cache = TeacherCache(task.teacher, data.in_order("train"))
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            kept, fresh = cache(batch), task.teacher(batch.images, batch.targets)
            torch.testing.assert_close(kept.logits, fresh.logits, rtol=1e-5, atol=1e-5)
            assert kept.cams.keys() == fresh.cams.keys() != set()
            for stage in kept.cams:
                torch.testing.assert_close(kept.cams[stage], fresh.cams[stage], rtol=1e-5, atol=1e-5)


def test_cache_is_used_and_refused_where_it_would_be_wrong(teacher_file):
    task = snn("kd", TeacherConfig(checkpoint=teacher_file, cache=True))
    calls = []
    task.teacher.model.register_forward_hook(lambda *_: calls.append(1))
    fit(task, digits(), epochs=3)
    assert len(calls) == 3  # 120 renderings fit one evaluation batch, the validation part two
    with pytest.raises(RunError, match="cache keeps one answer a sample, but the data is augmented"):
        fit(snn("kd", TeacherConfig(checkpoint=teacher_file, cache=True)), digits(augmentation=Augmentation(shift=1)))
    released = snn("ckd", TeacherConfig(checkpoint=teacher_file, cache=True), {"preset": "released-code"})
    with pytest.raises(ValueError, match="needs a teacher in eval mode"):
        fit(released, digits())


def test_logs_hold_every_part_of_the_loss_and_the_test_measures_firing(teacher_file, tmp_path):
    task = snn("ckd", TeacherConfig(checkpoint=teacher_file))
    trainer = fit(task, digits(), epochs=2, logger=CSVLogger(tmp_path, name="", version=""))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    for name in ("train/loss", "train/ce", "train/samd", "train/nld", "val/accuracy", "val/kl", "val/kl_noisy"):
        assert sum(bool(row.get(name)) for row in rows) == 2, name
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    parts = [sum(float(row[f"train/{p}"]) for p in ("ce", "samd", "nld")) for row in rows if row["train/loss"]]
    assert losses == pytest.approx(parts, rel=1e-5)
    metrics = trainer.test(task, digits(), verbose=False)[0]
    assert 0 < metrics["test/firing_rate"] < 1
    assert 0 < metrics["test/kl"] < 10
    correct = 600 * metrics["test/accuracy"]
    assert correct == pytest.approx(round(correct), abs=1e-3)


def test_firing_rate_counts_spikes_per_neuron_and_step():
    model = torch.nn.Sequential(layers.LIF(), layers.LIF())
    with FiringRate(model) as rate:
        x = torch.zeros(2, 3, 5)
        x[0, 0] = 10.0  # 5 of 30 neuron steps fire in the first layer, and a spike of 1 makes the second fire
        model(x)
        model(torch.zeros(2, 3, 5))
    model(torch.full((2, 3, 5), 10.0))  # closed: not counted
    assert rate.layers["0"] == pytest.approx(5 / 60)
    assert rate.mean == pytest.approx(sum(rate.layers.values()) / 2)
    assert FiringRate(torch.nn.Linear(1, 1)).mean is None


class Poison(torch.nn.Module):
    def __init__(self, network, after):
        super().__init__()
        self.network, self.left = network, after
        self.sam_stages, self.num_stages, self.dense = network.sam_stages, network.num_stages, network.dense

    def forward(self, images):
        self.left -= 1
        out = self.network(images)
        if self.left < 0:
            out.logits = out.logits * float("nan")
        return out


def test_a_loss_that_is_not_finite_stops_before_the_step(teacher_file):
    task = snn("kd", TeacherConfig(checkpoint=teacher_file))
    task.network = Poison(task.network, after=2)
    with pytest.raises(RunError, match=r"not finite at step 2 \(epoch 0\): ce nan, kd nan"):
        fit(task, digits())
    assert all(torch.isfinite(p).all() for p in task.network.parameters())


def test_methods_and_teachers_must_go_together(teacher_file, tmp_path):
    with pytest.raises(ValueError, match="method kd needs a teacher"):
        snn("kd")
    with pytest.raises(ValueError, match="method ce uses no teacher"):
        snn("ce", TeacherConfig(checkpoint=teacher_file))
    with pytest.raises(ValueError, match="has 10 classes, the data has 7"):
        load_teacher(TeacherConfig(checkpoint=teacher_file), num_classes=7, in_channels=1)
    with pytest.raises(ValueError, match=r"holds ann_resnet_small.*asks for ann_resnet20"):
        load_teacher(TeacherConfig(name="ann_resnet20", checkpoint=teacher_file), num_classes=10, in_channels=1)
    with pytest.raises(ValueError, match=r"takes images of 1 channel\(s\), the data has 3"):
        load_teacher(TeacherConfig(checkpoint=teacher_file), num_classes=10, in_channels=3)
    spiking = {"name": "snn_resnet_small", "options": {}, "num_classes": 10, "in_channels": 1}
    made = {"network": spiking, "config": {}, "finished": True}
    save_atomically({"ckdsnn": made, "state_dict": {}}, tmp_path / "student.ckpt")
    with pytest.raises(ValueError, match=r"holds snn_resnet_small, a spiking network; the teacher is a conventional"):
        load_teacher(TeacherConfig(checkpoint=str(tmp_path / "student.ckpt")), num_classes=10, in_channels=1)


def test_broken_checkpoints_are_named(tmp_path, teacher_file):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*missing.ckpt"):
        load_checkpoint(tmp_path / "missing.ckpt")
    whole = Path(teacher_file).read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"half.ckpt .* cannot be read: .*cut short"):
        load_checkpoint(tmp_path / "half.ckpt")
    torch.save({"code": print}, tmp_path / "code.ckpt")
    with pytest.raises(RunError, match="cannot be read"):
        load_checkpoint(tmp_path / "code.ckpt")


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save_atomically({"step": torch.tensor(1)}, path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_atomically({"step": torch.tensor(2)}, path)
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_checkpoint_says_what_made_it(teacher_file):
    made = load_checkpoint(teacher_file)["ckdsnn"]
    assert made["network"] == {
        "name": "ann_resnet_small",
        "options": {"widths": [4, 6, 8]},
        "num_classes": 10,
        "in_channels": 1,
    }
    assert made["versions"]["torch"] == torch.__version__
    assert made["config"]["optimizer"]["lr"] == 0.01
    assert "git" in made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamw", "momentum": 0.9}, "belong to sgd"),
        ({"schedule": "one_cycle", "warmup_epochs": 2}, "warm-up of its own"),
        ({"lr": 0.0}, "lr must be positive, got 0"),
        ({"name": "sdg"}, "must be one of sgd, adamw, got 'sdg'"),
    ],
)
def test_bad_optimisers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


def test_cosine_with_warm_up():
    config = OptimizerConfig(lr=0.2, warmup_epochs=2)
    rates = config.build_schedule(50, steps_per_epoch=5).rates
    assert len(rates) == 50
    assert rates[:10] == pytest.approx([0.2 * (step + 1) / 11 for step in range(10)])
    assert rates[10] == pytest.approx(0.2)
    assert rates[30] == pytest.approx(0.1)
    assert rates[49] == pytest.approx(0.1 * (1 + math.cos(math.pi * 39 / 40)))
    with pytest.raises(ValueError, match="is 10 steps, the whole training is 8"):
        config.build_schedule(8, steps_per_epoch=5)


def test_frozen_teacher_is_what_the_method_asked_for(teacher_file):
    assert isinstance(snn("kd", TeacherConfig(checkpoint=teacher_file)).teacher, FrozenTeacher)
    assert snn("ce").teacher is None


@pytest.mark.parametrize("options", [{"epochs": -1, "max_steps": 7}, {"epochs": 3}, {"epochs": 9, "max_steps": 7}])
def test_a_warm_up_lasts_as_many_batches_as_the_loader_has(options):
    config = OptimizerConfig(lr=0.3, warmup_epochs=2, schedule="constant")
    task = snn("ce", optimizer=config)
    fit(task, digits(), limit_val_batches=0, **options)  # 3 batches an epoch
    assert task.schedule.rates == pytest.approx([0.3 * (step + 1) / 7 for step in range(6)] + [0.3])


def test_a_training_without_an_end_needs_a_constant_rate():
    with pytest.raises(RunError, match="cosine needs to know when training ends"):
        fit(snn("ce", optimizer=OptimizerConfig()), digits(), epochs=-1, max_time={"seconds": 1})
