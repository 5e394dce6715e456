"""Test the comparison methods' modules: they train, resume, run on two devices and in bf16, and compile."""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ddp_run
import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
from ddp_run import train
from methods import CUT, METHODS, OF_A_BATCH, ONLY_A_LOSS, PAIR, make_data, make_method, prepared
from programs import run_on_two
from pytorch_lightning.callbacks import ModelCheckpoint
from small import needs_compile, run, trainer
from test_ddp import compare
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from hsakd_pl import (
    HSAKDModule,
    LinearProbeModule,
    MutualModule,
    create_network,
    export_student,
    load_student,
    load_weights,
    methods,
    published_state_dict,
)
from hsakd_pl.cli.main import main
from hsakd_pl.errors import UsageError
from hsakd_pl.methods.crd import contrast_scores
from hsakd_pl.methods.schedules import ScheduledFactor
from hsakd_pl.networks import Network, NetworkOutput

OTHERS = [name for name in METHODS if name not in ONLY_A_LOSS]
BATCH = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8)


@pytest.fixture(autouse=True, scope="module")
def cut(request: pytest.FixtureRequest) -> Iterator[None]:
    """Use the CIFAR-100 cut for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(pytest.skip.Exception):
            patch.setenv(CUT, str(request.getfixturevalue("cifar_mini")))
        yield


def fit(name: str, folder: Path, resumed: str | None = None) -> tuple[HSAKDModule, pl.Trainer]:
    """Train two epochs of two batches, saving after every step."""
    saving = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    module = make_method(name)
    fitted = trainer(folder, max_epochs=2, limit_train_batches=2, limit_val_batches=0, callbacks=[saving])
    fitted.fit(module, datamodule=make_data(batch_size=8, seed=0), ckpt_path=resumed)
    return module, fitted


@pytest.fixture(scope="module", params=METHODS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a method's name, module and trainer after a run, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return request.param, *fit(request.param, folder), folder


def test_method_trains_only_unfrozen_parts(whole: Any) -> None:
    name, module, fitted, _ = whole
    before = dict(make_method(name).named_parameters())
    logged = {key.removeprefix("train/loss_") for key in fitted.callback_metrics if key.startswith("train/loss_")}
    assert logged == METHODS[name][2]
    for key, weight in module.named_parameters():
        assert torch.equal(weight, before[key]) != weight.requires_grad, key
    assert all(weight.grad is None for frozen in module.frozen for weight in frozen.parameters())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_method_resumes_mid_epoch_bitwise(whole: Any, tmp_path: Path) -> None:
    name, _, _, folder = whole
    fit(name, tmp_path, str(folder / "step=3.ckpt"))
    ends = [torch.load(each / "step=4.ckpt", weights_only=True) for each in (tmp_path, folder)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)


def test_training_only_parts_are_not_in_the_student(whole: Any) -> None:
    """Check that they are in the checkpoint, which rebuilds the module and from which a bare network loads its part."""
    name, module, _, folder = whole
    checkpoint = folder / "step=4.ckpt"
    again = type(module).load_from_checkpoint(checkpoint)
    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    if name not in ("dml", "sskd1"):
        student = load_weights(create_network(module.network.name, module.num_classes, branches=False), checkpoint)
        torch.testing.assert_close(student.state_dict(), module.network.state_dict(), rtol=0, atol=0)
        frozen = {weight for part in module.frozen for weight in part.network.parameters()}
        assert all(weight.requires_grad or weight in frozen for weight in module.parameters())


def test_method_student_can_be_probed(whole: Any, tmp_path: Path) -> None:
    """Probe its checkpoint, or the exported one of several peers; outputs are unchanged and nothing moves."""
    name, module, _, folder = whole
    if name == "sskd1":
        pytest.skip("trains no student")
    weights, probed = folder / "step=4.ckpt", module.network
    if name == "dml":
        with pytest.raises(UsageError, match=r"holds 2 networks, not 1: pass as many, or export one \(peer\)"):
            LinearProbeModule("resnet14", 5, weights=str(weights), source_classes=module.num_classes)
        weights, probed = (
            export_student(weights, tmp_path, ["safetensors"], peer=2).folder / "model.safetensors",
            module.networks[1],
        )
    options = {"weights": str(weights), "source_classes": module.num_classes}
    probe = LinearProbeModule("resnet14" if name == "dml" else module.network.name, num_classes=5, **options)
    images, labels = BATCH[0], BATCH[1] % 5
    expected = probed.eval().outputs(images).embedding
    before = probe.network.classifier.weight.clone()
    optimizer = probe.configure_optimizers()["optimizer"]
    probe.train().training_step((images, labels), 0).backward()
    optimizer.step()
    torch.testing.assert_close(probe.encode(images), expected)
    assert not torch.equal(probe.network.classifier.weight, before)


@pytest.mark.parametrize("name", METHODS)
def test_method_losses_are_finite_in_bf16(name: str) -> None:
    module = make_method(name).train()
    batch: Any = prepared(module, *BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in module.parameters() if weight.requires_grad)


@needs_compile
@pytest.mark.slow
@pytest.mark.parametrize("name", [*OTHERS, *(pytest.param(name, marks=pytest.mark.nightly) for name in ONLY_A_LOSS)])
def test_method_compiles_without_graph_break(name: str) -> None:
    module = make_method(name, **({"samples": 16} if name == "crd" else {})).train()
    batch = prepared(module, *BATCH) if name != "crd" else (*BATCH, torch.arange(16).view(8, 2))
    torch._dynamo.reset()
    terms = torch.compile(module.losses, fullgraph=True, backend="eager")(batch)
    assert {term.removeprefix("loss_") for term in terms} == METHODS[name][2]


def _rows(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


MAPS = [_rows(6, 5, 8, 8), _rows(6, 5, 4, 4)]
LABELS = torch.arange(6)
VIEWS = 3 * _rows(4, 6, 10)
LOSSES: dict[str, tuple[Any, ...]] = {
    "dkd_loss": (_rows(6, 10), _rows(6, 10), LABELS),
    "dist_loss": (_rows(6, 10), _rows(6, 10)),
    "standardized_kd_loss": (_rows(6, 10), _rows(6, 10)),
    "rkd_loss": (_rows(6, 12), _rows(6, 20)),
    "pkt_loss": (_rows(6, 12), _rows(6, 20)),
    "correlation_loss": (_rows(6, 16), _rows(6, 16)),
    "attention_loss": (MAPS, MAPS[1:] * 2),
    "similarity_loss": (MAPS[0], MAPS[1]),
    "hint_loss": (MAPS[0], MAPS[0] + 1),
    "vid_loss": (MAPS[0], MAPS[0] + 1, torch.ones(5)),
    "hierarchical_context_loss": (MAPS, [features + 1 for features in MAPS]),
    "contrast_loss": (_rows(6, 9).exp(), 40),
    "sskd_terms": (_rows(24, 10), _rows(24, 10) + 1, _rows(24, 12), _rows(24, 20), LABELS),
    "ttm_loss": (_rows(6, 10), _rows(6, 10).flip(1)),
    "wttm_loss": (_rows(6, 10), _rows(6, 10).flip(1)),
    "rld_loss": (_rows(6, 10), _rows(6, 10).flip(1), LABELS),
    "nkd_loss": (_rows(6, 10), _rows(6, 10).flip(1), LABELS),
    "ldrld_loss": (_rows(6, 10), _rows(6, 10).flip(1)),
    "abkd_loss": (_rows(6, 10), _rows(6, 10).flip(1)),
    "standardized_abkd_loss": (_rows(6, 10), _rows(6, 10).flip(1)),
    "normkd_loss": (_rows(6, 10), _rows(6, 10).flip(1)),
    "ctkd_loss": (_rows(6, 10), _rows(6, 10).flip(1), torch.tensor([4.0])),
    "region_logits": (MAPS[0], _rows(10, 5), _rows(10)),
    "sdd_loss": (_rows(6, 10, 5), _rows(6, 10, 5).flip(1), LABELS),
    "sdd_dkd_loss": (_rows(6, 10, 5), _rows(6, 10, 5).flip(1), LABELS),
    "catkd_loss": (MAPS[0], MAPS[1], _rows(10, 5), _rows(10, 5).flip(1)),
    "mlkd_terms": (*VIEWS, LABELS),
    "mlkd_loss": (*VIEWS, LABELS),
    "crld_loss": (*VIEWS, LABELS),
    "wkd_logit_loss": (_rows(6, 10), _rows(6, 10).flip(1), LABELS, 1 - torch.eye(10), 10.0, 8.0),
    "wkd_feature_loss": (MAPS[0], MAPS[0] + 1, 4.0, 2),
    "linear_cka": (_rows(20, 4), _rows(20, 5)),
    "wkd_cost_matrix": (_rows(5, 20, 4),),
    "simkd_loss": (MAPS[1], MAPS[0], nn.Identity()),
    "srrl_loss": (_rows(6, 8), _rows(6, 8) + 1, _rows(10, 8), _rows(10), nn.Identity()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_function_compiles_without_graph_break(name: str) -> None:
    loss, inputs = getattr(methods, name), LOSSES[name]
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_loss_is_computed_in_float32(name: str) -> None:
    """Compare with full precision: matrix products in half precision are too coarse for differences of distances."""
    loss = getattr(methods, name)

    def cast(inputs: Any, dtype: torch.dtype) -> Any:
        if isinstance(inputs, list | tuple):
            return type(inputs)(cast(each, dtype) for each in inputs)
        return inputs.to(dtype) if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs

    half = cast(LOSSES[name], torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*half)
    torch.testing.assert_close(found, loss(*cast(half, torch.float32)))


@pytest.mark.parametrize("kind", ["FitNetModule", "AttentionModule", "VIDModule", "ReviewKDModule"])
def test_feature_map_methods_connect_other_families(kind: str) -> None:
    """Pair wrn_16_2, whose maps have sides of 32, 16 and 8 pixels, with shufflenetv1, whose maps have 16, 8 and 4."""
    for student, teacher in (("wrn_16_2", "shufflenetv1"), ("shufflenetv1", "wrn_16_2")):
        module = getattr(methods, kind)(student, teacher, teacher_weights="random", num_classes=4).train()
        loss = module.training_step((torch.randn(2, 3, 32, 32), torch.arange(2)), 0)
        loss.backward()
        assert all(weight.grad is not None for weight in module.parameters())


def test_method_parts_do_not_change_initial_student_weights() -> None:
    expected = make_method("kd").network.state_dict()
    for name in ("fitnet", "vid", "crd", "sskd", "reviewkd", "cc", "ctkd", "wkd", "srrl"):
        torch.testing.assert_close(make_method(name).network.state_dict(), expected, rtol=0, atol=0)


class Terms(pl.Callback):
    """Record what each epoch logs."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_weight_warmup_grows_over_first_epochs() -> None:
    terms = Terms()
    fitted = trainer(max_epochs=3, limit_train_batches=1, limit_val_batches=0, callbacks=[terms])
    fitted.fit(make_method("dkd", dkd_weight=3.0, weight_warmup_epochs=2), datamodule=make_data(batch_size=8))
    for factor, epoch in zip((1.5, 3.0, 3.0), terms.epochs, strict=True):
        expected = epoch["train/loss_ce"] + factor * epoch["train/loss_dkd"]
        assert epoch["train/loss"] == pytest.approx(expected, rel=1e-5)


