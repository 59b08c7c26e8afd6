#!/usr/bin/env bash
# The image's entry point: gives up root if the worker's user can write all of its folders, and
# becomes tini, which starts start.sh. The arguments are those of handler.py.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly start=(tini -s -- ./start.sh "$@")  # -s: reaps also where something else is PID 1

# Runs a command as the worker's user. usage: as_worker COMMAND...
as_worker() { HOME=/home/worker setpriv --reuid=worker --regid=worker --init-groups -- "$@"; }

# Sets MODELS_DIR, OUTPUT_DIR (may be empty), RUN_DIR and WEBUI_DIR.
read_settings() {
  local settings
  settings=$("$PYTHON" -m worker.config.shell MODELS_DIR OUTPUT_DIR RUN_DIR WEBUI_DIR) ||
    exit  # with 78; Python has printed the reason
  eval "$settings"
}

# Prints why root cannot be given up; nothing if it can. Makes the folders that do not exist.
reason_to_stay_root() {
  local folder closed
  if ! as_worker true 2>/dev/null; then
    echo "this container may not change its user"
    return
  fi
  mkdir -p -- "$MODELS_DIR" ${OUTPUT_DIR:+"$OUTPUT_DIR"}
  for folder in "$MODELS_DIR" ${OUTPUT_DIR:+"$OUTPUT_DIR"}; do
    chown worker:worker -- "$folder" 2>/dev/null || true  # some volumes have no owners
    closed=$(as_worker find "$folder" -maxdepth 3 -type d ! -writable -print -quit)
    if [[ -n $closed ]]; then
      echo "user 1000 cannot write $closed; to run without root, chown -R 1000 the volume"
      return
    fi
  done
}

# A start that stayed root has left root's files in this container. After the advice above was
# followed, the same container may start again.
hand_over_to_worker() {
  [[ -O $RUN_DIR ]] || return 0
  find "$RUN_DIR" "$WEBUI_DIR" -xdev -user root -exec chown -h worker:worker -- {} +
}

# The other way round: a start as the worker's user has left its files, and a folder on the volume
# was closed to that user since. start.sh takes only a folder that is its own.
take_over_from_worker() {
  [[ -d $RUN_DIR && ! -O $RUN_DIR ]] || return 0
  find "$RUN_DIR" -xdev -user 1000 -exec chown -h root:root -- {} +
}

for argument in "$@"; do
  # With the user and the settings as they are: they may be what is wrong.
  [[ $argument != --diagnose* ]] || exec ./start.sh "$@"
done
if ((EUID)); then
  exec "${start[@]}"
fi
read_settings
reason=$(reason_to_stay_root)
if [[ -n $reason ]]; then
  echo "entrypoint.sh: stays root, because $reason" >&2
  take_over_from_worker
  exec "${start[@]}"
fi
hand_over_to_worker
HOME=/home/worker exec setpriv --reuid=worker --regid=worker --init-groups -- "${start[@]}"
