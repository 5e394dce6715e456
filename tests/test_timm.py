"""Test timm's models by name: their logits, branches, folding and weights; and networks by import path."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small import error_of, norms, run, with_statistics
from test_description import photographs
from torch import Tensor

from hsakd_pl import (
    BaselineModule,
    HSAKDModule,
    LinearProbeModule,
    MutualModule,
    StudentModule,
    TeacherModule,
    create_network,
    load_weights,
    published_state_dict,
)
from hsakd_pl.errors import UsageError
from hsakd_pl.fast.folded import Folded
from hsakd_pl.networks import HSAKDNet, StagedBackbone
from hsakd_pl.records.protocol import is_same_source, weight_facts

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'hsakd_pl[timm]'")

CLASSES = 5
SLOW = [pytest.mark.slow, pytest.mark.nightly]
# One model of each family with branches
FAMILIES = [
    "regnety_002",
    "resnet18",
    "convnext_atto",
    "efficientnet_lite0",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "lcnet_050",
    "tinynet_e",
    *(
        pytest.param(name, marks=SLOW)
        for name in (
            "regnetx_002",
            "mobilenetv4_conv_small",
            "edgenext_xx_small",
            "resnext26ts",
            "seresnet18",
            "skresnet18",
            "legacy_seresnet18",
            "resnet26d",
            "convnextv2_atto",
            "efficientnet_b0",
            "tf_efficientnetv2_b0",
            "mnasnet_small",
            "semnasnet_075",
            "hardcorenas_a",
            "fbnetc_100",
            "densenet121",
            "rexnet_100",
            "ese_vovnet19b_dw",
            "hgnetv2_b0",
            "starnet_s1",
            "gernet_s",
            "mobileone_s0",
            "poolformer_s12",
            "nf_regnet_b0",
        )
    ),
]
# One model of each family without, and why
WITHOUT = {
    "ghostnet_050": "nothing in its last stage keeps the map's size",
    "resnet10t": "nothing in its last stage keeps the map's size",
    "repvgg_a0": "nothing in its last stage keeps the map's size",
    "fasternet_t0": "nothing in its last stage keeps the map's size",
    "resnetv2_18": "its classifier is a Conv2d",
    "dla46_c": "its classifier is a Conv2d",
    "xception41": "its layers are not called one after the other",
    "repvit_m0_9": "it has 2 classifiers",
    "vit_tiny_patch16_224": r"its maps are \(1, 196, 192\), not \(B, 192, H, W\)",
    "deit_tiny_distilled_patch16_224": "it has 2 classifiers",
    "mixer_s16_224": r"its maps are \(1, 196, 512\)",
}


def images(size: int = 64, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "averages"), [("mobilenetv2_050", True), ("convnext_atto", False)])
def test_pooled_map_of_timm_network_is_known_if_only_reshaping_follows_it(name: str, averages: bool) -> None:
    """Check that a norm between pooling and the last layer hides the map: logits of its regions would not average."""
    output = create_network(f"timm:{name}", CLASSES, branches=False).eval().outputs(images())
    assert (output.pooled_map is not None) == averages


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_family_matches_timm_logits_folds_and_trains(name: str) -> None:
    torch.manual_seed(0)
    own = with_statistics(timm.create_model(name, num_classes=CLASSES), 0.2)
    network = load_weights(create_network(f"timm:{name}", CLASSES), own.state_dict()).eval()
    assert isinstance(network, HSAKDNet) and len(network.branches) == 4 and network.name == f"timm:{name}"
    with torch.no_grad():
        output, expected = network(images()), own(images())
        assert output.logits.std() > 0
        torch.testing.assert_close(output.logits, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(network.backbone.head[-1](output.embedding), output.logits)
        if output.pooled_map is not None:
            torch.testing.assert_close(output.pooled_map.mean((2, 3)), output.embedding)
        assert [joint.shape for joint in output.joint_logits] == [(2, 4 * CLASSES)] * 4
        shapes = [tuple(each.shape) for each in output.features]
        assert shapes == [(2, info["num_chs"], *[64 // info["reduction"]] * 2) for info in own.feature_info[-4:]]
        folded = Folded(network)
        for found, unfolded in zip(folded(images()), output, strict=True):
            torch.testing.assert_close(found, unfolded, rtol=1e-5, atol=1e-5 * float(expected.abs().max() + 1))
    if norms(network):
        assert norms(folded.network) < norms(network)
    back = published_state_dict(network.without_branches)
    assert back.keys() == own.state_dict().keys()
    assert all(torch.equal(tensor, back[key]) for key, tensor in own.state_dict().items())

    module = TeacherModule(network)
    module.train()
    module.training_step((images(32), torch.arange(2)), 0).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", WITHOUT)
def test_timm_model_without_branches_raises_with_reason(name: str) -> None:
    if name not in timm.list_models():
        pytest.skip(f"timm {timm.__version__} has no {name}")
    with pytest.raises(UsageError, match=f"^timm:{name} can.*{WITHOUT[name]}.*: take branches=False") as error:
        create_network(f"timm:{name}", CLASSES)
    assert "\n" not in str(error.value)


def test_vision_transformer_teaches_class_logits() -> None:
    name, options = "timm:vit_tiny_patch16_224", {"joint_kd_weight": 0, "transform_images": False}
    teacher = create_network(name, CLASSES, branches=False).eval()
    own = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES).eval()
    load_weights(teacher, own.state_dict())
    assert published_state_dict(teacher).keys() == own.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(teacher(images(224, 1)), own(images(224, 1)))
    module = StudentModule("timm:lcnet_050", teacher, num_classes=CLASSES, **options)  # type: ignore[arg-type]
    assert module.training_step((images(224), torch.arange(2)), 0).isfinite()
    with pytest.raises(UsageError, match="image size 64 x 64: the network only takes images of 224 x 224 pixels"):
        teacher.check_image_size(64, 64)


def test_timm_families_pair_with_each_other_and_with_ours() -> None:
    module = StudentModule("resnet18_imagenet", create_network("timm:lcnet_050", CLASSES), num_classes=CLASSES)
    assert module.training_step((images(32), torch.arange(2)), 0).isfinite()
    peers = MutualModule(["timm:lcnet_050", "timm:mobilenetv3_small_050"], num_classes=CLASSES)
    assert peers.training_step((images(32), torch.arange(2)), 0).isfinite()


def test_timm_branches_start_with_fresh_weights() -> None:
    network = create_network("timm:lcnet_050", CLASSES)
    weights = [tensor for key, tensor in network.state_dict().items() if key.endswith("conv_pw.weight")]
    assert not any(torch.equal(one, other) for one in weights for other in weights if one is not other)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Write weights of 1,000 classes as published by timm."""
    torch.manual_seed(1)
    save_file(timm.create_model("lcnet_050").state_dict(), tmp_path / "lcnet_050.safetensors")
    return tmp_path / "lcnet_050.safetensors"


