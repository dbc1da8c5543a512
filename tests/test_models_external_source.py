"""Where an external network comes from: timm, torchvision, an import path; its file of weights."""

import importlib

import pytest
import torch

from ckdsnn.losses import FrozenTeacher, build_method
from ckdsnn.models import build_model


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(5, 3, 16, 16), torch.randint(0, 7, (5,))


def test_by_import_path(tmp_path, monkeypatch, batch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def make(width):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(width, 7))\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {"num_classes": 7, "layers": ["1"], "image_size": 16, "classifier": "4"}
    torch.manual_seed(0)
    teacher = build_model("external", source="my_networks:make", model_options={"width": 9}, **options)
    assert teacher.stage_channels == (9,)
    torch.save(teacher.model.state_dict(), tmp_path / "weights.pt")
    again = build_model(
        "external",
        source="my_networks:make",
        model_options={"width": 9},
        weights=str(tmp_path / "weights.pt"),
        **options,
    )
    torch.testing.assert_close(again(batch[0]).logits, teacher(batch[0]).logits)
    # What the command line makes of the names in an nn.Sequential, quoted or not:
    numbers = build_model("external", source="my_networks:make", model_options={"width": 9},
                          num_classes=7, layers=[1], image_size=16, classifier=4, trainable=[4])  # fmt: skip
    assert (numbers.layers, numbers.classifier_name, numbers.trainable) == (("1",), "4", ("4",))
    with pytest.raises(ValueError, match=r"must make an nn\.Module, got int"):
        build_model("external", source="my_networks:wrong", **options)
    with pytest.raises(ValueError, match="source 'my_networks:nothing' cannot be imported"):
        build_model("external", source="my_networks:nothing", **options)
    with pytest.raises(ValueError, match="source must be 'timm:NAME'"):
        build_model("external", source="my_networks", **options)
    with pytest.raises(FileNotFoundError, match="weights: there is no file"):
        build_model("external", source="my_networks:make", model_options={"width": 9}, weights="none.pt", **options)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (
            "timm:vit_small_patch16_224",
            {
                "model_options": {"img_size": 32, "patch_size": 4, "depth": 2},
                "layers": ["blocks.0.norm1", "blocks.1.norm1"],
                "layout": "tokens",
            },
        ),
        ("timm:resnet18", {"layers": ["layer3", "layer4"], "classifier": "fc"}),
        ("torchvision:resnet18", {"layers": ["layer3", "layer4"], "classifier": "fc"}),
    ],
)
def test_libraries(source, options):
    pytest.importorskip(source.partition(":")[0], exc_type=ImportError)
    teacher = build_model("external", num_classes=7, source=source, image_size=32, **options)
    method = build_method("ckd")
    student = build_model("snn_resnet_small", num_classes=7, in_channels=3, widths=(4, 4, 4), time_steps=1)
    method.bind(student, teacher)
    images, target = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    parts = method(student(images), FrozenTeacher(teacher, method)(images, target), target)
    assert torch.isfinite(sum(parts.values()))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r"needs timm, which cannot be imported .* run pip install timm"):
        build_model("external", num_classes=7, source="timm:resnet18", layers=["layer4"], image_size=32)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": 3}, TypeError, "source must be a name, got 3"),
        ({"model_options": ["width"]}, TypeError, "model_options must be a mapping of names to values, got"),
        ({"classifier": True}, TypeError, "classifier must be a name, got True"),
        ({"weights": 1}, TypeError, "weights must be a name, got 1"),
        ({"source": ":f"}, ValueError, "source must be 'timm:NAME'"),
        ({"source": "os:sep"}, ValueError, "source 'os:sep' must be a class or function, got str"),
        ({"model_options": {"width": 3}}, ValueError, r"does not take model_options \{'width': 3\}"),
    ],
)
def test_bad_sources_are_named(options, error, message):
    given = {"source": "torch.fx:Tracer", "layers": ["1"], "image_size": 8, **options}
    with pytest.raises(error, match=message):
        build_model("external", 7, **given)


def test_weights_from_elsewhere_are_verified(tmp_path, monkeypatch):
    (tmp_path / "net_of_mine.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 7))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "weights.pt"

    def load():
        return build_model(
            "external", 7, source="net_of_mine:make", layers=["0"], image_size=8, weights=str(path)
        ).model

    state = importlib.import_module("net_of_mine").make().state_dict()
    for legacy in (False, True):  # PyTorch before 1.6 wrote no zip file
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
        assert all(torch.equal(value, state[key]) for key, value in load().state_dict().items())
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[content.index(state["0.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is no state_dict of net_of_mine:make: the checksum of .* does not fit"):
        load()
    for wrong in ({"0.weight": state["0.weight"]}, [1, 2], {"state_dict": 3}):
        torch.save(wrong, path)
        with pytest.raises(ValueError, match="is no state_dict of net_of_mine:make"):
            load()
