"""The installed distribution: its version, its command and its extras."""

from importlib import metadata

import hsakd_pl


def test_version_is_the_one_installed() -> None:
    assert hsakd_pl.__version__ == metadata.version("hsakd_pl")


def test_console_command_resolves() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="hsakd")
    assert callable(command.load())


def test_extras_are_declared() -> None:
    loggers = {"loggers", "tensorboard", "wandb", "mlflow"}
    extras = set(metadata.metadata("hsakd_pl").get_all("Provides-Extra", []))
    assert extras == {"plots", "examples", "notebooks", "test", "dev", "export", "hub", "timm"} | loggers


def test_what_only_examples_need_is_not_required() -> None:
    required = [line for line in metadata.metadata("hsakd_pl").get_all("Requires-Dist", []) if "extra" not in line]
    assert required and not [line for line in required if line.startswith("matplotlib")]
