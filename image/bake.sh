#!/usr/bin/env bash
# Bakes the models of templates into /app/models, from where the Dockerfile copies them; without
# BAKE it leaves that folder empty.
#
# usage: BAKE="--template NAME --merge" bake.sh CACHE
#
# Models are baked in CACHE, which is kept between builds: after a change of the code nothing is
# downloaded again.
set -euo pipefail

mkdir -p /app/models
[[ -n ${BAKE:-} ]] || exit 0
# A build secret `hf_token` becomes HF_TOKEN_FILE; worker/config/credentials.py knows the names.
for file in /run/secrets/*; do
  name=${file##*/}
  if [[ -f $file && $name =~ ^[a-z][a-z_]*$ ]]; then
    export "${name^^}_FILE=$file"
  fi
done
cd /app
# Models that were baked for other templates must not get into this image.
key=$( (cat templates.json && echo "$BAKE") | sha256sum)
export BAKED_MODELS_DIR=$1/${key%% *}
# shellcheck disable=SC2086  # BAKE holds several arguments
"$PYTHON" model_manager.py bake $BAKE
cp -a --reflink=auto "$BAKED_MODELS_DIR/." models/
