"""Read weight files by their content, whatever their ending, without running code from them."""

import hashlib
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import torch
from safetensors.torch import load_file
from torch import Tensor

from hsakd_pl.errors import UsageError, inform
from hsakd_pl.files.schema import parse_json
from hsakd_pl.files.survey import Named, survey
from hsakd_pl.files.text import local_path, naming, read_text

StateDict = dict[str, Tensor]

# The authors save {'net': ...}, SSKD and Lightning {'state_dict': ...}, CRD and mdistiller {'model': ...}, PyTorch's
# tutorials model_state_dict, timm state_dict_ema and model_ema, BasicSR params, DeepSpeed module. Of several the first
# counts, unless the path ends in # and the name of another.
ENVELOPES = (
    "net",
    "state_dict",
    "model",
    "model_state_dict",
    "state_dict_ema",
    "model_ema",
    "params",
    "weights",
    "student",
    "ema",
    "ema_state_dict",
    "averaged",
    "module",
)
ENTRY = "#"  # between a path and the name of the weights to take from the file
# Prefixes that DataParallel, torch.compile, FSDP, activation checkpointing and Lightning add to keys.
WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)

EXTRA_STATE = "_extra_state"  # ending of the names of what a layer saves next to its weights, of any type
# Names of NumPy's arrays, and of the function that makes them from a file
ARRAYS = ("ndarray", "_reconstruct")

# The first bytes of files with weights
ZIP = rb"PK[\x01-\x08]"
TORCH_PICKLE = rb"\x80.(?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\."
SAFETENSORS = rb".{8}\{"
# The first bytes of other files, and what these files are
NO_WEIGHTS = {
    rb"\Z": "empty: fetch or write it again",
    rb"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    rb"\s*<(!doctype|html|\?xml)": "a web page: download the file itself",
    rb"[\s\x20-\x7e]{8,}\Z": "text: fetch or write it again",
    rb"\x89HDF": "an HDF5 file, of Keras for example: save a PyTorch state_dict()",
    rb"\x08[\x01-\x20][\x12:]": "a graph of ONNX or TensorFlow: save a PyTorch state_dict()",
    rb"\x93NUMPY": "a NumPy array: save a PyTorch state_dict()",
    rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd": "a compressed archive: unpack it first",
    rb".{257}ustar": "a tar archive: unpack it, or if PyTorch before 0.2 wrote it, save it anew with torch.save",
    rb"\x80[\x01-\x05]": "a pickle that torch.save did not write: save it with torch.save(state_dict, path)",
}
TRUNCATED = "truncated or no weight file: fetch or write it again"
BROKEN = "broken or forged in its pickle: write it again with torch.save(state_dict, path)"

# Globals that are not those of TENSORS are replaced by classes without content. They are options and accuracies saved
# next to the weights, such as these.
DATA = re.compile(r"numpy\..*|argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w*Path|datetime\.\w+")
# Not this one, which torch.load would allow: it allocates as many bytes as a file says.
ALLOCATING = re.compile(r"(builtins|__builtin__)\.bytearray")
# Globals that torch.load decides on. torch.nn holds only parameters and modules, which it refuses.
TENSORS = re.compile(
    r"torch\.(\w+|(_\w+|serialization|storage|distributed)\..*|nn\.parameter\.\w+)|"
    r"collections\.\w+|_codecs\.encode|(builtins|__builtin__)\.(set|complex)"
)

EXPANSION = 4  # torch.save does not compress, and trained weights hardly shrink in a compressed zip


class RefusedError(UsageError):
    """A weight file needs code for its weights."""


