"""Download files from cloud storage, with the clients of LitData."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsakd_pl.errors import UsageError
from hsakd_pl.files import naming
from hsakd_pl.files.lock import in_turn

CONNECT_SECONDS = 10  # that a connection may take
PREFIXES = ("s3://", "gs://", "r2://", "azure://", "hf://", "local:")  # local: copies a folder, as if it were remote


def is_remote(path: str | Path) -> bool:
    """Return True for a URL that LitData has a client for."""
    return str(path).startswith(PREFIXES)


@dataclass(frozen=True)
class Store:
    """A folder in cloud storage.

    Args:
        url: URL of the folder.
        options: options of the client, such as credentials.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def fetch(self, path: Path) -> Path:
        """Download the file with the name of ``path``, unless it is there; raise UsageError if that fails.

        Processes that need it at the same time wait for one of them. A partial file never has its name.
        """
        with naming(path):
            if path.exists():
                return path
        url = f"{self.url.rstrip('/')}/{path.name}"
        with in_turn(path.with_name(f".{path.name}.download")):
            if path.exists():
                return path
            client = library().streaming.downloader.get_downloader(self.url, str(path.parent), [], self.options)
            try:
                client.download_file(url, str(path))
            except Exception as error:  # of many kinds, depending on the client
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UsageError(
                    f"{url} cannot be downloaded ({reason:.300}): check the URL, the credentials and the network"
                ) from error
        if not path.is_file():
            raise UsageError(f"{url} cannot be downloaded: check the URL and the folder {path.parent}")
        return path

    def impatient(self) -> "Store":
        """Return this folder with a client of S3 that reports a wrong address or no network after seconds.

        LitData's client repeats its requests for some minutes before it does, which is right for chunks.
        """
        if not self.url.startswith("s3://") or "config" in self.options:
            return self
        library()
        from botocore.config import Config  # LitData needs it

        config = Config(connect_timeout=CONNECT_SECONDS, retries={"max_attempts": 1})
        return Store(self.url, {**self.options, "config": config})

    def folder(self, name: str) -> "Store":
        """Return a folder in this one."""
        return Store(f"{self.url.rstrip('/')}/{name}", self.options)


def library() -> Any:
    """Return the library ``litdata``; raise UsageError if it is not installed."""
    try:
        import litdata.streaming.downloader
    except ImportError as error:
        raise UsageError(
            "writing sets of LitData, and reading them from cloud storage, need litdata: pip install "
            "'hsakd_pl[litdata]'"
        ) from error
    return litdata
