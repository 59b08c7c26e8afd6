#!/usr/bin/env bash
# The image's entry point: gives up root where the folders that the worker writes allow it, and
# becomes tini, which starts start.sh. Arguments are handler.py's.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly start=(tini -s -- ./start.sh "$@")  # -s: reaps also where something else is PID 1

# As the worker's user. usage: as_worker COMMAND...
as_worker() { HOME=/home/worker setpriv --reuid=worker --regid=worker --init-groups -- "$@"; }

# The folders that the worker writes, made if they do not exist. RunPod's volume goes before /models
# as in worker/config/settings.py.
written_folders() {
  local store=/models
  [[ ! -d /runpod-volume ]] || store=/runpod-volume/models
  mkdir -p -- "${MODELS_DIR:-$store}" ${OUTPUT_DIR:+"$OUTPUT_DIR"}
  printf '%s\n' "${MODELS_DIR:-$store}" ${OUTPUT_DIR:+"$OUTPUT_DIR"}
}

# Prints why root cannot be given up; nothing if it can.
reason_to_stay_root() {
  local folder closed
  if ! as_worker true 2>/dev/null; then
    echo "this container may not change its user"
    return
  fi
  while read -r folder; do
    chown worker:worker -- "$folder" 2>/dev/null || true  # a volume may not know owners
    closed=$(as_worker find "$folder" -maxdepth 3 -type d ! -writable -print -quit)
    if [[ -n $closed ]]; then
      echo "user 1000 cannot write $closed; chown -R 1000 the volume to run without root"
      return
    fi
  done < <(written_folders)
}

# A start that stayed root has left files of root's in this container, which may start anew after
# the advice above was taken.
hand_over_to_worker() {
  [[ -O ${RUN_DIR:-} ]] || return 0
  find "$RUN_DIR" "$WEBUI_DIR" -xdev -user root -exec chown -h worker:worker -- {} +
}

if ((EUID)); then
  exec "${start[@]}"
fi
reason=$(reason_to_stay_root)
if [[ -n $reason ]]; then
  echo "entrypoint.sh: stays root, because $reason" >&2
  exec "${start[@]}"
fi
hand_over_to_worker
HOME=/home/worker exec setpriv --reuid=worker --regid=worker --init-groups -- "${start[@]}"
