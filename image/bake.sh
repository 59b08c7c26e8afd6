#!/usr/bin/env bash
# Bakes the models of templates into /app/models; does nothing without BAKE.
#
# usage: BAKE="--template NAME --merge" bake.sh CACHE
#
# Baking happens in CACHE, which outlives a build: a change of the code does not download again.
set -euo pipefail

mkdir -p /app/models
[[ -n ${BAKE:-} ]] || exit 0
for secret in CIVITAI_API_KEY HF_TOKEN; do
  file=/run/secrets/${secret,,}
  if [[ -e $file ]]; then
    export "${secret}_FILE=$file"
  fi
done
cd /app
# What was baked for other templates must not come into this image.
wanted=$( (cat templates.json && echo "$BAKE") | sha256sum)
export BAKED_MODELS_DIR=$1/${wanted%% *}
# shellcheck disable=SC2086  # several arguments
"$PYTHON" model_manager.py bake $BAKE
cp -a --reflink=auto "$BAKED_MODELS_DIR/." models/