class StandIn:
    """Takes the place of a class or function that a file names: accepts every argument and keeps none.

    ``makes`` is the type of what it makes, where that is filled afterwards: PyTorch fills no subclasses of these.
    """

    makes: Any = None

    def __new__(cls, *arguments: Any) -> Any:
        return super().__new__(cls) if cls.makes is None else cls.makes()

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@contextmanager
def standing_in(names: Iterable[str], filled: Mapping[str, type]) -> Iterator[None]:
    """Let PyTorch's reader take stand-ins for these globals, and for all others but its own none at all."""
    allowed = torch.serialization.get_safe_globals()
    stand_ins: list[Any] = []
    for name in names:
        makes = OrderedDict if filled.get(name) is dict else filled.get(name)
        stand_in = type(name.rpartition(".")[2], (StandIn,), {"makes": makes})
        stand_ins += [(stand_in, name), (stand_in, name_of_python_3(name))]
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(stand_ins):
            yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def name_of_python_3(name: str) -> str:
    """Return the name in Python 3 of a global that a pickle names as in Python 2, as PyTorch's reader does."""
    module, _, attribute = name.rpartition(".")
    if (module, attribute) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, attribute])
    return f"{IMPORT_MAPPING.get(module, module)}.{attribute}"


@dataclass(frozen=True)
class WeightFile:
    """A weight file, and what it says about its weights.

    Args:
        path: path of the file, as the user wrote it.
        sha256: hexadecimal SHA-256 of the file; None where there is no file.
        weights: content of the file, as :func:`read_weights` returns it.
        accuracy: accuracy in [0, 1] that the file states, if any.
        description: description of the training data that the file holds, as plain data, if any.
        missing: reason why the weights could not be read, if they could not.
        inputs: ``mean``, ``std`` and ``image_size`` of the images that the network is given in a fit, where they are
            not those of the student's.
        digest: digest of the loaded weights, if they do not come from a file.
    """

    path: str
    sha256: str | None = None
    weights: Any = field(default=None, repr=False)
    accuracy: float | None = None
    description: Mapping[str, Any] | None = None
    missing: str | None = None
    inputs: Mapping[str, Any] | None = None
    digest: str | None = None


def read_weight_file(path: str | Path) -> WeightFile:
    """Read a weight file and compute its hash; raises UsageError as :func:`read_weights` does."""
    return replace(as_weight_file(read_weights(path), str(path)), sha256=file_sha256(path))


def as_weight_file(weights: Any, path: str) -> WeightFile:
    """Return the content of a weight file with what it says about its weights."""
    content = _entries(weights, object)
    description = content.get("data", _description_next_to(split_entry(path)[0]))
    return WeightFile(
        path=path,
        weights=weights,
        accuracy=stated_accuracy(content),
        description=description if isinstance(description, dict) else None,
    )


def _description_next_to(path: Path) -> dict[str, Any] | None:
    """Return the description of the data that the ``config.json`` of an export states next to its weights, if any."""
    config_file = path.with_name("config.json")
    if path.suffix != ".safetensors" or not config_file.is_file():
        return None
    try:
        config = parse_json(read_text(config_file))
    except ValueError:  # a file of something else
        return None
    return config if isinstance(config, dict) and config.keys() >= {"class_names", "mean", "std"} else None


def require_present(files: Iterable[WeightFile]) -> None:
    """Raise UsageError for the first of the weight files that is missing."""
    for file in files:
        if file.missing is not None:
            raise UsageError(file.missing)


def stated_accuracy(content: Mapping[str, Any]) -> float | None:
    """Return the accuracy in [0, 1] that the content of a weight file states, or None.

    The authors' files contain it next to the weights, this package's in the state of a callback. Some state percent.
    """
    callbacks = content.get("callbacks")
    states = callbacks.values() if isinstance(callbacks, dict) else ()
    metrics = [state.get("metrics") for state in states if isinstance(state, dict)]
    accuracies = [content.get("acc"), *(part.get("val/acc") for part in metrics if isinstance(part, dict))]
    for accuracy in accuracies:
        if isinstance(accuracy, int | float):
            return accuracy / 100 if accuracy > 1 else float(accuracy)
    return None