class Mine(methods.DKDModule):
    """A method with a term of a user's, which has no weight of its own."""

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        return super().terms(student, teacher, labels) | {"loss_mine": student.logits.square().mean()}


def test_weight_warmup_leaves_terms_of_users_alone() -> None:
    module = Mine("resnet8", "resnet14", teacher_weights="random", image_size=16, loss_weights={"loss_mine": 0.5})
    assert module.weight_warmup_epochs == 20
    assert module.loss_weight("loss_dkd") == pytest.approx(1 / 20)
    assert module.loss_weight("loss_mine") == 0.5


def halved_after_first(epoch: int) -> float:
    return 1.0 if epoch == 1 else 0.5


class Scheduled(Mine):
    """A method whose own term and a factor inside it follow the epochs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.set_loss_weights(loss_mine=4.0)
        self.schedule_weights(halved_after_first, "loss_mine")
        self.factor = ScheduledFactor(halved_after_first)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        terms = super().terms(student, teacher, labels)
        return terms | {"loss_factor": self.factor() * torch.ones_like(terms["loss_mine"])}


def test_weight_schedule_and_factor_follow_epochs() -> None:
    terms = Terms()
    data = make_data(batch_size=8)
    module = Scheduled(**PAIR, num_classes=data.num_classes, image_size=data.image_size, weight_warmup_epochs=2)
    fitted = trainer(max_epochs=3, limit_train_batches=1, limit_val_batches=0, callbacks=[terms])
    fitted.fit(module, datamodule=data)
    assert [epoch["train/loss_factor"] for epoch in terms.epochs] == [1.0, 0.5, 0.5]
    for factor, warmed, epoch in zip((2.0, 2.0, 2.0), (0.5, 1.0, 1.0), terms.epochs, strict=True):
        expected = epoch["train/loss_ce"] + warmed * epoch["train/loss_dkd"] + epoch["train/loss_factor"]
        expected += factor * epoch["train/loss_mine"]
        assert epoch["train/loss"] == pytest.approx(expected, rel=1e-5)
    assert not any("factor" in key for key in module.state_dict())


def test_ctkd_reversal_follows_epochs_and_trains_temperature() -> None:
    module = make_method("ctkd", weight_decay=0.0, ramp_epochs=2)
    fitted = trainer(max_epochs=2, limit_train_batches=1, limit_val_batches=0)
    fitted.fit(module, datamodule=make_data(batch_size=8))
    assert module.reversal().item() == module.curriculum.reversal(2) == -1.0
    assert module.curriculum.parameter.item() != 1.0
    assert not any("reversal" in key for key in module.state_dict())


@needs_compile
def test_compiled_losses_follow_reversal_without_compiling_again() -> None:
    module = make_method("ctkd").train()
    parameter = module.curriculum.parameter
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(module.losses, fullgraph=True, backend=counter)
    gradients = []
    for epoch in (1, 5, 20):
        module.reversal.set_epoch(epoch)
        parameter.grad = None
        compiled(BATCH)["loss_ctkd"].backward()
        gradients.append(parameter.grad.item() / module.curriculum.reversal(epoch))
    assert counter.frame_count == 1
    assert gradients == pytest.approx([gradients[0]] * 3, rel=1e-3)


def test_reversed_gradient_makes_loss_grow() -> None:
    curriculum = methods.CurriculumTemperature().double()
    optimizer = torch.optim.SGD(curriculum.parameters(), lr=0.1)
    student, teacher = 5 * _rows(6, 10).double(), 5 * _rows(6, 10).double().flip(1)
    losses = []
    for epoch in range(1, 6):
        optimizer.zero_grad()
        loss = methods.ctkd_loss(student, teacher, curriculum(epoch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(set(losses))


def test_curriculum_temperature_returns_exact_parameter_value() -> None:
    curriculum = methods.CurriculumTemperature().double()
    torch.nn.init.constant_(curriculum.parameter, 0.3)
    for epoch in (1, 7, 30):
        assert torch.equal(curriculum(epoch), 1 + 20 * curriculum.parameter.sigmoid())


@pytest.mark.parametrize("network", ["wrn_16_1", "resnet8", "vgg8", "shufflenetv2", "mobilenetv2"])
def test_first_region_has_plain_logits(network: str) -> None:
    """Check that regions are taken from the map that the head averages, whatever the head begins with."""
    side = 128 if network == "mobilenetv2" else 64 if network in ("shufflenetv2", "vgg8") else 32  # maps of sides 4 k
    created = create_network(network, 10, branches=False).eval()
    output = created.outputs(torch.randn(2, 3, side, side))
    head = created.linear_head
    assert output.pooled_map.shape[2] % 4 == 0
    regions = methods.region_logits(output.pooled_map, head.weight, head.bias)
    torch.testing.assert_close(regions[..., 0], output.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(regions[..., 1:5].mean(2), output.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7])
def test_region_logits_of_any_side_are_those_of_adaptive_cells(side: int) -> None:
    """Compare with cells that are averaged one by one: from floor(i H / 4) to ceil((i + 1) H / 4)."""
    feature_map, weight = _rows(2, 5, side, side), _rows(10, 5)
    bounds = [(cell * side // 4, -(-(cell + 1) * side // 4)) for cell in range(4)]
    cells = torch.stack(
        [feature_map[:, :, top:bottom, left:right].mean((2, 3)) for top, bottom in bounds for left, right in bounds], 2
    )
    regions = methods.region_logits(feature_map, weight, None)
    torch.testing.assert_close(regions[..., 5:], weight @ cells)
    torch.testing.assert_close(regions[..., 0], cells.mean(2) @ weight.T)


def test_rows_without_classes_below_label_count_nothing() -> None:
    """Check RLD where every class is masked, and that no gradient is NaN there."""
    student = _rows(2, 4).requires_grad_()
    teacher = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 1.0, 2.0, 0.0]])
    labels = torch.tensor([0, 0])
    masked = methods.rld_loss(student, teacher, labels, alpha=0.0, beta=1.0)
    expected = methods.rld_loss(student[1:], teacher[1:], labels[1:], alpha=0.0, beta=1.0) / 2
    torch.testing.assert_close(masked, expected)
    masked.backward()
    assert student.grad[0].eq(0).all() and student.grad.isfinite().all()


def test_ldrld_of_all_classes_has_no_rest() -> None:
    student = _rows(3, 5).requires_grad_()
    loss = methods.ldrld_loss(student, _rows(3, 5).flip(1), alpha=0.0, beta=1.0, top_classes=5)
    loss.backward()
    assert loss == 0 and student.grad.eq(0).all()


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.0, 1.0)])
def test_alpha_beta_divergence_is_continuous_at_zero(alpha: float, beta: float) -> None:
    student, teacher = _rows(3, 8).double(), _rows(3, 8).double().flip(1)
    near = [value or 1e-7 for value in (alpha, beta)]
    found = methods.abkd_loss(student, teacher, alpha, beta, temperature=1.0)
    torch.testing.assert_close(found, methods.abkd_loss(student, teacher, *near, temperature=1.0), rtol=1e-5, atol=0)


def test_alpha_beta_divergence_of_extreme_logits_is_finite() -> None:
    student = torch.tensor([[0.0, 4000.0], [4000.0, 0.0]], requires_grad=True)
    loss = methods.abkd_loss(student, torch.tensor([[4000.0, 0.0], [4000.0, 0.0]]))
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


class Halves:
    """Process both halves of a batch one after the other, as two devices hold them."""

    def losses(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        one, other = (super(Halves, self).losses(tuple(part[half::2] for part in batch)) for half in (0, 1))
        return {name: (one[name] + other[name]) / 2 for name in one}


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [OTHERS, pytest.param(ONLY_A_LOSS, marks=pytest.mark.nightly)], ids=["others", "only a loss"]
)
def test_methods_on_two_processes_equal_one(names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare losses, gradients and banks; losses that relate images of a batch are compared with two halves."""
    out, runs = tmp_path / "out.pt", [f"{name} fixed" for name in names]
    run_on_two(ddp_run.main, *runs, str(out))
    trained = torch.load(out, weights_only=True)
    for name in names:
        expected = train(name)
        if name in OF_A_BATCH:
            assert trained[f"{name} fixed"]["metrics"] != pytest.approx(expected["metrics"], rel=1e-6)
            kind, options, terms = METHODS[name]
            monkeypatch.setitem(METHODS, name, (type("Halved", (Halves, kind), {}), options, terms))
            expected = train(name)
        compare(trained[f"{name} fixed"], expected, name, least=4)


