"""Write ``data`` from the recordings: ``cd tests && python -m parity.derive``.

Every result in ``data`` comes from the authors' code. Inputs are not stored: this program fails unless the rules of
`inputs` give what was recorded. Exceptions are VID's regressor, whose 102 weights PyTorch initialised from an unknown
seed, and the newer methods, whose inputs are chosen; those of one of the recordings are stored, as integers.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import inputs
from .recordings import DATA, GOLDEN, summary_of

METHODS = [
    "dkd",
    "dist",
    "logit_standardization",
    "rkd",
    "pkt",
    "cc",
    "at",
    "sp",
    "fitnet_down",
    "fitnet_up",
    "fitnet_same",
    "vid",
    "crd",
    "reviewkd",
    "sskd",
]
DRAWN_FOR_ANOTHER = {
    "dist/in/student_logits": "dkd/in/student_logits",
    "dist/in/teacher_logits": "dkd/in/teacher_logits",
    "logit_standardization/in/student_logits": "dkd/in/student_logits",
    "logit_standardization/in/teacher_logits": "dkd/in/teacher_logits",
    "pkt/in/student": "rkd/in/student",
    "pkt/in/teacher": "rkd/in/teacher",
    "cc/in/student": "rkd/in/student",
    "cc/in/teacher": "rkd/in/teacher",
    "sp/in/student.0": "at/in/student.0",
    "sp/in/teacher.0": "at/in/teacher.1",
    "sskd/in/labels": "dkd/in/labels",
}
BANK_BOUND = 1 / (16 / 3) ** 0.5  # bound of the banks' initial rows, whose width is 16


def recording(name: str) -> Any:
    """Return a recording: the content of a JSON file, or the arrays of an npz file."""
    path = GOLDEN / name
    return np.load(path) if path.suffix == ".npz" else json.loads(path.read_text())


def check(drawn: Mapping[str, Any], recorded: Mapping[str, np.ndarray]) -> None:
    """Raise if inputs drawn by rule are not those that were recorded."""
    for name, array in drawn.items():
        if not np.allclose(array, recorded[name], rtol=1e-15, atol=1e-16):  # up to one rounding
            raise ValueError(f"{name} does not follow from its rule")


def shortened(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, Any]:
    """Return results by their names: scalars and integers unchanged, other arrays as summaries."""
    short: dict[str, Any] = {}
    for name in names:
        array = arrays[name]
        whole = array.ndim == 0 or array.dtype.kind in "iu"
        short[name] = array.tolist() if whole else summary_of(array)
    return short


def networks() -> dict[str, Any]:
    """Shorten the manifest: the ordered keys and shapes of a network become a hash."""
    manifest = recording("manifest.json")
    for record in manifest["networks"].values():
        keys = record.pop("state_dict")
        record["state_dict_length"] = len(keys)
        record["state_dict_sha256"] = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
    return manifest


def outputs() -> dict[str, Any]:
    """Shorten the outputs of the filled networks."""
    files = {path.stem: np.load(path) for path in sorted((GOLDEN / "outputs").glob("*.npz"))}
    return {
        name: shortened(arrays, [key for key in arrays if not key.endswith("targets")])
        | {"eval_images": len(arrays["eval_targets"]), "train_images": len(arrays["train_targets"])}
        for name, arrays in files.items()
    }


def calibrated_outputs() -> dict[str, Any]:
    """Shorten the outputs of the calibrated networks."""
    arrays = recording("outputs_calibrated.npz")
    return shortened(arrays, arrays)


def losses() -> dict[str, Any]:
    """Shorten the losses for given logits; their gradients become summaries."""
    record, arrays = recording("losses.json"), recording("losses.npz")
    check(inputs.loss_inputs(record["meta"]), arrays)
    record["gradients"] = shortened(arrays, [name for name in arrays if name.startswith("grad_")])
    return record


def metrics() -> dict[str, Any]:
    """Return the accuracies and counts, which are short."""
    record = recording("metrics.json")
    check(inputs.metric_inputs(record["meta"]), recording("metrics.npz"))
    return record


def rotation() -> dict[str, Any]:
    """Shorten the rotated batch."""
    arrays = recording("rotation.npz")
    check({"batch": inputs.normal(0, *arrays["batch"].shape), "targets": inputs.labels(1, 100, 3)}, arrays)
    results = shortened(arrays, ["rotated", "joint_labels", "repeated_targets"])
    return {"batch": list(arrays["batch"].shape)} | results


def schedule() -> dict[str, Any]:
    """Return the learning rates, which are short."""
    return recording("schedule.json")


def common_start(keys: Iterable[str]) -> str:
    """Return the parts up to a dot with which all keys start."""
    common: list[str] = []
    for parts in zip(*(key.split(".") for key in keys), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join([*common, ""])


def trajectories() -> dict[str, Any]:
    """Shorten the first steps of the runs: of single tensors, the vectors of their sums and L2 norms are summarised."""
    record = recording("trajectories.json")
    for run in record["runs"].values():
        for part in run["final"].values():
            for group in part.values():
                tensors = group.pop("tensors")
                group["start"] = common_start(tensors)
                group["tensor_sums"], group["tensor_l2"] = map(summary_of, zip(*tensors.values(), strict=True))
    return record


def method_draws(arrays: Any, options: dict[str, Any]) -> list[list[Any]]:
    """Return all draws of a recording of methods in their order, for `inputs.method_inputs`."""
    draws: list[list[Any]] = []

    def draw(names: Iterable[str], factor: float = 1.0, shift: float = 0.0, kind: str = "normal") -> None:
        draws.extend([name, kind, list(arrays[name].shape), factor, shift] for name in names)

    def of(method: str, *names: str) -> list[str]:
        return [f"{method}/in/{name}" for name in names]

    def sides(method: str, ending: str = "") -> list[str]:
        return of(method, f"student{ending}", f"teacher{ending}")

    draw(of("dkd", "labels"), arrays["dkd/in/student_logits"].shape[1], kind="integers")
    draw(of("dkd", "student_logits"), 2.0)
    draw(of("dkd", "teacher_logits"), 3.0)
    draw(of("rkd", "student"), shift=0.3)
    draw(of("rkd", "teacher"), shift=0.5)
    draw(sides("cc", "_weight"), 0.3)
    draw(sides("cc", "_bias"), 0.1)
    draw(of("at", "student.0", "student.1", "teacher.0", "teacher.1"))
    draw(of("ab", "teacher.0", "teacher.1"))
    for size in ("down", "up", "same"):
        draw(sides(f"fitnet_{size}"))
        draw(of(f"fitnet_{size}", "conv_weight", "conv_bias", "bn_weight", "bn_bias"), 0.3)
    draw(sides("vid"))
    draw(of("vid", "log_scale"), 0.2, options["vid"]["init_log_scale"])
    draw(of("vid", *(f"regressor_{layer}_weight" for layer in (0, 2, 4))), 0.2)
    draw(of("crd", *(f"embed_{side}.linear.{part}" for side in "st" for part in ("weight", "bias"))), 0.3)
    draw(of("crd", "memory_student", "memory_teacher"), -BANK_BOUND, BANK_BOUND, "uniform")
    for call in ("crd/call1", "crd/call2"):
        draw([f"{call}/student"], shift=0.3)
        draw([f"{call}/teacher"], shift=0.5)
        draw([f"{call}/index"], options["crd"]["samples"], kind="permutation")
        draw([f"{call}/contrast_index"], options["crd"]["samples"], kind="contrasts")
        draws[-1][-1] = f"{call}/index"
    draw([name for name in arrays if name.startswith(("reviewkd/in/student", "reviewkd/in/teacher"))])
    draw([name for name in arrays if name.startswith("reviewkd/in/stage")], 0.3)
    draw(of("sskd", "student_logits"), 2.0)
    draw(of("sskd", "teacher_logits"), 3.0)
    draw(sides("sskd", "_projection"))
    return draws


def methods(name: str, seed: int) -> dict[str, Any]:
    """Shorten a recording of methods: draws of the inputs, hyperparameters, and results by method."""
    options, arrays = recording(f"methods/{name}.json"), recording(f"methods/{name}.npz")
    draws = method_draws(arrays, options)
    drawn = {key: value.numpy() for key, value in inputs.method_inputs(seed, draws).items()}
    stored = {key: arrays[key] for key in drawn if key.startswith("vid/in/regressor")}
    drawn |= stored
    check(drawn, arrays)
    short: dict[str, Any] = {
        "seed": seed,
        "draws": draws,
        "stored": {key: value.tolist() for key, value in stored.items()},
    }
    for method in METHODS:
        names = [key for key in arrays if key.startswith(f"{method}/")]
        sources = {key: DRAWN_FOR_ANOTHER.get(key, key) for key in names}
        used = {key: source for key, source in sources.items() if source in drawn}
        check({key: drawn[source] for key, source in used.items()}, arrays)
        start = len(method) + 1
        results = shortened(arrays, [key for key in names if key not in used])
        short[method] = {
            "options": options[method],
            "inputs": {key[start:]: source for key, source in used.items()},
            "results": {key[start:]: result for key, result in results.items()},
        }
    return short


def shared_inputs(arrays: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the different inputs of a recording of newer methods by name, and of every input the name of its equal."""
    different: dict[str, np.ndarray] = {}
    sources = {}
    for key in arrays:
        if "/in/" in key:
            array = arrays[key]
            equal = (name for name, other in different.items() if np.array_equal(array, other))
            sources[key] = next(equal, key)
            different.setdefault(sources[key], array)
    return different, sources


