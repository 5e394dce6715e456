#!/usr/bin/env bash
# Prints the rows of the table in docs/install.md: the MB of an environment with the package alone, and what each extra
# adds to it, without byte code. Needs uv; the arguments name the PyTorch to start with, as for pip install, for CPUs:
#   scripts/install_sizes.sh torch torchvision --index-url https://download.pytorch.org/whl/cpu
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_LINK_MODE=hardlink UV_NO_PROGRESS=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

install() { # an extra in brackets, or nothing, into a new environment; sets size to its MB
    rm -rf "$folder/venv"
    uv venv --quiet --python "${PYTHON:-python3}" "$folder/venv"
    if [[ ${#pytorch[@]} -gt 0 ]]; then uv pip install --quiet --python "$folder/venv" "${pytorch[@]}"; fi
    uv pip install --quiet --python "$folder/venv" ".$1"
    size=$(du -sm --apparent-size "$folder/venv" | cut -f1)
}

pytorch=("$@")
install ""
alone=$size
versions=$(uv pip freeze --quiet --python "$folder/venv" | grep -E '^(torch|torchvision)==' | tr '\n' ' ')
echo "| the package, with ${versions}| $alone |"
for extra in $(sed -n '/^\[options.extras_require\]/,/^\[options.entry/s/^\([a-z]*\) =$/\1/p' setup.cfg); do
    install "[$extra]"
    echo "| \`$extra\` | $((size - alone)) |"
done