def test_cli_trains_method_by_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    options = {**PAIR, "negatives": 64, "crd_weight": 0.5}
    folder = run("fit", module="methods.CRDModule", model={"init_args": options})
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["hyper_parameters"]["samples"] == len(saved["state_dict"]["contrast.memory_student"]) == 1257
    main(["test", "--config", "config.yaml", "--ckpt_path", str(folder / "last.ckpt")])


def test_sskd_stage_two_uses_projection_of_stage_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = create_network("resnet14", make_data().num_classes, branches=False)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    first = make_method("sskd1", weights=str(tmp_path / "teacher.pth"))
    fitted = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    fitted.fit(first, datamodule=make_data(batch_size=8))
    weights = {"projection_weights": str(tmp_path / "last.ckpt"), "teacher_weights": str(tmp_path / "teacher.pth")}
    second = make_method("sskd", **weights)
    torch.testing.assert_close(second.teacher.network.state_dict(), first.network.state_dict(), rtol=0, atol=0)
    (tmp_path / "last.ckpt").rename(tmp_path / "moved.ckpt")
    with pytest.raises(UsageError, match=r"last\.ckpt"):
        trainer().fit(make_method("sskd", **weights), datamodule=make_data(batch_size=8))
    (tmp_path / "moved.ckpt").rename(tmp_path / "last.ckpt")
    torch.save(create_network("resnet14", make_data().num_classes, branches=False).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"projection_weights: .*last\.ckpt was made for another teacher"):
        make_method("sskd", **{**weights, "teacher_weights": str(tmp_path / "other.pth")})


