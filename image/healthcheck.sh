#!/usr/bin/env bash
# Docker's HEALTHCHECK: the running engine is the one that made a first picture, and it answers.
#
# start.sh and handler.py leave what is needed in RUN_DIR, so that no Python has to start every 30 s.
# The files are read, never executed: the check runs as root, and the worker's user can write them.
set -euo pipefail

# usage: unhealthy REASON; Docker shows it in `docker inspect`.
unhealthy() {
  echo "$*"
  exit 1
}

{ read -r engine url <"$RUN_DIR/engine.address"; } 2>/dev/null ||
  unhealthy "start.sh has not started an engine yet"
if [[ $engine != external ]]; then
  { read -r state pid <"$RUN_DIR/engine"; } 2>/dev/null ||
    unhealthy "start.sh has not started an engine yet"
  [[ $state == running ]] || unhealthy "the engine is not running: $state"
  [[ $(cat "$RUN_DIR/engine.ready" 2>&1) == "$pid" ]] || unhealthy "the engine is not ready yet"
fi
# Docker can set http_proxy in every container, and a proxy would look for the engine on itself.
curl --silent --show-error --fail --max-time 5 --output /dev/null --proto '=http,https' \
  --noproxy '*' --url "$url/sdapi/v1/progress?skip_current_image=true" ||
  unhealthy "the engine does not answer at $url/sdapi/v1/progress"
