"""Test files that are read as text, or written completely or not at all."""

from pathlib import Path

import pytest

from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path, read_text, replacing


@pytest.mark.parametrize("url", ["https://example.org/a.pth", "s3://bucket/a", "file:///a", "hf://x/y"])
def test_url_as_local_path_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=f"weights: {url} is a URL"):
        local_path("weights", url)


def test_tilde_in_local_path_expands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("weights", "~/a.pth") == Path("/home/me/a.pth")
    assert local_path("weights", "a/b.pth") == Path("a/b.pth")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
def test_text_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("Löwe\nTür\n".encode(encoding))
    if encoding == "utf-16-le":  # ASCII apart from its zero bytes
        path.write_bytes("Löwe".encode(encoding))
    with pytest.raises(UsageError, match=r"names.txt is not UTF-8 text .*: save it as UTF-8"):
        read_text(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_byte_order_mark_is_stripped(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "names.txt").write_bytes("Löwe".encode(encoding))
    assert read_text(tmp_path / "names.txt") == "Löwe"


def test_failed_write_keeps_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    with replacing(path) as file:
        file.write("whole")
    with pytest.raises(UnicodeEncodeError), replacing(path) as file:
        print("half", "\ud800", file=file)
    assert path.read_text() == "whole"
    assert [each.name for each in path.parent.iterdir()] == ["result.json"]


def test_files_are_not_written_through_links(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "result.json").symlink_to(precious)
    with replacing(tmp_path / "result.json") as file:
        file.write("new")
    assert precious.read_text() == "mine"
    assert (tmp_path / "result.json").read_text() == "new" and not (tmp_path / "result.json").is_symlink()


def test_non_utf_8_names_round_trip(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    with replacing(tmp_path / "names.txt") as file:
        file.write(name)
    assert (tmp_path / "names.txt").read_bytes() == b"caf\xe9.png"