def test_weights_of_other_class_count_require_new_head(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = create_network("timm:lcnet_050", CLASSES)
    before = network.backbone.head[-1].weight.clone()
    with pytest.raises(UsageError, match=r"2 of another shape: \S*classifier.weight .*or set new_head"):
        load_weights(network, whole)
    with caplog.at_level("INFO"):
        load_weights(network, whole, new_head=True)
    assert "the last layers of the heads (10 tensors) stay fresh, for 5 classes" in caplog.text
    assert torch.equal(network.backbone.head[-1].weight, before)
    found = published_state_dict(network.backbone)
    own = timm.create_model("lcnet_050", checkpoint_path=str(whole)).state_dict()
    assert all(torch.equal(found[key], own[key]) for key in own if not key.startswith("classifier"))


@pytest.mark.parametrize("branches", [True, False])
def test_new_head_skips_only_the_classifier(branches: bool) -> None:
    source = create_network("resnet8", 7).state_dict()
    network = create_network("resnet8", CLASSES, branches)
    fresh = {key for key in network.state_dict() if ".fc." in key}
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    load_weights(network, source, new_head=True)
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key] if key in fresh else source[key if branches else f"backbone.{key}"])
    del source["backbone.stages.0.0.conv1.weight"]
    with pytest.raises(UsageError, match=r"1 missing: \S*stages.0.0.conv1.weight") as error:
        load_weights(network, source, new_head=True)
    assert "new_head" not in str(error.value)


def test_new_head_is_fresh_for_equal_class_count() -> None:
    network, source = create_network("resnet8", CLASSES, False), create_network("resnet8", CLASSES, False)
    before = network.head[-1].weight.clone()
    load_weights(network, source.state_dict(), new_head=True)
    assert torch.equal(network.head[-1].weight, before)


def test_new_head_without_weights_or_on_frozen_backbone_raises(whole: Path) -> None:
    with pytest.raises(UsageError, match="new_head has no effect without weights"):
        BaselineModule("timm:lcnet_050", num_classes=CLASSES, new_head=True)
    with pytest.raises(UsageError, match="new_head: with freeze_backbone"):
        TeacherModule("timm:lcnet_050", True, str(whole), CLASSES, new_head=True)
    with pytest.raises(UsageError, match="backbone_lr has no effect with freeze_backbone"):
        TeacherModule("timm:lcnet_050", True, str(whole), CLASSES, backbone_lr=0.1)


