"""Test the exponential moving average of the weights: its decay, its buffers, and which weights are where."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from small import TEACHER, error_of, history, loader, make, run, trainer
from torch import Tensor

from hsakd_pl import EMA, BaselineModule, DigitsDataModule, create_network, export_student, load_student, load_weights
from hsakd_pl.errors import UsageError
from hsakd_pl.methods import CRDModule
from hsakd_pl.modules import ema
from hsakd_pl.modules.ema import averaged, decay_at

pytestmark = pytest.mark.skipif(not hasattr(callbacks, "WeightAveraging"), reason="Lightning 2.6 brought it")


class Weights(pl.Callback):
    """Keep the parameters and buffers of a module after every step."""

    def __init__(self) -> None:
        self.parameters: list[dict[str, Tensor]] = []
        self.buffers: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.parameters.append({name: weight.detach().clone() for name, weight in pl_module.named_parameters()})
        self.buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def test_decay_grows_with_the_updates_to_its_largest_value() -> None:
    decays = [decay_at(updates, 0.9) for updates in range(200)]
    assert decays == sorted(decays) and decays[0] == 0.1 and decays[1] == 2 / 11 and decays[-1] == 0.9
    assert torch.equal(decay_at(torch.tensor(5), 0.9), torch.tensor(6 / 15))
    assert decay_at(3, 0.0) == 0


@pytest.mark.parametrize("kind", ["baseline", "student"])
def test_checkpoint_holds_the_average_and_the_buffers_of_the_training(kind: str, tmp_path: Path) -> None:
    weights = Weights()
    module = make(kind, lr=0.1)
    fit = trainer(tmp_path, max_epochs=3, callbacks=[weights, EMA(decay=0.4)])
    fit.fit(module, loader(), loader())
    average, *others = weights.parameters
    for updates, current in enumerate(others, 1):
        decay = min(0.4, (1 + updates) / (10 + updates))
        average = {name: decay * average[name] + (1 - decay) * current[name] for name in average}
    checkpoint = saved(tmp_path)
    assert len(weights.parameters) == 6
    for name, tensor in average.items():
        torch.testing.assert_close(checkpoint["state_dict"][name], tensor)
        assert torch.equal(checkpoint["current_model_state"][name], weights.parameters[-1][name])
        assert torch.equal(module.get_parameter(name), checkpoint["state_dict"][name])
    for name, buffer in weights.buffers.items():
        assert torch.equal(checkpoint["state_dict"][name], buffer)
    counters = [buffer for name, buffer in weights.buffers.items() if name.endswith("num_batches_tracked")]
    assert {int(counter) for counter in counters} == {6}


def test_whole_numbers_are_not_averaged() -> None:
    assert torch.equal(averaged(torch.tensor([3]), torch.tensor([8]), torch.tensor(1), 0.9), torch.tensor([8]))


def test_average_is_validated_tested_and_exported(tmp_path: Path) -> None:
    data = DigitsDataModule(batch_size=64, num_workers=0)
    fit = trainer(tmp_path, max_epochs=2, callbacks=[EMA()])
    fit.fit(BaselineModule("resnet8", num_classes=10, lr=0.05), data)
    accuracy = float(fit.callback_metrics["val/acc"])
    assert accuracy > 0.5  # Lightning's own callback: 0.1
    module = BaselineModule("resnet8", num_classes=10)
    [tested] = trainer().test(module, data, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert tested["test/acc"] == pytest.approx(accuracy)
    export_student(tmp_path / "last.ckpt", tmp_path / "exported", formats=["safetensors"], data=data)
    student = load_student(tmp_path / "exported")
    checkpoint = saved(tmp_path)
    network = create_network("resnet8", 10, branches=False)
    for entry, expected in (("state_dict", student.network), ("current_model_state", None)):
        load_weights(network, f"{tmp_path / 'last.ckpt'}#{entry}")
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, checkpoint[entry][f"networks.0.{name}"])
            assert expected is None or torch.equal(tensor, expected.state_dict()[name])


def test_log_names_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer(callbacks=[EMA(0.99)]).fit(make("baseline"), loader())
    assert "a decay that grows to 0.99; FILE#current_model_state" in caplog.text


def test_teacher_is_not_copied_for_good() -> None:
    average = EMA()
    trainer(callbacks=[average]).fit(make("student"), loader())
    assert average._average_model.module.teachers == [] and average._average_model.module.teacher == []


@pytest.mark.parametrize("workers", [0, 2])
def test_run_stopped_inside_an_epoch_resumes_bit_by_bit(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    average = {"class_path": "hsakd_pl.EMA", "init_args": {"decay": 0.7}}
    limits = {"limit_train_batches": 4, "limit_val_batches": 1, "max_epochs": 2}
    data = {"init_args": {"num_workers": workers}}
    run("fit", data=data, trainer={**limits, "default_root_dir": "whole", "callbacks": [average]})
    stop = {"class_path": "test_interruptions.Signal", "init_args": {"signum": 15, "at": 5}}
    with pytest.raises(SystemExit):
        run("fit", data=data, trainer={**limits, "default_root_dir": "part", "callbacks": [average, stop]})
    run("fit", "--ckpt_path", "last", data=data, trainer={**limits, "default_root_dir": "part", "callbacks": [average]})
    protocol = json.loads(Path("whole", "result.json").read_text())["protocol"]
    assert protocol["options"]["trainer.callbacks"] == "hsakd_pl.EMA(decay=0.7)"
    for entry in ("state_dict", "current_model_state", "averaging_state"):
        whole, part = (saved(Path(name))[entry] for name in ("whole", "part"))
        assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())
    assert history("whole") == history("part")


def test_memory_of_crd_is_that_of_the_training(tmp_path: Path) -> None:
    def fit(epochs: int, folder: Path, resumed: Path | None = None) -> dict[str, Any]:
        torch.manual_seed(0)
        module = CRDModule("resnet8", num_classes=10, negatives=8, width=8, image_size=16, **TEACHER)
        data = DigitsDataModule(batch_size=32, num_workers=0)
        options: dict[str, Any] = {"limit_train_batches": 2, "limit_val_batches": 1}
        trainer(folder, epochs, callbacks=[EMA(0.7)], **options).fit(module, data, ckpt_path=resumed)
        assert torch.equal(module.contrast.memory_student, saved(folder)["state_dict"]["contrast.memory_student"])
        return saved(folder)

    whole = fit(2, tmp_path / "whole")
    fit(1, tmp_path / "part")
    resumed = fit(2, tmp_path / "resumed", tmp_path / "part" / "last.ckpt")
    for entry in ("state_dict", "current_model_state"):
        assert whole[entry]["contrast.memory_student"].shape[1] == 8 and len(whole[entry]["contrast.memory_student"])
        assert all(torch.equal(tensor, resumed[entry][name]) for name, tensor in whole[entry].items())


def test_mixed_precision_averages_and_half_precision_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, precision="bf16-mixed", callbacks=[EMA()]).fit(make("baseline"), loader(), loader())
    floats = [tensor for tensor in saved(tmp_path)["state_dict"].values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}
    with pytest.raises(UsageError, match=r"trainer\.precision is bf16-true, .* choose bf16-mixed"):
        trainer(precision="bf16-true", callbacks=[EMA()]).fit(make("baseline"), loader())


OTHERS = {
    "StochasticWeightAveraging": {"swa_lrs": 0.1, "swa_epoch_start": 1},
    "EMAWeightAveraging": {"decay": 0.5},
}


@pytest.mark.parametrize("name", OTHERS)
def test_second_average_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = {"class_path": f"pytorch_lightning.callbacks.{name}", "init_args": OTHERS[name]}
    message = error_of(
        capsys, lambda: run("fit", trainer={"max_epochs": 2, "callbacks": [{"class_path": "hsakd_pl.EMA"}, other]})
    )
    assert f"EMA and {name} would each replace the weights by their average" in message


def test_early_stopping_and_accumulated_gradients_follow_the_average(tmp_path: Path) -> None:
    weights = Weights()
    stopping = pl.callbacks.EarlyStopping("val/loss", patience=1, min_delta=1e9, check_on_train_epoch_end=False)
    fit = trainer(tmp_path, max_epochs=9, accumulate_grad_batches=2, callbacks=[weights, EMA(0.7), stopping])
    fit.fit(make("baseline", lr=0.1), loader(), loader())
    assert fit.current_epoch == 2
    first, second = weights.parameters[1::2]  # an update after each step of two batches
    checkpoint = saved(tmp_path)
    assert int(checkpoint["averaging_state"]["n_averaged"]) == 2
    for name, weight in first.items():
        expected = 2 / 11 * weight + 9 / 11 * second[name]
        torch.testing.assert_close(checkpoint["state_dict"][name], expected)


def test_bad_options_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    average = {"class_path": "hsakd_pl.EMA", "init_args": {"decay": 1.0}}
    message = error_of(capsys, lambda: run("fit", trainer={"callbacks": [average]}))
    assert message == "decay must be at least 0 and below 1, got 1.0."
    monkeypatch.setattr(ema, "WeightAveraging", None)
    with pytest.raises(UsageError, match=r"EMA needs pytorch_lightning 2\.6"):
        EMA()
