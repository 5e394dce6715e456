"""Options that a base class declares once: Python, editors and the command line see the complete list."""

import inspect
import re
from typing import Any, get_type_hints

import pytest
from jsonargparse import ArgumentParser

import hsakd_pl.data
from hsakd_pl import ImageFolderDataModule, STL10DataModule
from hsakd_pl.data import ImageDataModule
from hsakd_pl.data.base import DataOptions

DATA_MODULES = [
    module
    for module in vars(hsakd_pl.data).values()
    if isinstance(module, type) and issubclass(module, ImageDataModule)
]


class Mine(STL10DataModule):
    """A data set of a user.

    Args:
        my_option: an option of the user.
    """

    def __init__(self, *args: Any, my_option: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def defaults(module: type) -> dict[str, Any]:
    """Return the defaults of a class's parameters."""
    return {name: parameter.default for name, parameter in inspect.signature(module).parameters.items()}


def test_typed_data_options_are_those_of_the_base_class() -> None:
    declared = get_type_hints(ImageDataModule.__init__)
    del declared["root"], declared["return"]
    assert get_type_hints(DataOptions) == declared


@pytest.mark.parametrize("module", [*DATA_MODULES, Mine])
def test_signature_of_a_data_module_lists_all_options(module: type[ImageDataModule]) -> None:
    shared = defaults(ImageDataModule)
    assert next(iter(defaults(module))) == "root"
    assert shared.items() <= defaults(module).items()


def test_signature_of_a_users_data_module_takes_by_position_what_its_base_does() -> None:
    parameters = inspect.signature(Mine).parameters
    positional = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["root", "image_size", "download"]
    assert defaults(Mine)["my_option"] == 1


@pytest.mark.parametrize("module", [ImageFolderDataModule, Mine])
def test_command_line_lists_all_options_with_defaults_and_sentences(
    module: type[ImageDataModule], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parser = ArgumentParser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={module.__module__}.{module.__qualname__}"])
    help_text = capsys.readouterr().out
    for name in defaults(module):
        described = re.search(rf"^  --data\.{name} (.*?)\(type:[^-]*? default: ", help_text, re.MULTILINE | re.DOTALL)
        assert described is not None, name
        assert len(described[1].split()) > 3, described[1]


def test_misspelt_option_of_a_data_module_is_an_error_that_names_it() -> None:
    options: Any = {"batchsize": 8}
    with pytest.raises(TypeError, match="batchsize"):
        STL10DataModule(**options)