def newer_methods(name: str) -> dict[str, Any]:
    """Shorten a recording of newer methods: inputs, hyperparameters and results by case."""
    options, arrays = recording(f"methods2/{name}.json"), recording(f"methods2/{name}.npz")
    different, sources = shared_inputs(arrays)
    stored = {key: inputs.as_integers(array) for key, array in different.items()}
    check({key: inputs.from_integers(entry).numpy() for key, entry in stored.items()}, arrays)
    short: dict[str, Any] = {"inputs": stored}
    for case, case_options in options.items():
        start = f"{case}/in/"
        names = [key for key in arrays if key.startswith(f"{case}/") and not key.startswith(start)]
        results = shortened(arrays, names)
        short[case] = {
            "options": case_options,
            "inputs": {key.removeprefix(start): source for key, source in sources.items() if key.startswith(start)},
            "results": {key.removeprefix(f"{case}/"): result for key, result in results.items()},
        }
    return short


def derived() -> dict[str, dict[str, Any]]:
    """Return the content of every file of ``data`` by its name."""
    single = (networks, outputs, calibrated_outputs, losses, metrics, rotation, schedule, trajectories)
    contents = {f"{function.__name__}.json": function() for function in single}
    for path in sorted((GOLDEN / "methods").glob("*.npz")):
        contents[f"{path.stem}.json"] = methods(path.stem, int(path.stem.rpartition("_")[2]))
    contents["methods2_0.json"] = newer_methods("methods2_0")
    return contents


def text_of(content: dict[str, Any]) -> str:
    """Return JSON with a line per entry of the second level."""
    entries = []
    for name, value in content.items():
        if not isinstance(value, dict):
            entries.append(f"{json.dumps(name)}: {json.dumps(value)}")
            continue
        inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items())
        entries.append(f"{json.dumps(name)}: {{\n{inner}\n }}")
    return "{\n " + ",\n ".join(entries) + "\n}\n"


def main(folder: Path = DATA) -> None:
    """Write every file."""
    for name, content in derived().items():
        (folder / name).write_text(text_of(content))


if __name__ == "__main__":
    main()