def read_weights(path: str | Path) -> Any:
    """Read a file written by torch.save or safetensors to the CPU, without running code from it.

    Raises UsageError, with the cause, for everything else, and for a file that is damaged, names code or expands to
    several times its size.
    """
    path, entry = split_entry(path)
    if not path.is_file():
        cause = (
            "is not a file: name the file in it" if path.exists() else "does not exist: check the path, or train first"
        )
        raise UsageError(f"weight file {path} {cause}")
    try:
        content = _load(path)
    except RefusedError as error:
        raise UsageError(f"weight file {path} {error}") from None
    except UsageError as error:
        raise UsageError(f"weight file {path} cannot be read, it is {error}") from error.__cause__
    except OSError as error:
        raise UsageError(f"weight file {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a forged file can make the readers raise anything
        raise UsageError(f"weight file {path} cannot be read, it is {TRUNCATED}") from error
    return content if entry is None else _with_entry(content, entry, path)


def split_entry(path: str | Path) -> tuple[Path, str | None]:
    """Return the file that a path such as ``last.pth#ema`` names, and the name of the weights to take from it, if any.

    A file whose own name contains ``#`` is found as well.
    """
    whole = local_path("weight file", path)
    file, separator, entry = str(whole).rpartition(ENTRY)
    if not separator or not entry or "/" in entry or whole.exists():
        return whole, None
    return Path(file), entry


def _with_entry(content: Any, entry: str, path: Path) -> dict[Any, Any]:
    """Return the content of a file with the weights of one entry in place of all others."""
    weights = {name: value for name, value in _entries(content, Mapping).items() if _weight_names(value)}
    under_prefix = {} if entry in weights else _under_prefix(content, f"{entry}.")
    if under_prefix:
        weights[entry] = under_prefix
    if entry not in weights:
        choices = ", ".join(str(name) for name in weights) or "no entries"
        raise UsageError(f"weight file {path} holds no weights under {entry:.80}: choose one of {choices:.200}")
    rest = {name: value for name, value in _entries(content, object).items() if name not in weights}
    chosen = weights[entry]
    while not _entries(chosen, Tensor):  # a state dict next to the decay and the step, for example
        chosen = next(value for value in _entries(chosen, Mapping).values() if _weight_names(value))
    return {**rest, ENVELOPES[0]: chosen}


def _under_prefix(content: Any, prefix: str) -> StateDict:
    """Return the weights under a prefix of the first state dict of a file that has some, without the prefix."""
    for state_dict in (content, *_entries(content, Mapping).values()):
        tensors = _entries(state_dict, Tensor)
        names = [name for name in tensors if isinstance(name, str) and name.startswith(prefix)]
        if names:
            return {name.removeprefix(prefix): tensors[name] for name in names}
    return {}


def _weight_names(source: Any) -> set[str]:
    """Return the names of the tensors of an entry, or of those one level deeper, without the prefixes of wrappers."""
    tensors = {name for name in _entries(source, Tensor) if isinstance(name, str)}
    if not tensors:
        parts = [
            part for name, part in _entries(source, Mapping).items() if isinstance(name, str)
        ]  # not an optimizer's
        deeper = [_entries(part, Tensor) for part in parts]
        tensors = {name for entries in deeper for name in entries if isinstance(name, str)}
    return {WRAPPERS.sub("", name) for name in tensors}


def _load(path: Path) -> Any:
    """Load a file by its first bytes; raises UsageError saying what another file is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first_bytes = file.read(512)
        file.seek(0)
        if re.match(ZIP, first_bytes):
            return _load_zip(file, size)
        if re.match(TORCH_PICKLE, first_bytes, re.DOTALL):
            return _load_torch_pickle(file, size)
    if re.match(SAFETENSORS, first_bytes, re.DOTALL):
        return load_file(path)
    if shards := shards_of(path):
        return _load_shards(shards)
    for pattern, description in NO_WEIGHTS.items():
        if re.match(pattern, first_bytes, re.DOTALL | re.IGNORECASE):
            raise UsageError(description)
    raise UsageError(TRUNCATED)


def shards_of(path: Path) -> list[Path]:
    """Return the files of weights that an index names, in its folder; none for a file that is not an index.

    Raises UsageError for an index of files in other folders.
    """
    if path.suffix != ".json":
        return []
    try:
        weight_map = parse_json(read_text(path)).get("weight_map")
        names = sorted(set(weight_map.values()))
    except (ValueError, AttributeError, TypeError):  # a file of something else
        return []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name.endswith(".json"):
            raise UsageError(f"an index of {name!r:.80}, which is not a weight file in its folder: fetch it again")
    return [path.with_name(name) for name in names]


def _load_shards(shards: list[Path]) -> dict[str, Any]:
    """Load files of weights, each of which holds some; raises UsageError for one that is missing or holds others."""
    weights: dict[str, Any] = {}
    for shard in shards:
        if not shard.is_file():
            raise UsageError(f"an index of {shard.name}, which is not in its folder: fetch that file too")
        content = _load(shard)
        if not isinstance(content, Mapping) or content.keys() & weights.keys():
            raise UsageError(f"an index of {shard.name}, which holds no further weights: fetch the files again")
        weights |= content
    return weights


def _load_zip(file: IO[bytes], size: int) -> Any:
    """Load a file written by torch.save of PyTorch 1.6 or newer, a zip."""
    pickled, storage_bytes = _check_zip(file, size)
    try:
        return _load_surveyed(file, survey(pickled, storage_bytes))
    except (UsageError, OSError):
        raise
    except Exception as error:
        raise UsageError(BROKEN) from error


def _load_torch_pickle(file: IO[bytes], size: int) -> Any:
    """Load a file written by torch.save before PyTorch 1.6: five pickles, then the bytes of the storages."""
    named = Named(set(), {})
    for _ in ("magic number", "protocol", "machine", "weights", "order of the storages"):
        part = survey(file, lambda key: size)
        named = Named(named.names | part.names, named.filled | part.filled)
    return _load_surveyed(file, named)


def _load_surveyed(file: IO[bytes], named: Named) -> Any:
    """Load a file whose pickles name these globals, but tensors and plain data alone.

    Raises RefusedError for a file that holds no weights without the other globals.
    """
    others = sorted(name for name in named.names if not TENSORS.fullmatch(name))
    refused = [name for name in others if ALLOCATING.fullmatch(name)]
    content = None
    if not refused:
        file.seek(0)
        with standing_in(others, named.filled):
            content = torch.load(file, "cpu", weights_only=True)
    code = refused or [name for name in others if not DATA.fullmatch(name)]
    if code and not _holds_tensors(content):
        raise RefusedError(f"asks to run {ascii(code[0])[1:-1]:.100}, which was refused: save the state dict alone")
    return content


def _holds_tensors(content: Any) -> bool:
    """Return True for a mapping with a tensor in it, or in one of its mappings."""
    parts = [content, *_entries(content, Mapping).values()]
    return any(_entries(part, Tensor) for part in parts)


def unwrap(source: Any, origin: str) -> StateDict:
    """Take the state dict out of its envelopes and strip wrappers' prefixes off its keys."""
    for _ in range(4):  # a forged file's envelope holds itself
        held = [name for name in ENVELOPES if isinstance(source, Mapping) and name in source]
        held = [name for name in held if _entries(source[name], Tensor | Mapping)]
        if held:
            _name_others(source, held, origin)
        source = source[held[0]] if held else source
    entries = _entries(source, object)
    states = [key for key in entries if isinstance(key, str) and key.endswith(EXTRA_STATE)]
    states = [key for key in states if not isinstance(entries[key], Tensor)]
    others = {key: entries[key] for key in entries if key not in states}
    tensors = _entries(source, Tensor)
    if not tensors or len(tensors) < len(others):
        _check_arrays(source, origin)
        found = [f"{key!s:.80} ({type(others[key]).__name__})" for key in others if key not in tensors]
        raise UsageError(
            f"{origin} contains no state dict: expected one alone or under {', '.join(ENVELOPES)}; "
            f"found {shorten(found) or type(source).__name__}{_remedy(source)}"
        )
    if states:
        inform(f"{origin} holds the state of layers in other forms than tensors, which is left out: {shorten(states)}")
    for key, tensor in tensors.items():
        if not isinstance(key, str) or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantised" if tensor.is_quantized else tensor.layout
            kind = f"a {kind} tensor" if isinstance(key, str) else f"a key of the type {type(key).__name__}"
            raise UsageError(f"{origin}: {key!s:.80} is {kind}: save a state dict of plain tensors under their names")
    stripped = {WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}
    if len(stripped) < len(tensors):
        raise UsageError(f"{origin} holds keys both with and without module. or _orig_mod.: save one of the two")
    return stripped


def _remedy(source: Any) -> str:
    """Return how to take the weights that entries of other names hold; empty without such entries."""
    entries = {name: entry for name, entry in _entries(source, Mapping).items() if isinstance(name, str)}
    names = [name for name, entry in entries.items() if _weight_names(entry)]
    return f"; name the file with {ENTRY}{names[0]:.80} at its end to take that" if names else ""


def _check_arrays(source: Any, origin: str) -> None:
    """Raise UsageError if a mapping, or one in it, holds arrays of NumPy."""
    for part in (source, *_entries(source, Mapping).values()):
        arrays = [f"{key!s:.80}" for key, value in _entries(part, object).items() if type(value).__name__ in ARRAYS]
        if arrays:
            raise UsageError(
                f"{origin} holds NumPy arrays ({shorten(arrays)}), which are not read: save tensors, made by "
                "torch.from_numpy"
            )


def _name_others(source: Any, held: list[str], origin: str) -> None:
    """Log which weights of several are taken: those under other names count if half of their names are the same."""
    taken = _weight_names(source[held[0]])
    others = [
        name
        for name, entry in _entries(source, Mapping).items()
        if name not in held and 2 * len(_weight_names(entry) & taken) >= max(len(taken), 1)
    ]
    names = [*held, *(f"{name!s:.80}" for name in others)]
    if len(names) > 1:
        inform(
            f"{origin} holds weights under {shorten(names)}: those under {held[0]} are taken; "
            f"name the file with {ENTRY}{names[1]} at its end for others"
        )


def shorten(keys: list[str]) -> str:
    """Return the first of the keys and the number of the others, for a message."""
    most = 6
    while most > 1 and sum(len(key) + 2 for key in keys[:most]) > 120:
        most -= 1
    shortened = ", ".join(f"{key:.120}" for key in keys[:most])
    return f"{shortened} and {len(keys) - most} more" if len(keys) > most else shortened


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; that of an index includes the files that it names."""
    digest = hashlib.sha256()
    whole = local_path("weight file", split_entry(path)[0])
    for part in (whole, *shards_of(whole)):
        with naming(part), part.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def weights_digest(state_dict: Mapping[str, Any]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values of all tensors, whatever file and device they are in.

    Unlike the hash of a file, it stays the same with another optimizer state, in another format and under the prefixes
    that wrappers add to names. Entries that are not tensors, the extra state of a user's module, do not count.
    """
    digest = hashlib.sha256()
    tensors = {WRAPPERS.sub("", name): entry for name, entry in state_dict.items() if isinstance(entry, Tensor)}
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
        digest.update(f"{name!r} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_zip(file: IO[bytes], size: int) -> tuple[IO[bytes], Callable[[str], int]]:
    """Check every member of a zip; return its pickle, and a function that returns the number of bytes of a storage."""
    with ZipFile(file) as archive:
        sizes = {member.filename.lower(): member.file_size for member in archive.infolist()}  # as PyTorch finds them
        ends = {name.partition("/")[2] for name in sizes}
        if "constants.pkl" in ends:
            raise UsageError("a TorchScript file: save its state_dict()")
        if "data.pkl" not in ends:
            kind = "NumPy's" if all(name.endswith(".npy") for name in sizes) else "another program's"
            raise UsageError(f"a zip of {kind}, not of torch.save: unpack it or save a PyTorch state_dict()")
        if len(sizes) < len(archive.infolist()):
            raise UsageError("damaged or forged, two of its members have one name: fetch or write it again")
        if sum(sizes.values()) > EXPANSION * size:
            raise UsageError(f"a zip of {size} bytes that expands to {sum(sizes.values())}: save it with torch.save")
        if damaged := archive.testzip():
            raise UsageError(f"damaged, the checksum of {damaged[:80]} is wrong: fetch or write it again")
        (pickled,) = (name for name in archive.namelist() if name.partition("/")[2].lower() == "data.pkl")
        folder = pickled.partition("/")[0].lower()
        return BytesIO(archive.read(pickled)), lambda key: sizes[f"{folder}/data/{key}".lower()]


def _entries(source: Any, kinds: Any) -> dict[Any, Any]:
    """Return the entries of a mapping whose values are of these types, without its ``items``, which may be forged."""
    return {key: source[key] for key in source if isinstance(source[key], kinds)} if isinstance(source, Mapping) else {}
