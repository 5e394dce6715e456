"""Test the benchmarks: the plain loop equals the modules, loops take turns, and the documents hold the results."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from small import needs_kernel, norms

import hsakd_pl
from benchmarks import plain, results
from benchmarks.__main__ import GROUPS, OTHERS, TABLE_DEFAULTS, check, main, parser, variants_of
from benchmarks.cases import METHOD_COSTS, NAMED, TABLE, Case, comparison_methods, find
from benchmarks.entries import entries
from benchmarks.loops import BareLoop, SyntheticDataModule
from benchmarks.machine import processor
from benchmarks.measuring import Measurement
from benchmarks.plain import PlainLoop
from benchmarks.trees import CHECKOUT, checkout, earlier, unsatisfied
from benchmarks.turns import costs, in_turns, relative_to_first, speed_up, turns_of
from benchmarks.variants import Variant, parse, trainer_config
from hsakd_pl import HSAKDModule, StudentModule, methods
from hsakd_pl.errors import UsageError
from hsakd_pl.fast import winograd
from hsakd_pl.fast.folded import Folded
from hsakd_pl.modules.probe import ProbeNetwork
from hsakd_pl.ops import total

TINY = ["--device", "cpu", "--batch-size", "4", "--steps", "2", "--warmup", "0", "--rounds", "2", "--images", "60"]
PAIR = "student:resnet14-resnet8"
in_a_clone = pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="compares commits: needs a clone")


def build(case: Case, **options: Any) -> HSAKDModule:
    """Build the module of a case, with fresh weights."""
    return attrgetter(case.class_name)(hsakd_pl)(**case.arguments, **options)


def networks_of(module: HSAKDModule) -> plain.Networks:
    """Return a module's networks in the order of the plain loop."""
    if isinstance(module, StudentModule):
        return module.teacher.network, module.network
    if isinstance(module.network, ProbeNetwork):
        return module.network.features, module.network.classifier
    return tuple(module.networks)


@pytest.mark.parametrize("name", [PAIR, "teacher:resnet8", "mutual:resnet8", "probe:resnet8"])
def test_plain_loop_computes_module_loss(name: str) -> None:
    case, classes = find(name), 10
    torch.manual_seed(0)
    module = build(case, num_classes=classes)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(classes, (4,))
    networks = plain.build(case, classes)
    for ours, theirs in zip(networks_of(module), networks, strict=True):
        theirs.load_state_dict(ours.state_dict())
    loss, _ = plain.LOSSES[case.method](networks, images, labels)
    module.train()
    terms = module.losses((images, labels))
    assert loss.item() == pytest.approx(total(terms.values()).item(), rel=1e-5)
    assert loss.item() == pytest.approx(module.training_step((images, labels), 0).item(), rel=1e-5)
    trained = [name for network in networks for name, each in network.named_parameters() if each.requires_grad]
    assert len(trained) == len([each for each in module.parameters() if each.requires_grad])


def test_plain_loop_in_bf16_keeps_its_weights_in_fp32() -> None:
    loop = PlainLoop(find(PAIR), "cpu", precision="bf16", batch_size=4, images=8)
    before = next(loop.networks[1].parameters()).clone()
    loop.step()
    after = next(loop.networks[1].parameters())
    assert after.dtype == torch.float32 and not torch.equal(after, before)


@pytest.mark.parametrize("case", [*NAMED, *TABLE], ids=lambda case: case.name)
def test_every_benchmark_case_builds(case: Case) -> None:
    with torch.device("meta"):
        assert isinstance(build(case, num_classes=100), HSAKDModule)
    assert find(case.name) == case