@pytest.mark.parametrize("by", ["name", "network"])
def test_dml_equals_mutual_kd_without_branches(by: str, tmp_path: Path) -> None:
    """Pass equal peers and options; without branches both modules train the same numbers."""
    names, classes = ["resnet8", "resnet14"], make_data().num_classes
    torch.manual_seed(0)
    published = published_state_dict([create_network(name, classes) for name in names])
    torch.save({"net": published}, tmp_path / "peers.pth.tar")
    options: dict[str, Any] = {"weights": str(tmp_path / "peers.pth.tar"), "num_classes": classes, "temperature": 2.0}
    options |= {
        "lr": 0.02,
        "nesterov": False,
        "milestones": [1],
        "warmup_epochs": 1,
        "ce_weight": 0.5,
        "kd_weight": 2.0,
    }
    found = []
    for kind, own in (
        (methods.DMLModule, {}),
        (MutualModule, {"joint_ce_weight": 0.0, "joint_kd_weight": 0.0}),
        (MutualModule, {}),
    ):
        peers = names if by == "name" else [create_network(name, classes) for name in names]
        module, fitted = (
            kind(peers, **options, **own),
            trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1),
        )
        fitted.fit(module, datamodule=make_data(batch_size=4, seed=0))
        found.append((module.networks.state_dict(), dict(fitted.callback_metrics), module.hparams))
    for ours, theirs in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert set(found[0][1]) < set(found[2][1]) and all(value.isfinite() for value in found[2][1].values())
    assert found[0][2].keys() | {"joint_ce_weight", "joint_kd_weight"} == found[2][2].keys()


