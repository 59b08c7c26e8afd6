#!/usr/bin/env bash
# Installs exactly the packages of a lock file, compiled to bytecode, into a virtual environment.
#
# usage: INDEX_URL=https://pypi.org/simple install-python.sh VERSION FOLDER LOCK
#
# Makes the environment if it does not exist. A call for each part of a lock file (split_lock.py)
# writes only files of this part, so that no file is in two layers of an image.
set -euo pipefail

here=$(dirname -- "${BASH_SOURCE[0]}")
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

export TMPDIR=$tools
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
export UV_BUILD_CONSTRAINT=$here/build.lock  # to build the few packages that have no wheel
export UV_COMPILE_BYTECODE=1
export UV_DEFAULT_INDEX=$INDEX_URL
export UV_LINK_MODE=copy
export UV_PYTHON_DOWNLOADS=never

"python$1" -m pip install --quiet --no-cache-dir --index-url "$INDEX_URL" --require-hashes \
  --target "$tools" -r "$here/build.lock"
uv=$tools/bin/uv
[[ -x $2/bin/python ]] || "$uv" venv --python "python$1" "$2"
"$uv" pip install --python "$2" --no-deps --require-hashes -r "$3"

cd "$2/lib/python$1/site-packages"
shopt -s globstar
while read -r pattern; do
  # shellcheck disable=SC2086  # a pattern of files
  [[ -z $pattern || $pattern == \#* ]] || rm -rf $pattern
done <"$here/unused-files"
rm -f "$2/.lock"  # uv's, for the time of the installation