def test_benchmark_list_shows_each_case_once(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    listed = capsys.readouterr().out.split()
    assert len(listed) == len(set(listed)) == 8 + 5 + 8 + 1 + 1 + len(comparison_methods())
    assert {"student:wrn_40_2-wrn_16_2", "teacher:wrn_40_2", "mutual:resnet56", "probe:mobilenetv2"} <= set(listed)
    assert {"method-costs:wrn_40_2-wrn_16_2", "crd:wrn_40_2-wrn_16_2", "dml:wrn_16_2"} <= set(listed)
    modules = {name for name in methods.__all__ if name.endswith("Module")} - {"DistilledModule"}
    compared = comparison_methods()
    assert {f"methods.{name}" for name in modules} == {name for name, _ in compared.values()}
    assert next(iter(compared)) == "kd"


def run(folder: Path, *options: str) -> dict[str, Any]:
    """Return the file that the command writes."""
    main([*TINY, "--out", str(folder / "results.json"), *options])
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_benchmark_compares_plain_loop_and_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path, PAIR, "--loops", "plain", "fit", "--busy", "1")[f"{PAIR} batch 4, 1 busy"]
    assert list(found) == ["plain", "fit", "environment"]
    for loop in ("plain", "fit"):
        numbers = found[loop]
        assert len(numbers["step_ms"]) == 4 and min(numbers["step_ms"]) > 0
        assert numbers["images_per_second"] == pytest.approx(4000 / numbers["ms_per_step"])
        assert numbers["first_step_seconds"] > 0 and numbers["threads"] >= 1
        assert numbers["host_syncs_per_step"] is None  # nothing to sync on a CPU
        assert 2**27 < numbers["peak_memory_bytes"] < 2**32
        assert numbers["versions"]["torch"] == torch.__version__ and numbers["commit"] == checkout().commit
    low, high = found["fit"]["times_interval"]
    assert low <= found["fit"]["times_as_fast"] <= high
    assert found["environment"]["device"] == processor()
    shown = capsys.readouterr().out
    assert "plain" in shown and "fit" in shown and "95 % interval" in shown


@pytest.mark.nightly
@in_a_clone
@pytest.mark.parametrize(
    "options",
    [
        [PAIR, "--loops", "plain", "plain-bf16", "plain-compiled"],
        ["--against", "HEAD", PAIR],
        [PAIR, "--loops", "step", "added", "step-bf16"],
        ["teacher:resnet8", "--loops", "fit", "fit-bf16-compiled"],
        ["crd:resnet14-resnet8"],
        ["dml:resnet8"],
    ],
    ids=lambda options: " ".join(options),
)
def test_every_loop_is_measured(options: list[str], tmp_path: Path) -> None:
    ((_, found),) = run(tmp_path, *options).items()
    del found["environment"]
    assert [len(numbers["step_ms"]) for numbers in found.values()] == [4] * len(found)
    assert next(iter(found.values()))["times_as_fast"] == 1


@pytest.mark.slow
def test_benchmark_profile_prints_operations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--out", str(tmp_path / "results.json"), "--profile", PAIR, "--loops", "plain"])
    shown = capsys.readouterr().out
    assert f"{PAIR} plain" in shown and "convolution" in shown


def test_whole_command_is_measured_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "python -c 'import hsakd_pl; open(\"configs/digits/teacher_joint_resnet20.yaml\")'"
    found = run(tmp_path, "--command", command)[command]["command"]
    assert 0 < found["seconds"] < 60 and found["peak_memory_bytes"] > 2**22
    assert "command" in capsys.readouterr().out


def test_failing_command_ends_with_its_last_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(tmp_path, "--command", "python -c 'raise SystemExit(\"no such data\")'")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "status 1" in error and "no such data" in error


COMMAND = ["--command", "python -c pass"]


@pytest.mark.parametrize(
    "content",
    ['{"accuracy": 0.5}', "[]", "{}", "", "notes", '{"a": {"environment": 1}}', '{"a": {"environment": {}}, "b": 1}'],
)
def test_file_that_no_benchmark_wrote_is_not_replaced(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *COMMAND)
    assert end.value.code == 2 and "was not written by a benchmark" in capsys.readouterr().err
    assert path.read_text() == content


def test_rows_of_other_names_remain(tmp_path: Path) -> None:
    assert [*run(tmp_path, *COMMAND)] == ["python -c pass"]
    before = run(tmp_path, "--command", "python -c 1")
    assert [*before] == ["python -c pass", "python -c 1"]
    after = run(tmp_path, *COMMAND)
    assert after["python -c 1"] == before["python -c 1"] and after["python -c pass"] != before["python -c pass"]