def publish(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Make timm find its published lcnet_050 weights in a file."""
    known = replace(timm.get_pretrained_cfg("lcnet_050"), file=str(path))
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, "lcnet_050", known)


def test_timm_pretrained_weights_load(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, whole)
    own = timm.create_model("lcnet_050", checkpoint_path=str(whole)).eval()
    for pretrained in (True, str(whole)):
        network = create_network("timm:lcnet_050", 1000, branches=False, pretrained=pretrained).eval()
        torch.testing.assert_close(network(images()), own(images()))
    fewer = create_network("timm:lcnet_050", CLASSES, pretrained=True)
    assert torch.equal(published_state_dict(fewer.without_branches)["conv_stem.weight"], own.conv_stem.weight)
    module = BaselineModule("timm:lcnet_050", "pretrained", CLASSES, new_head=True)
    assert torch.equal(published_state_dict(module.network)["conv_stem.weight"], own.conv_stem.weight)
    probe = LinearProbeModule("timm:lcnet_050", CLASSES, "pretrained", source_classes=1000)
    assert probe(images()).shape == (2, CLASSES)
    with pytest.raises(UsageError, match="or set new_head"):
        BaselineModule("timm:lcnet_050", "pretrained", CLASSES)


def test_published_weights_belong_to_a_protocol_by_their_values(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"network": "resnet8", "teacher": "timm:lcnet_050", "teacher_weights": "pretrained"}
    kinds: dict[str, Callable[[], HSAKDModule]] = {
        "weights": lambda: BaselineModule("timm:lcnet_050", "pretrained", CLASSES, new_head=True),
        "teacher": lambda: StudentModule(num_classes=1000, joint_kd_weight=0, **options),
    }
    facts: dict[str, list[str]] = {}
    changed = torch.load(whole, weights_only=True)
    changed["conv_stem.weight"] += 1
    torch.save(changed, tmp_path / "changed.pth")
    for path in (whole, whole, tmp_path / "changed.pth"):
        publish(monkeypatch, path)
        for kind, make in kinds.items():
            files = make().weight_files
            [option] = files
            known = weight_facts({f"model.init_args.{option}": "pretrained"}, files)
            facts.setdefault(kind, []).append(known[f"{kind}_sha256"])
    for first, again, other in facts.values():
        assert first == again != other
        assert is_same_source(first, "pretrained") and not is_same_source("0" * 64, "pretrained")


def test_missing_timm_pretrained_weights_raise_usage_error() -> None:
    without = next(name for name in ("resnet10t", "tinynet_e", "ghostnet_050", "lcnet_035") if not published(name))
    with pytest.raises(UsageError, match=rf"^weights: those of timm:{without} cannot be downloaded \(.*name a file"):
        create_network(f"timm:{without}", CLASSES, branches=False, pretrained=True)
    with pytest.raises(UsageError, match=r"^weights: resnet8 has no weights to download; name a file"):
        create_network("resnet8", CLASSES, pretrained=True)
    with pytest.raises(UsageError, match=r"teacher_weights: timm:lcnet_050 would be untrained.* or pretrained"):
        StudentModule("resnet8", "timm:lcnet_050")


def published(name: str) -> bool:
    cfg = timm.get_pretrained_cfg(name)
    return bool(cfg and cfg.has_weights)


def test_unknown_timm_model_suggests_close_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown network 'timm:regnety_02': did you mean timm:regnety_0"):
        create_network("timm:regnety_02")
    with pytest.raises(UsageError, match=r"timm:resnet18\.mine cannot be created"):
        create_network("timm:resnet18.mine")
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"^timm:resnet18 needs timm: pip install 'hsakd_pl\[timm\]'$"):
        create_network("timm:resnet18")


def rates(module: Any) -> list[float]:
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    found = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    schedule.step()
    return [*found, *(group["lr"] for group in optimizer.param_groups)]


def test_backbone_has_its_own_learning_rate() -> None:
    options: dict[str, Any] = {"num_classes": CLASSES, "lr": 0.1, "backbone_lr": 0.01, "milestones": [1]}
    module = TeacherModule("resnet8", **options)
    assert rates(module) == pytest.approx([0.1, 0.01, 0.01, 0.001])
    heads, backbone = (group["params"] for group in module.configure_optimizers()["optimizer"].param_groups)
    network = module.network
    last = network.without_branches.head[-1]
    assert {*heads} == {*last.parameters(), *network.branches.parameters()}
    assert {*backbone} == {*network.without_branches.parameters()} - {*last.parameters()}
    assert module.hparams["backbone_lr"] == 0.01
    own = BaselineModule("resnet8", optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.5), **options)
    assert rates(own)[:2] == [0.5, 0.01]
    one = BaselineModule("resnet8").configure_optimizers()["optimizer"]
    assert len(one.param_groups) == 1
    with pytest.raises(UsageError, match="backbone_lr"):
        BaselineModule("resnet8", backbone_lr=-1.0)


MINE = """
import torch.nn as nn
from torchvision.models import mobilenet_v3_small
from hsakd_pl.networks import StagedBackbone

class Small(StagedBackbone):
    def __init__(self, num_classes):
        super().__init__(nn.Conv2d(3, 4, 3, 1, 1), (4, 8), (1, 2), num_classes)
    def make_stage(self, stage, in_channels, stride):
        return nn.Sequential(nn.Conv2d(in_channels, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU())
    def make_head(self, num_outputs):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_outputs))