def test_crd_without_indices_raises() -> None:
    module = make_method("crd")
    with pytest.raises(UsageError, match=r"CRDModule trains on batches of \(images, labels, indices\)"):
        module.training_step(BATCH, 0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*BATCH), batch_size=4)
    with pytest.raises(UsageError, match=r"CRDModule draws negatives by index and label: call fit\(datamodule"):
        trainer().fit(module, loader)


def contrasted(folder: Path, fraction: float = 1.0, resumed: Path | None = None, **options: Any) -> HSAKDModule:
    """Train two steps of CRD on a subset of the images."""
    module, fitted = make_method("crd", **options), trainer(folder, limit_train_batches=2, limit_val_batches=0)
    data = make_data(batch_size=8, seed=0, train_fraction=fraction)
    fitted.fit(module, datamodule=data, ckpt_path=resumed and str(resumed))
    return module


@pytest.mark.filterwarnings("ignore:.*load_from_checkpoint|.*ckpt_path")
def test_crd_banks_take_size_of_training_split(tmp_path: Path) -> None:
    """Check that the size acts as if given, is stored in the checkpoint, and that another split refuses to resume."""
    found = contrasted(tmp_path / "found", fraction=0.5)
    data = make_data()
    data.setup("fit")
    samples = len(data.splits["train"].targets) // 2
    assert found.samples == len(found.drawn.labels) == len(found.contrast.memory_teacher) == samples
    given = contrasted(tmp_path / "given", fraction=0.5, samples=samples)
    ends = [torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("found", "given")]
    assert ends[0]["hyper_parameters"] == ends[1]["hyper_parameters"]
    torch.testing.assert_close(ends[0]["state_dict"], ends[1]["state_dict"], rtol=0, atol=0)
    last = tmp_path / "found" / "last.ckpt"
    for again in (type(found).load_from_checkpoint(last), make_method("crd")):
        tested = trainer(limit_test_batches=1)
        tested.test(again, datamodule=make_data(batch_size=8), ckpt_path=str(last), verbose=False)
        torch.testing.assert_close(again.state_dict(), given.state_dict(), rtol=0, atol=0)
    student = load_student(export_student(last, tmp_path / "exported", ["safetensors"]).folder)
    torch.testing.assert_close(student.network.state_dict(), given.network.state_dict(), rtol=0, atol=0)
    for options, what in (
        ({"samples": 50}, "{}, .*, got 50"),
        ({"resumed": last}, r"{}, the check.*, got \d+"),
    ):
        with pytest.raises(UsageError, match=f"samples must be {what.format(samples)}"):
            contrasted(tmp_path, **{"fraction": 0.5 if "samples" in options else 1.0, **options})


