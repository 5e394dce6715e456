#!/usr/bin/env bash
# `import torchvision` loads PyTorch's compiler: torch._dynamo with SymPy, over 900 modules, because its ROIAlign asks
# torch._dynamo whether it can be compiled. The import takes longer than that of torch itself, and over 100 MiB of
# memory, in every process that reads images: each rank, and each data worker that is started with spawn.
# Most people expect the compiler to be loaded by the first torch.compile, and torchvision to cost little beside torch.
# torchvision 0.29.2, torch 2.15.0, Linux, 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python torch==2.15.0 torchvision==0.29.2
env/bin/python - <<'PROGRAM'
import sys
import time
from importlib import import_module


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def cost(name):
    before, modules, start = resident(), set(sys.modules), time.process_time()
    import_module(name)
    seconds, added = time.process_time() - start, sys.modules.keys() - modules
    print(f"{name:12} {seconds:.1f} s, {resident() - before:.0f} MiB, {len(added)} modules")
    return resident() - before, {module for module in added if module.startswith(("torch._dynamo", "sympy"))}


_, compiler = cost("torch")
print("modules of torch._dynamo and sympy:", len(compiler))
assert not compiler
mebibytes, compiler = cost("torchvision")
print("modules of torch._dynamo and sympy:", len(compiler))
assert len(compiler) > 400 and mebibytes > 100
PROGRAM