def test_stored_rows_replace_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    other = tmp_path / "any-cpu-avx2.unfinished"
    other.write_text("notes")
    results.store("student:a-b batch 4", row("a", ["plain"]))
    assert other.read_text() == "notes" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_benchmark_leaves_no_process(how: signal.Signals, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = f"import os, time; print(os.getpid(), file=open({str(pids)!r}, 'w'), flush=True); time.sleep(600)"
    arguments = [*TINY, "--busy", "1", "--command", f'python -c "{program}"']
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=CHECKOUT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (pids.exists() and pids.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.05)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        assert len(children) == 2 and pids.read_text().strip() in children
        process.send_signal(how)
        assert process.wait(60) == 128 + how
    finally:
        process.kill()
    assert [pid for pid in children if Path("/proc", pid).exists()] == []
    assert list(tmp_path.glob("benchmarks-*")) == []


def test_busy_process_ends_when_its_parent_is_killed() -> None:
    program = (
        "import os, signal\n"
        "from benchmarks.processes import busy\n"
        "with busy(1):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, timeout=60)  # until the busy process has closed it


@in_a_clone
def test_earlier_commit_has_its_own_package(tmp_path: Path) -> None:
    tree = earlier("HEAD", tmp_path / "tree")
    assert not (tree.folder / "benchmarks").exists() and tree.commit
    program = "import hsakd_pl, benchmarks; print(hsakd_pl.__file__, benchmarks.__file__)"
    done = subprocess.run([tree.python, "-c", program], env=tree.environment, cwd="/", capture_output=True, text=True)
    package, ours = done.stdout.split()
    assert Path(package).parents[1] == tree.folder and Path(ours).parents[1] == CHECKOUT
    with pytest.raises(UsageError, match="Needed a single revision"):
        earlier("no-such-commit", tmp_path / "other")


def test_other_dependencies_are_noticed(tmp_path: Path) -> None:
    setup = tmp_path / "setup.cfg"
    lines = ["torch>=2", "torch<2", "no_such_package", "no_such_package; sys_platform == 'nowhere'"]
    setup.write_text("[options]\ninstall_requires =\n" + "".join(f"    {line}\n" for line in lines))
    assert unsatisfied(setup) == ["torch<2", "no_such_package"]
    assert unsatisfied(CHECKOUT / "setup.cfg") == []


@pytest.mark.parametrize(
    "name", ["plain", "plain-bf16", "plain-compiled", "fit-bf16-compiled@5c4e141", "step", "fit@a-b"]
)
def test_variant_name_is_read_and_written_alike(name: str) -> None:
    assert parse(name, "fp32").name == name
    assert parse("plain-fp32", "bf16") == Variant("plain") and parse("fit", "bf16") == Variant("fit", "bf16")


def test_commits_are_compared_with_fit() -> None:
    def names(*options: str) -> list[str]:
        return [variant.name for variant in variants_of(parser().parse_args(options))]

    assert names() == ["plain", "step", "fit"]
    assert names("--precision", "bf16") == ["plain-bf16", "step-bf16", "fit-bf16"]
    assert names("--against", "main") == ["fit@main", "fit"]
    assert names("--against", "main", "--loops", "fit-bf16", "plain") == ["fit-bf16@main", "fit-bf16", "plain"]
    assert [case.method for case in METHOD_COSTS.compared] == list(comparison_methods())
    assert list(turns_of(find("crd:resnet14-resnet8"), [Variant("plain")])) == ["kd", "crd"]


def test_speed_up_has_the_interval_of_its_rounds() -> None:
    assert speed_up([2.0], [1.0]) == (2.0, None)
    times, interval = speed_up([4.0, 4.0, 9.0], [2.0, 2.0, 4.5])
    assert times == pytest.approx(2) and interval == pytest.approx([2, 2])
    times, interval = speed_up([1.0, 4.0], [1.0, 1.0])
    assert times == pytest.approx(2) and interval is not None and interval[0] < 1 < interval[1]
    taken: list[str] = []
    in_turns(3, ["a", "b"], taken.append)
    assert taken == ["a", "b", "b", "a", "a", "b"]


@pytest.mark.parametrize(
    ("flags", "instructions"),
    [
        ("sse4_2 avx2", "AVX2"),
        ("avx2 avx512f", "AVX-512"),
        ("avx2 avx512f avx512_bf16", "AVX-512 with bf16"),
        ("avx2 avx512f avx512_bf16 amx_tile amx_bf16", "AMX"),
    ],
)
def test_results_file_names_the_instruction_set(flags: str, instructions: str, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: AMD EPYC\nflags\t\t: fpu {flags}\n")
    assert processor(cpuinfo) == f"AMD EPYC, {instructions}"
    assert results.path_of(processor(cpuinfo)).name == f"amd-epyc-{instructions.lower().replace(' ', '-')}.json"


def row(commit: str | None, variants: list[str]) -> results.Row:
    """Return a row as it is stored."""
    numbers: dict[str, results.Numbers] = {}
    for index, variant in enumerate(variants):
        step_ms = [10.0 - index] * 2
        numbers[variant] = {
            "commit": "5c4e141" if "@" in variant else commit,
            "versions": {"torch": "2.15.0"},
            "ms_per_step": step_ms[0],
            "ms_quartiles": [step_ms[0]] * 3,
            "peak_memory_bytes": 2**30,
            "step_ms": step_ms,
        }
    relative_to_first(numbers, {name: each["step_ms"] for name, each in numbers.items()})
    return numbers | {"environment": {"device": "Any CPU, AVX2", "date": "2026-11-30"}}


def test_finished_rows_of_the_table_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loops = list(TABLE_DEFAULTS["loops"])
    assert results.is_current(row("a", loops), loops, "a")
    assert not results.is_current(row("b", loops), loops, "a")
    assert not results.is_current(row("a", loops[:-1]), loops, "a")
    assert not results.is_current(row("a-dirty", loops), loops, "a-dirty")
    assert not results.is_current({}, loops, "a")
    stored = {f"{case.name} batch 16": row("a", ["plain"]) for case in GROUPS["table"]}
    (tmp_path / "any-cpu-avx2.json").write_text(json.dumps(stored))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.__main__.device_name", lambda device: "Any CPU, AVX2")
    monkeypatch.setattr("benchmarks.__main__.checkout", lambda: checkout()._replace(commit="a"))
    main(["table", "--loops", "plain", "--device", "cpu"])
    assert capsys.readouterr().out.count("stored already") == len(TABLE)


def test_stored_rows_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    variants = ["plain", "fit@5c4e141", "fit-bf16"]
    path = results.store("student:a-b batch 4", row("a", variants))
    assert "step_ms" not in path.read_text() and path.name == "any-cpu-avx2.json"
    tables = {results.MARKS: results.short_table}
    document = results.rendered("\n".join(["before", *results.MARKS, "after"]), tables)
    assert document.startswith("before\n") and document.endswith("\nafter")
    assert "| `student:a-b batch 4` | 10 ms (1.00) | 9 ms (1.11) | 8 ms (1.25) | 1,024 | 1,024 | 1,024 |" in document
    assert results.rendered(document, tables) == document
    assert len(results.long_table(results.read(path))) == 2 + len(variants) + 1


@pytest.mark.parametrize("name", ["benchmarks/README.md", "docs/speed.md", "Makefile"])
def test_documented_benchmark_commands_are_valid(name: str) -> None:
    text = (CHECKOUT / name).read_text().replace("\\\n", " ")
    commands = re.findall(r"^.*(?:python|RUN\)) -m benchmarks\b([^`]*?)(?:>.*)?$", text, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] in OTHERS:
            import_module(f"benchmarks.{words[0]}").parser().parse_args(words[1:])
            continue
        options = parser().parse_args(words)
        variants = variants_of(options)
        check(options, [find(case) for case in options.cases if case not in (*GROUPS, "render")], variants)


@pytest.mark.parametrize("name", results.DOCUMENTS)
def test_documents_hold_the_stored_measurements(name: str) -> None:
    document = (CHECKOUT / name).read_text()
    assert results.rendered(document, results.DOCUMENTS[name]) == document, (
        "write them anew: python -m benchmarks render"
    )


def test_costs_are_compared_with_the_constants_of_the_bench() -> None:
    compared = entries(METHOD_COSTS.compared)
    names = [entry.name for entry in compared]
    assert names[0] == "KD" and len(set(names)) == len(names)
    assert {entry.class_name for entry in compared} == {case.class_name for case in METHOD_COSTS.compared}
    arguments = {entry.name: entry.arguments for entry in compared}
    assert arguments["ABKD"]["abkd_weight"] == 32.0  # of the pair
    assert arguments["SD-KD"]["scales"] == [1, 2]  # of the first pair, as the table has no other
    assert arguments["WKD-F"]["logit_weight"] == 0 and "feature_weight" not in arguments["WKD-L"]
    assert arguments["KD"] == find("kd:wrn_40_2-wrn_16_2").arguments


def test_cost_is_the_median_of_the_ratios_of_the_rounds() -> None:
    numbers = costs([[2.0, 4.0], [6.0, 6.0], [9.0, 9.0]], [[2.0, 2.0], [2.0, 2.0], [3.0, 3.0]])
    assert numbers["relative"] == 3 and numbers["relative_quartiles"] == [2.625, 3.0, 3.0]
    assert numbers["ms_per_step"] == 6 and numbers["reference_ms_per_step"] == 2


def test_costs_have_a_table_of_their_own() -> None:
    numbers = {"ms_per_step": 300.0, "relative": 3.0, "relative_quartiles": [2.9, 3.0, 3.1]}
    images = {"student": 2.0, "student_passes": 2, "teacher": 2.0, "teacher_passes": 1}
    kd = {"ms_per_step": 100.0, "relative": 1.0, "relative_quartiles": [1.0, 1.0, 1.0]}
    row = {"MLKD": numbers | images, "KD": kd | dict.fromkeys(images, 1), "environment": {}}
    rows = {"method-costs:a-b batch 16": row}
    assert results.short_table(rows) == [] and len(results.long_table(rows)) == 3  # heads, and an empty line
    lines = [line for line in results.cost_table(rows) if line.startswith("| ")]
    assert lines[2:] == [
        "| KD | 100 ms | 1.00 | 1.00 to 1.00 | 1 | 1 |",
        "| MLKD | 300 ms | 3.00 | 2.90 to 3.10 | 2 in 2 passes | 2 |",
    ]


@pytest.mark.slow
def test_steps_of_all_methods_are_measured_in_turns_with_kd(tmp_path: Path) -> None:
    (found,) = run(tmp_path, "method-costs:resnet14-resnet8", "--steps", "1").values()
    del found["environment"]
    assert {numbers["class"] for numbers in found.values()} == {name for name, _ in comparison_methods().values()}
    assert min(numbers["relative"] for numbers in found.values()) > 0
    images = {name: (numbers["student"], numbers["teacher"]) for name, numbers in found.items()}
    assert [images[name] for name in ("KD", "MLKD", "SSKD", "DML")] == [(1, 1), (2, 2), (4, 4), (2, 0)]
    assert found["MLKD"]["student_passes"] == 2 and found["KD"]["student_passes"] == 1


@pytest.mark.parametrize("case", find("method-costs:resnet14-resnet8").compared, ids=lambda case: case.method)
def test_every_method_folds_its_frozen_teacher(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a folded copy replaces the teacher; stage one of SSKD has its teacher inside the trained network."""
    data = SyntheticDataModule(1000, 4)  # of every class, as WKD needs
    data.setup("fit")
    assert find(case.name) == case
    loop = BareLoop(build(case, num_classes=100), data, "cpu")
    loop.step()  # on the first batch, the network itself proves that the copy is equal
    assert len(loop.module.teachers) == (0 if case.method in ("dml", "sskdprojection") else 1)
    for teacher in loop.module.teachers:
        assert isinstance(teacher.stand_in, Folded) and norms(teacher.stand_in.network) == 0 < norms(teacher.network)
        monkeypatch.setattr(teacher.network, "outputs", None)
    loop.step()


@needs_kernel
def test_layers_that_a_method_trains_next_to_the_student_use_the_kernels() -> None:
    data = SyntheticDataModule(16, 4)
    data.setup("fit")
    review = BareLoop(build(find("reviewkd:resnet14-resnet8"), num_classes=100), data, "cpu").module.review
    converted = [name for name, layer in review.named_modules() if winograd.layers.METHOD in vars(layer)]
    assert {"0.conv2.0", "1.conv2.0", "2.conv2.0"} <= {*converted}  # the 3 x 3 convolutions
    winograd.revert(review)
    assert not any(winograd.layers.METHOD in vars(layer) for layer in review.modules())


def test_bare_loop_has_the_fast_paths_of_fit() -> None:
    """Check that it has everything the callback provides, except a logger."""
    data = SyntheticDataModule(16, 4)
    data.setup("fit")
    loop = BareLoop(build(find(PAIR), num_classes=100), data, "cpu")
    loop.step()
    assert loop.module.teacher.stand_in is not None and not loop.module.means


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["student:resnet8"], "student:<teacher>-<student>"),
        (["baseline:resnet8"], "teacher:<net>"),
        (["teacher:resnet9"], "unknown network 'resnet9'"),
        (["--steps", "100", PAIR], "lower --steps"),
        (["--rounds", "0"], "--rounds"),
        (["teacher:resnet8", "--loops", "added"], "measured on a student"),
        (["method-costs", "--profile"], "with a case of its own"),
        ([PAIR, "--loops", "ours"], "LOOP[-fp32|-bf16][-compiled][@COMMIT]"),
    ],
)
def test_invalid_benchmark_options_exit_with_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *options)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_benchmark_passes_only_changed_options_to_trainer() -> None:
    assert trainer_config("cpu", "fp32") == {"accelerator": "cpu", "devices": 1}
    assert trainer_config("cuda", "bf16") == {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}


def test_measurement_block_times_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 10.5, 11.5, 11.75])
    measurement = Measurement(torch.device("cpu"))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    block = measurement.block(3)
    for _ in range(3):
        next(block)
    with pytest.raises(StopIteration) as end:
        next(block)
    assert end.value.value == [500, 1000, 250]
