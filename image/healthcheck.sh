#!/usr/bin/env bash
# Docker's HEALTHCHECK: the engine that runs is the one that has made a picture, and it answers.
# RUN_DIR holds what start.sh (`engine`) and handler.py (`engine.ready`) say of it.
set -euo pipefail

unhealthy() {
  echo "$*"
  exit 1
}

if [[ ${ENGINE:-} != external ]]; then
  { read -r state pid <"$RUN_DIR/engine"; } 2>/dev/null ||
    unhealthy "start.sh has not started an engine yet"
  [[ $state == running ]] || unhealthy "the engine is not running: $state"
  [[ $(cat "$RUN_DIR/engine.ready" 2>&1) == "$pid" ]] || unhealthy "the engine is not ready yet"
fi
url=${WEBUI_URL:-http://127.0.0.1:3000}
url=${url%"${url##*[!/]}"}/sdapi/v1/progress  # without slashes at its end, as worker/config/settings.py
curl --silent --show-error --fail --max-time 5 --output /dev/null \
  "$url?skip_current_image=true" || unhealthy "the engine does not answer at $url"