class Plain(nn.Module):
    """Return only logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Pooled(Network):
    """Return the map that its head averages, but name no head."""

    def outputs(self, images: Tensor) -> NetworkOutput:
        return NetworkOutput(images.mean((2, 3)), [], [], None, images)


@pytest.mark.parametrize(
    ("kind", "student", "teacher", "options", "message"),
    [
        ("SDDModule", Pooled(3), Pooled(3), {}, "Pooled names no linear_head: implement this property"),
        ("CATKDModule", "resnet8", Pooled(3), {"num_classes": 3}, "Pooled names no linear_head"),
        ("RKDModule", Plain(), Plain(), {"num_classes": 3}, "returns no embedding"),
        ("AttentionModule", Plain(), Plain(), {"num_classes": 3}, "returns no features"),
        ("VIDModule", "wrn_16_2", "vgg8", {}, "teacher's number of feature maps must be the student's, 3, got 4"),
        ("FitNetModule", "resnet8", "resnet14", {"stage": 4}, "stage must be from 1 to 3, got 4"),
        ("DKDModule", "resnet8", "resnet14", {"dkd_weight": -1.0}, "dkd_weight must be at least 0, .*got -1.0"),
        ("SSKDModule", "resnet8", "resnet14", {}, "projection_weights: the teacher's projection head would be untr"),
        ("SDDModule", Plain(), Plain(), {"num_classes": 3}, "returns no pooled_map to distill"),
        ("CATKDModule", Plain(), "resnet14", {"num_classes": 3}, "returns no pooled_map to distill"),
        ("SDDModule", "resnet8", "resnet14", {"scales": [2, 4]}, r"scales must be 1, and further .* got \[2, 4\]"),
        (
            "SDDDKDModule",
            "resnet8",
            "resnet14",
            {"scales": [1, 5]},
            "scales must be 1, and further numbers from 1 to 4",
        ),
        ("CATKDModule", "resnet8", "resnet14", {"resolution": 0}, "resolution must be at least 1, got 0"),
        (
            "LDRLDModule",
            "resnet8",
            "resnet14",
            {"num_classes": 5},
            "top_classes must be from 2 to the 5 classes, got",
        ),
        ("ABKDModule", "resnet8", "resnet14", {"alpha": 0.5, "beta": -0.5}, r"alpha \+ beta must be other than 0"),
        ("CTKDModule", "resnet8", "resnet14", {"start": 0.0}, "start must be above 0, got 0.0"),
        ("RLDModule", "resnet8", "resnet14", {"confidence_temperature": 0.0}, "confidence_temperature must be above 0"),
    ],
)
def test_invalid_method_options_raise_usage_error(
    kind: str, student: Any, teacher: Any, options: dict[str, Any], message: str
) -> None:
    weights = {"teacher_weights": "random"} if isinstance(teacher, str) else {}
    with pytest.raises(UsageError, match=message):
        getattr(methods, kind)(student, teacher, **weights, **options)


def test_method_signature_shows_every_option() -> None:
    shown = list(inspect.signature(methods.DKDModule).parameters)
    assert shown[:4] == ["network", "teacher", "alpha", "beta"]
    assert {"weight_warmup_epochs", "kd_weight", "teacher_weights", "lr", "compile"} <= set(shown)
    assert not {"options", "joint_kd_weight", "transform_images"} & set(shown)
    assert "networks" in inspect.signature(methods.DMLModule).parameters


def test_bank_scores_equal_those_of_gathered_rows() -> None:
    bank, embedding, index = _rows(20, 4), _rows(3, 4), torch.tensor([[0, 5], [1, 19], [7, 7]])
    expected = torch.einsum("bd,bkd->bk", embedding, bank[index]).div(0.5).exp()
    torch.testing.assert_close(contrast_scores(embedding, bank, index, 0.5), expected)