def plain(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.usefixtures("own_module")
def test_cli_takes_network_by_import_path() -> None:
    network = ("--model.init_args.network", "mine.Small")
    folder = run("fit", *network, module="TeacherModule")
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert saved["networks"] == ["mine.Small"] and saved["hyper_parameters"]["network"] == "mine.Small"
    assert TeacherModule.load_from_checkpoint(folder / "last.ckpt").network.name == "mine.Small"
    teacher = (
        "--model.init_args.teacher",
        "mine.Small",
        "--model.init_args.teacher_weights",
        str(folder / "last.ckpt"),
    )
    run("fit", *network, *teacher, module="StudentModule")
    run("fit", "--model.init_args.network", "mine.plain", "--trainer.default_root_dir", "plain")
    run("test", "--ckpt_path", "plain/last.ckpt", "--model.init_args.network", "mine.plain")


@pytest.mark.usefixtures("own_module")
def test_network_by_import_path_works_with_and_without_branches() -> None:
    assert isinstance(create_network("mine.Small", CLASSES), HSAKDNet)
    assert isinstance(create_network("mine.Small", CLASSES, branches=False), StagedBackbone)
    torchvisions = create_network("torchvision.models.resnet18", CLASSES, branches=False)
    assert torchvisions(images(32)).shape == (2, CLASSES)
    with pytest.raises(UsageError, match=r"network mine\.plain: branches need a StagedBackbone"):
        create_network("mine.plain", CLASSES)
    with pytest.raises(UsageError, match=r"unknown network 'mine\.Smal': .*cannot be imported .*choose one of"):
        create_network("mine.Smal", CLASSES)
    with pytest.raises(UsageError, match=r"unknown network 'resnet_8\.x4': did you mean resnet8x4"):
        create_network("resnet_8.x4", CLASSES)


@pytest.mark.usefixtures("own_module")
def test_cli_fine_tunes_timm_model(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model.init_args.network", "timm:lcnet_050", "--model.init_args.weights", str(whole))
    photographs(Path("photos"))
    photos = {"root": "photos", "image_size": 32, "num_workers": 0, "batch_size": 4}
    data = {"data": {"class_path": "hsakd_pl.ImageNetDataModule", "init_args": photos}}
    message = error_of(capsys, lambda: run("fit", *options, **data))
    assert message.endswith("or set new_head to train fresh heads in place of its own")
    fresh = (*options, "--model.init_args.new_head", "true", "--model.init_args.backbone_lr", "0.001")
    folder = run("fit", *fresh, **data)
    whole.unlink()
    run("test", *options[:2], "--ckpt_path", str(folder / "last.ckpt"), **data)
    again = ("--ckpt_path", "last", "--model.init_args.backbone_lr", "0.01")
    message = error_of(capsys, lambda: run("fit", *fresh, *again, **data))
    assert "backbone_lr is 0.01, but the resumed run was started with 0.001" in message


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "levit_128s", "coatnet_pico_rw_224"])
def test_timm_model_of_one_size_is_made_for_another_by_its_name(name: str) -> None:
    with pytest.raises(UsageError, match=r"64 x 64: the network only takes images of 224 x 224 .* and @64"):
        create_network(f"timm:{name}", CLASSES, branches=False).check_image_size(64, 64)
    network = create_network(f"timm:{name}@64", CLASSES, branches=False).eval()
    network.check_image_size(64, 64)
    assert network(images(64)).shape == (2, CLASSES)
    again = create_network(str(network.name), CLASSES, branches=False).eval()
    torch.testing.assert_close(load_weights(again, network.state_dict())(images(64)), network(images(64)))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224@large", "vit_tiny_patch16_224@8", "resnet18@64"])
def test_timm_model_that_cannot_have_a_size_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(UsageError, match=f"timm:{name.split('@')[0]}") as error:
        create_network(f"timm:{name}", CLASSES, branches=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["coatnet_pico_rw_224", "maxvit_pico_rw_256", "coat_tiny"])
def test_timm_model_of_one_size_has_no_branches_in_one_sentence(name: str) -> None:
    with pytest.raises(UsageError, match="take branches=False") as error:
        create_network(f"timm:{name}", CLASSES)
    assert "\n" not in str(error.value)
