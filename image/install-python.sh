#!/usr/bin/env bash
# Makes a virtual environment with exactly the packages of a lock file, compiled to bytecode.
#
# usage: INDEX_URL=https://pypi.org/simple install-python.sh VERSION FOLDER LOCK
set -euo pipefail

here=$(dirname -- "${BASH_SOURCE[0]}")
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
export UV_BUILD_CONSTRAINT=$here/build.lock  # to build the few packages that have no wheel
export UV_COMPILE_BYTECODE=1
export UV_DEFAULT_INDEX=$INDEX_URL
export UV_LINK_MODE=copy
export UV_PYTHON_DOWNLOADS=never

"python$1" -m pip install --quiet --no-cache-dir --index-url "$INDEX_URL" --require-hashes \
  --target "$tools" -r "$here/build.lock"
uv=$tools/bin/uv
"$uv" venv --python "python$1" "$2"
"$uv" pip sync --python "$2" --require-hashes "$3"
