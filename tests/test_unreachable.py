"""A hub that cannot be reached is named in one line, without the minute of retries of its client."""

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hsakd_pl import create_network, load_student
from hsakd_pl.cli.main import main
from hsakd_pl.errors import UsageError
from hsakd_pl.files import hub

CLOSED = "http://127.0.0.1:9"  # nothing listens there

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def closed_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub be a port to which nothing can connect."""
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def predict(source: str, folder: Path) -> None:
    """Run the command with a source and a folder of images that is empty."""
    main(["predict", source, str(folder), "--folder", str(folder)])


def load(source: str, folder: Path) -> None:
    """Load a student as in Python."""
    load_student(source)


@pytest.mark.parametrize("use", [predict, load])
@pytest.mark.parametrize("source", ["nosuch/thing", "nosuchfolder"])
@pytest.mark.usefixtures("closed_hub")
def test_missing_export_names_the_unreachable_host_without_retries(
    use: Callable[[str, Path], None],
    source: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises((UsageError, SystemExit)) as raised:
        use(source, tmp_path)
    text = str(raised.value) if use is load else capsys.readouterr().err.strip()
    assert "\n" not in text
    assert f"{source} is neither a folder here nor" in text
    assert "127.0.0.1" in text and "HF_HUB_OFFLINE=1" in text
    retries = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert retries == []


@pytest.mark.usefixtures("closed_hub")
def test_impossible_name_on_the_hub_is_refused_without_a_request(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^runs/no/such is neither a folder here nor .*check the name$") as raised:
        load_student("runs/no/such")
    assert "127.0.0.1" not in str(raised.value)


@pytest.mark.usefixtures("closed_hub")
def test_pretrained_timm_weights_name_the_unreachable_host_without_retries(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match=r"^weights: .*lcnet_050 .*127\.0\.0\.1.*name a file .*HF_HUB_OFFLINE=1"):
        create_network("timm:lcnet_050", 4, branches=False, pretrained=True)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("closed_hub")
def test_waiting_for_a_name_server_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: answered.wait(60))
    monkeypatch.setattr(hub, "SECONDS", 0.1)
    reason = hub.obstacle("https://hub.invalid")
    assert reason == "hub.invalid cannot be reached: no answer within 0.1 seconds"
    assert not answered.is_set()
    answered.set()


@pytest.mark.usefixtures("closed_hub")
def test_downloaded_copy_is_used_where_the_hub_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hsakd_pl import DigitsDataModule
    from hsakd_pl.export.student import Student

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--me--student"
    Student("resnet8", **DigitsDataModule().description.saved()).save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert load_student("me/student").network.name == "resnet8"
