"""Ask whether Hugging Face's hub can be reached before its client tries for a minute, and download exports from it."""

from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from hsakd_pl.errors import UsageError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
BRANCHES_FILE = "branches.safetensors"  # of a student that was calibrated for early exits
GRAPH_FILE = "model.onnx"
EXPORT_FILE = "export.json"  # what was compared, quantised and measured
LOADED_FILES = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, BRANCHES_FILE)
SECONDS = 5.0  # until a host counts as unreachable


def no_hub(action: str) -> UsageError:
    """Return the error for an action that needs huggingface_hub, which is not installed."""
    return UsageError(f"{action} needs huggingface_hub: pip install 'hsakd_pl[hub]'")


def obstacle(url: str | None = None) -> str | None:
    """Return why a host cannot be reached, in words that name it; None if it answers, or with ``HF_HUB_OFFLINE``.

    Sends one request through the client of huggingface_hub, with its proxies and certificates, and without the retries
    of its downloads, which go on for most of a minute. The time that a name server takes is limited, too, which the
    client's timeout does not do.

    Args:
        url: address on the host; by default that of the hub (``HF_ENDPOINT``).
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # documented, but not re-exported

    address = url or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return None
    reasons: list[str] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=SECONDS)
        except Exception as error:  # of a client that differs between the releases of huggingface_hub
            reasons.append(str(error).strip().partition("\n")[0] or type(error).__name__)

    request = Thread(target=ask, daemon=True)
    request.start()
    request.join(SECONDS)
    if request.is_alive():
        reasons.append(f"no answer within {SECONDS:g} seconds")
    return f"{urlsplit(address).hostname} cannot be reached: {reasons[0]:.120}" if reasons else None


def download(repository: str, files: Sequence[str] = (), **options: Any) -> Path:
    """Download an export from the hub, or find the copy that was downloaded earlier, and return its folder.

    Raises UsageError if that fails.

    Args:
        repository: id on the hub.
        files: names of files that are needed in addition to those of ``load_student``.
        options: options of ``huggingface_hub.snapshot_download``.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # likewise
    except ImportError as error:
        raise no_hub(f"{repository} is not a folder here, and downloading it") from error
    hindrance = None
    try:
        validate_repo_id(repository)
        if not options.get("local_files_only"):
            hindrance = obstacle(options.get("endpoint"))
        if hindrance is not None:
            options["local_files_only"] = True
        folder = snapshot_download(repository, allow_patterns=[*LOADED_FILES, *files], **options)
    except (OSError, ValueError) as error:  # no such repository, no possible name
        if hindrance is not None:
            raise UsageError(
                f"{repository} is neither a folder here nor a model that was downloaded from the hub ({hindrance}): "
                "check the name and the network; with HF_HUB_OFFLINE=1 the hub is not asked"
            ) from error
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{repository} is neither a folder here nor a model that can be downloaded from the hub ({reason}): check "
            "the name"
        ) from error
    if not Path(folder, CONFIG_FILE).is_file():
        raise UsageError(f"{repository} on the hub has no {CONFIG_FILE}, so it is not an export: choose another model")
    return Path(folder)
