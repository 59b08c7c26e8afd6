#!/usr/bin/env bash
# Starts the engine (A1111 or the embedded one) and the handler, and supervises both.
#
# usage: start.sh [JOB.json | arguments of handler.py]
#        start.sh bridge [--endpoint ID ...]    no engine: the pictures are drawn by a RunPod endpoint
#
# Exit status: the handler's, or
#   2    an argument is not understood; nothing was started
#   69   the engine never became ready
#   70   the engine's restarts are used up
#   71   this machine cannot run the engine, such as a GPU that cannot be used; or a port is taken
#   78   bad configuration; nothing was started
#   143  a signal came before anything was started
#
# The RunPod SDK installs its own handler for SIGTERM, so the process that runs it cannot be the
# supervisor. Signals only set a flag; the loop in `supervise` acts. docs/internals/startup-script.md
# explains why. If this script is killed, the handler kills the engine and ends by itself.
set -Eeuo pipefail

readonly EXIT_ENGINE_NOT_READY=69 EXIT_RESTARTS_USED_UP=70 EXIT_UNFIT_MACHINE=71
readonly EXIT_BAD_CONFIGURATION=78 EXIT_STOPPED_EARLY=143
# In milliseconds: bash's SECONDS has whole seconds, so a difference of 1 can be almost 0 s.
readonly ENGINE_STOP_MS=5000     # from TERM to KILL; A1111 reacts to TERM only when it is idle
readonly HANDLER_REPORT_MS=5000  # for the handler to report that the engine is gone
readonly KILL_MS=5000            # from KILL until a process is gone; the GPU driver can be slow
readonly KEEPER_MS=1000          # for the engine's last lines to reach the log

HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# Standard streams that were closed at the start become the null device: Python would have no
# sys.stdout. bash has given the first closed one to this script's own file, which it only reads.
open_standard_streams() {
  [[ -d /dev/fd ]] || return 0
  is_open 0 || exec 0</dev/null
  is_open 1 || exec 1>/dev/null
  is_open 2 || exec 2>/dev/null
}

# usage: is_open DESCRIPTOR
is_open() { [[ -e /dev/fd/$1 && ! /dev/fd/$1 -ef ${BASH_SOURCE[0]} ]]; }

# A failed write (to a closed terminal) must not end the script while it stops the processes. RunPod
# cuts messages at 4096 characters: a long one loses its middle, as in worker/log.py.
log() {
  local text=$*
  if ((${#text} > 4000)); then
    text="${text:0:2600} [... $((${#text} - 3900)) characters left out ...] ${text: -1300}"
  fi
  TZ=UTC printf -v text '%(%Y-%m-%dT%H:%M:%S)TZ start.sh: %s' -1 "$text"
  [[ -z ${kept_lines:-} ]] || keep_line "$text"
  printf '%s\n' "$text" >&2 || true
}

# Keeps this script's last 200 to 400 lines in RUN_DIR, for handler.py --diagnose.
# usage: keep_line LINE; counts in `kept_lines`, which is set when RUN_DIR is prepared
keep_line() {
  local file=$RUN_DIR/log.start
  [[ ! -e $file || -f $file ]] || return 0  # opening a pipe could wait for ever
  {
    ((kept_lines++ % 200)) || mv -f "$file" "$file.old" || true
    (umask 077 && printf '%s\n' "$1" >>"$file") || true
  } 2>/dev/null
}

# usage: fail STATUS MESSAGE
fail() {
  log "$2"
  exit "$1"
}

# Before anything was started, a signal only prevents the start.
stop_if_requested() {
  [[ -z $stop_requested ]] || fail "$EXIT_STOPPED_EARLY" "$stop_requested received: nothing was started"
}

# A program of the start has failed; Ctrl-C in a terminal ends it, too. usage: end_early STATUS
end_early() {
  stop_if_requested
  exit "$1"
}

# A user of a container may be only a number, such as with `docker run --user 1234`: the system knows
# no name for it. torch asks for one when it is imported, and other libraries ask for the home.
name_user() {
  [[ -n ${USER:-} ]] || USER=$(id -un 2>/dev/null) || USER=$EUID
  [[ -n ${HOME:-} ]] || unset HOME
  HOME=${HOME:-~}  # bash takes / where the system knows no home, as Docker does
  export USER HOME
}

# Sets PYTHON, the worker's Python, unless it is set: the project's environment, or any python3.
find_python() {
  if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$HERE/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
  fi
}

# Sets `arguments` for the handler: worker/service/arguments.py reads them before anything boots.
# usage: read_arguments "$@"
read_arguments() {
  local given
  arguments=()
  (($#)) || return 0
  if [[ $1 == bridge ]]; then
    cd "$HERE"
    exec "$PYTHON" -m gateway "$@"
  fi
  for given in "$@"; do
    case $given in
      # They print something and start nothing.
      --help | -h | --schema | --diagnose | --diagnose=*) exec "$PYTHON" "$HERE/handler.py" "$@" ;;
    esac
  done
  # In the caller's folder, where a job's file is.
  given=$(PYTHONPATH=$HERE${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" "$HERE/worker/service/arguments.py" \
    "$@") || end_early "$?"  # 2 or 71; it has printed the reason
  eval "arguments=($given)"
}

# Sets ENGINE, WEBUI_DIR, RUN_DIR, ENGINE_FLAGS (an array), ...: worker/config/settings.py is the one
# place that reads and checks the environment. worker/config/preflight.py checks the machine, and
# sets ENGINE_DEVICE, ENGINE_GPU, ENGINE_DRIVER, ENGINE_ATTENTION and ENGINE_ENVIRONMENT (an array).
# Then the models are linked for the engine. One program does all of it: the engine waits for it.
# Which folder can be written is tried there, once: SUPERVISOR_PID tells the other programs.
prepare_start() {
  local settings status=0
  settings=$(cd "$HERE" && "$PYTHON" model_manager.py prepare-start) || status=$?
  # 78, 71 or Ctrl-C, or a failure before the settings were known; Python has logged the reason.
  [[ -n $settings && $status != @(71|78|130) ]] || end_early "$status"
  eval "$settings"
  # Also if the program was killed, such as for want of memory: then it has logged nothing.
  ((status == 0)) || fail "$EXIT_BAD_CONFIGURATION" "WEBUI_DIR=${WEBUI_DIR-} cannot be prepared for\
 the engine (status $status): the lines above name what to correct"
  export MODELS_DIR READ_ONLY_MODELS_DIR SUPERVISOR_PID=$$
}

# Without an argument, and without a queue of RunPod, jobs come over HTTP if PORT is set.
# usage: serve_on_port "$@"
serve_on_port() {
  (($#)) || [[ -z $SERVED_PORT ]] ||
    read_arguments --rp_serve_api --rp_api_host 0.0.0.0 --rp_api_port "$SERVED_PORT"
}

# Sets `now`, in milliseconds.
read_clock() {
  now=${EPOCHREALTIME//[.,]/}
  now=${now%???}
}

prepare_run_dir() {
  (umask 077 && mkdir -p "$RUN_DIR") && [[ -O $RUN_DIR && -w $RUN_DIR ]] ||
    fail "$EXIT_BAD_CONFIGURATION" "RUN_DIR=$RUN_DIR must be a folder that user $EUID\
 owns and can write: set it to another path"
  rm -f "$RUN_DIR"/engine "$RUN_DIR"/engine.{address,ready,restart,checkpoint}
  # For image/healthcheck.sh. WEBUI_URL may have a user and a password in it.
  (umask 077 && printf '%s %s\n' "$ENGINE" "$WEBUI_URL" >"$RUN_DIR/engine.address")
  kept_lines=0
}

# Writes the file that the handler reads (worker/webui/supervisor.py).
# usage: write_state STATE PID_OR_STATUS [CAUSE]
write_state() {
  local new=$RUN_DIR/.engine.new
  { (umask 077 && mkdir -p "$RUN_DIR") && printf '%s\n' "$*" >"$new" && mv -f "$new" "$RUN_DIR/engine"; } \
    2>/dev/null && return
  # The old state would be wrong: without the file the handler asks only the engine itself.
  rm -f "$RUN_DIR/engine" 2>/dev/null || true
  log "RUN_DIR=$RUN_DIR cannot be written: the handler is not told that the engine is $1"
}

# Sets `line`: the first line of a file in RUN_DIR, at most 500 characters; empty if there is none.
# usage: read_line NAME
read_line() {
  line=''
  # Not of a pipe: reading one could wait for ever.
  [[ ! -f $RUN_DIR/$1 ]] || read -r -n 500 line 2>/dev/null <"$RUN_DIR/$1" || true
}

# --- the engine ---------------------------------------------------------------------------------

# Looks for tcmalloc beside the other work of the start: `ldconfig -p` takes up to 0.1 s.
# Sets `tcmalloc_found`, from which find_tcmalloc reads.
look_for_tcmalloc() {
  exec {tcmalloc_found}< <(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null |
    awk '$NF ~ /libtcmalloc\.so/ { full = $NF } $NF ~ /libtcmalloc_minimal\.so/ { minimal = $NF }
      END { print full ? full : minimal }')
}

# Sets `preload`. Without tcmalloc, A1111's memory grows with each checkpoint switch.
find_tcmalloc() {
  if [[ -n $tcmalloc_found ]]; then  # else it is known since an earlier start of the engine
    read -r tcmalloc <&"$tcmalloc_found" || true  # no ldconfig, no tcmalloc
    exec {tcmalloc_found}<&-
    tcmalloc_found=''
  fi
  preload=()
  if [[ -n $tcmalloc ]]; then
    preload=("LD_PRELOAD=$tcmalloc")
  else
    log "no libtcmalloc or libtcmalloc_minimal found: the engine's memory may grow;\
 install Debian's libtcmalloc-minimal4"
  fi
}

# Sets `compute`: A1111's flags for its device and for the attention that preflight has chosen. Those
# of the operator stand behind them, so they win.
choose_compute() {
  compute=()
  # A CPU computes in single precision; without these flags the first picture would fail.
  [[ $ENGINE_DEVICE != cpu ]] || compute=(--use-cpu all --precision full --no-half)
  case $ENGINE_ATTENTION in
    xformers) compute+=(--xformers) ;;
    sdp) compute+=(--opt-sdp-attention) ;;
  esac  # else it is a flag in WEBUI_ARGS
}

# Sets `command`, `folder` and `environment`.
engine_command() {
  preload=()
  # A progress bar redraws itself ten times a second, and all of that is one line of the log.
  environment=("${ENGINE_ENVIRONMENT[@]}" HF_HUB_OFFLINE=1 TQDM_MININTERVAL=20)
  if [[ $ENGINE == embedded ]]; then
    folder=$HERE
    command=("$PYTHON" -m engine --device "$ENGINE_DEVICE" --host "$WEBUI_HOST" --port "$WEBUI_PORT"
      --data-dir "$WEBUI_DIR")
    # What a killed engine leaves there is removed. Without this folder, Python takes another one.
    environment+=("TMPDIR=$RUN_DIR/engine.tmp")
    return
  fi
  find_tcmalloc
  choose_compute
  # torch 2.6 and later refuse pickles that A1111's own check has already passed, such as embeddings.
  environment+=("${preload[@]}" TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1)
  folder=$WEBUI_DIR
  # --nowebui: with the UI there is a moment at boot when a request ends A1111. It would listen on
  # every address without --server-name, and download 4 GB without --no-download-sd-model if there
  # is no model.
  command=("$WEBUI_PYTHON" -u webui.py --api --nowebui --server-name "$WEBUI_HOST"
    --port "$WEBUI_PORT" "${compute[@]}" --no-download-sd-model --do-not-download-clip
    --skip-version-check --skip-python-version-check --skip-torch-cuda-test
    --disable-console-progressbars --no-prompt-history "${ENGINE_FLAGS[@]}")
}

# The engine's default must be a checkpoint that can be loaded: the handler has written the name of
# the one that made this engine's first picture.
name_default_checkpoint() {
  local line
  read_line engine.checkpoint
  [[ -n $line ]] || return 0
  (cd "$HERE" && "$PYTHON" -m worker.config.webui_config "$WEBUI_DIR" "$line") ||
    log "the default checkpoint could not be written into $WEBUI_DIR/config.json"
}

start_engine() {
  # ENGINE_FLAGS has the flags of both already, and A1111 would add those of its own variable again.
  local -a command compute environment preload unset=(-u COMMANDLINE_ARGS -u WEBUI_ARGS)
  local folder name output
  name_default_checkpoint
  engine_command
  [[ $ENGINE != embedded ]] || (umask 077 && mkdir -p "$RUN_DIR/engine.tmp") 2>/dev/null || true
  for name in "${HIDDEN_FROM_ENGINE[@]}"; do
    unset+=(-u "$name")
  done
  # It copies what the engine writes, keeps the end of it, and ends with the engine's last process.
  exec {output}> >(exec "$PYTHON" -I -S "$HERE/worker/kept_log.py" "$RUN_DIR/log.engine" >&2)
  keeper_pid=$!
  # If start.sh and the handler are killed together, nobody is left who could stop the engine: so the
  # kernel kills it with start.sh. If start.sh is gone before the kernel knows, no engine is started.
  if setpriv --pdeathsig KILL true 2>/dev/null; then
    # shellcheck disable=SC2016 # the inner bash expands it
    command=(setpriv --pdeathsig KILL bash -c '[[ $PPID != "$0" ]] || exec "$@"' $$ "${command[@]}")
  fi
  # setsid: a process group of its own, so that all of its processes can be killed.
  (cd "$folder" && exec env "${unset[@]}" "${environment[@]}" setsid "${command[@]}" \
    >&"$output" 2>&1 {output}>&-) &
  engine_pid=$!
  exec {output}>&-
  rm -f "$RUN_DIR/engine.restart" || true
  write_state running "$engine_pid"
  log "engine $ENGINE started (pid $engine_pid): device $ENGINE_DEVICE${ENGINE_GPU:+ ($ENGINE_GPU)},\
 attention $ENGINE_ATTENTION"
}

engine_was_ready() {
  local line
  read_line engine.ready
  # Without RUN_DIR nobody knows: MAX_ENGINE_RESTARTS is the limit then.
  [[ ! -d $RUN_DIR || $line == "$engine_pid" ]]
}

# usage: keeper_was_killed; true once
keeper_was_killed() {
  local status=0
  [[ -n $keeper_pid ]] && ! is_alive "$keeper_pid" || return 1
  wait "$keeper_pid" 2>/dev/null || status=$?
  keeper_pid=''
  ((status > 128))
}

# True if another restart is allowed: MAX_ENGINE_RESTARTS within ENGINE_RESTART_WINDOW.
# usage: may_restart CAUSE; sets `used_up`, the causes of the earlier restarts
may_restart() {
  local now restart
  local -a recent=()
  read_clock
  used_up=''
  for restart in "${restarts[@]}"; do
    if ((now - ${restart%% *} < ENGINE_RESTART_WINDOW_MS)); then
      recent+=("$restart")
      used_up+="${restart#* }, "
    fi
  done
  restarts=("${recent[@]}")
  ((${#restarts[@]} < MAX_ENGINE_RESTARTS)) || return 1
  restarts+=("$now $1")
}

# Call it when the old process is gone. usage: restart_engine STATUS CAUSE
restart_engine() {
  local used_up
  if ! may_restart "$2"; then
    give_up "$EXIT_RESTARTS_USED_UP" "$1" "no further restart: MAX_ENGINE_RESTARTS=\
$MAX_ENGINE_RESTARTS in $ENGINE_RESTART_WINDOW s are used up (${used_up}now $2)"
  fi
  start_engine
}

# Only while A1111 is stopped: if it ran, it would no longer find its models.
remove_cache() {
  rm -rf -- "${WEBUI_DIR:?}/cache" || log "$WEBUI_DIR/cache cannot be removed"
  log "removed the WebUI's cache folder"
}

# A damaged cache is the one cause of a failed start that can be repaired here: A1111 ends with
# status 1 then. Once: the repair is tried again only after an engine was ready.
# usage: may_repair STATUS
may_repair() {
  [[ $1 == 1 && $ENGINE == a1111 && -d $WEBUI_DIR/cache && -z $cache_was_removed ]]
}

engine_exited() {
  local status=$1
  kill_group "$engine_pid"
  remove_engine_files
  if [[ -n $stop_requested ]]; then
    engine_pid=''
    return
  fi
  if engine_was_ready; then
    cache_was_removed=''
    write_state restarting "$status"
    log "the engine ended with status $status"
    restart_engine "$status" "status $status"
  elif may_repair "$status"; then
    cache_was_removed=yes
    write_state restarting "$status"
    log "the engine ended with status 1 before it was ready; it is started once more without its\
 cache, which may be damaged"
    remove_cache
    start_engine
  elif [[ $status == "$EXIT_UNFIT_MACHINE" ]]; then
    give_up "$EXIT_UNFIT_MACHINE" "$status" "the engine cannot use the GPU, as its last line\
 explains: use another machine or repair its driver, or set DEVICE=cpu to compute on the CPU"
  else
    # An engine that could not boot once will not boot the next time.
    give_up "$EXIT_ENGINE_NOT_READY" "$status" "the engine ended with status $status before it was\
 ready, and is not restarted; its lines above show why"
  fi
}

# True if a requested restart does not count towards MAX_ENGINE_RESTARTS: not the engine failed, but
# a job or a file needs a fresh one. It is no endless loop: each such restart needs an engine that
# has made its first picture, and a job that has got its answer or a file that was replaced.
# usage: is_uncounted REASON
is_uncounted() {
  case $1 in
    bad-model | hung | out-of-memory | replaced-model) engine_was_ready ;;
    *) return 1 ;;
  esac
}

restart_on_request() {
  local line reason uncounted=''
  restart_requested=''
  [[ -n $engine_pid && -f $RUN_DIR/engine.restart ]] || return 0
  read_line engine.restart
  reason=$line
  log "the handler asks for a restart of the engine: $reason"
  if is_uncounted "$reason"; then
    uncounted=yes
  fi
  write_state restarting 0
  stop_engine "$ENGINE_STOP_MS"
  [[ -z $stop_requested ]] || return 0
  # The cache also holds the hashes of replaced files.
  if [[ $ENGINE == a1111 && $reason == @(damaged-cache|replaced-model) ]]; then
    remove_cache
  fi
  if [[ -n $uncounted ]]; then
    start_engine
  else
    restart_engine 0 "$reason"
  fi
}

# --- processes ----------------------------------------------------------------------------------

start_handler() {
  # The memory of a job's pictures goes back to the system at once. glibc would keep it: 28 to 41 MB.
  (cd "$HERE" && export RUN_DIR ENGINE_DEVICE ENGINE_GPU ENGINE_DRIVER ENGINE_ATTENTION &&
    export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-131072}" &&
    exec setsid "$PYTHON" handler.py "$@") &
  handler_pid=$!
}

is_alive() { kill -0 -- "$1" 2>/dev/null; }

# usage: await_end PID MILLISECONDS [COMMAND]; true if the process (-PID: the group) has ended by
# then. The command runs again and again meanwhile.
await_end() {
  local now until
  read_clock
  until=$((now + $2))
  while is_alive "$1"; do
    read_clock
    ((now < until)) || return 1
    ${3:-:}
    sleep 0.05
  done
}

# The port and the memory are free only when the whole group is gone. usage: kill_group PID
kill_group() {
  kill -KILL -- "-$1" 2>/dev/null || return 0
  await_end "$1" "$KILL_MS" || log "process $1 still exists $KILL_MS ms after KILL"
  # Only PID 1 can reap orphans: until it does, dead processes stay in the group.
  await_end "-$1" 500 || true
}

# TERM to the process, then KILL to the rest of its group.
# usage: stop_group PID MILLISECONDS [COMMAND], as await_end
stop_group() {
  kill -TERM "$1" 2>/dev/null || true
  await_end "$@" || log "process $1 did not stop within $2 ms of TERM and is killed"
  kill_group "$1"
}

# usage: stop_engine MILLISECONDS
stop_engine() {
  stop_group "$engine_pid" "$1"
  remove_engine_files
  engine_pid=''
}

# What the embedded engine cannot remove itself when it is killed; see read_file in loading.py.
remove_engine_files() { rm -rf -- "${RUN_DIR:?}/engine.tmp" || log "$RUN_DIR/engine.tmp cannot be removed"; }

# For the time in which the handler finishes its last job: no other engine is started for it. Without
# this state it would wait until it is killed, and the job's caller would get no answer.
report_lost_engine() {
  local line
  [[ $ENGINE != external ]] || return 0
  if [[ -n $engine_pid && -z $restart_requested ]] && is_alive "$engine_pid"; then
    return 0
  fi
  read_line engine
  [[ $line == failed* ]] || write_state failed 0 'this worker is stopping and starts no other engine'
}

# The handler stops first: to finish its job it needs the engine.
stop_all() {
  local half=$((SHUTDOWN_GRACE_MS / 2)) handler_status=0
  local for_engine=$((half < ENGINE_STOP_MS ? half : ENGINE_STOP_MS))
  # Further signals change nothing, and after many of them bash 5.2's `wait` returns the signal's
  # status instead of the process's.
  trap '' TERM INT HUP
  stop_group "$handler_pid" $((SHUTDOWN_GRACE_MS - for_engine)) report_lost_engine
  wait "$handler_pid" || handler_status=$?
  handler_pid=''
  if [[ -n $engine_pid ]]; then
    stop_engine "$for_engine"
  fi
  return "$handler_status"
}

# However this script ends: none of its processes goes on without it.
clean_up() {
  local pid
  for pid in $handler_pid $engine_pid; do
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
  [[ -z $keeper_pid ]] || await_end "$keeper_pid" "$KEEPER_MS" || true
  [[ -z $ticker ]] || { kill "$ticker" && wait "$ticker"; } 2>/dev/null || true
}

# If the engine has ended and is not restarted: waits until the handler has reported this as its
# job's error, then stops everything.
# usage: give_up EXIT_STATUS ENGINE_STATUS MESSAGE
give_up() {
  local cause=''
  [[ $1 != "$EXIT_RESTARTS_USED_UP" ]] || cause=$3  # else the status tells it
  write_state failed "$2" "$cause"
  log "$3"
  engine_pid=''
  await_end "$handler_pid" "$HANDLER_REPORT_MS" || true
  stop_all || true
  exit "$1"
}

supervise() {
  local ended status
  while true; do
    if [[ -n $stop_requested ]]; then
      log "$stop_requested received: stopping"
      status=0
      stop_all || status=$?
      exit "$status"
    fi
    if [[ -n ${END_WITH_PID:-} ]] && ! is_alive "$END_WITH_PID"; then
      log "process $END_WITH_PID, which has started this script, has ended: stopping"
      status=0
      stop_all || status=$?
      exit "$status"
    fi
    if [[ -n $restart_requested ]]; then
      restart_on_request
      continue
    fi
    # Without it each line that the engine writes is an error, and A1111 would fail its jobs.
    if [[ -n $engine_pid ]] && keeper_was_killed; then
      log "the program that keeps the engine's last lines was killed: so is the engine"
      kill -KILL -- "-$engine_pid" 2>/dev/null || true
    fi
    # A signal that arrives just before `wait` does not end it: the ticker does, within 1 s.
    if [[ -z $ticker ]] || ! is_alive "$ticker"; then
      sleep 1 &
      ticker=$!
    fi
    ended='' status=0
    # shellcheck disable=SC2086  # engine_pid is empty with ENGINE=external
    wait -n -p ended $handler_pid $engine_pid $ticker || status=$?
    # A signal, such as that of a log that nobody reads, can take the place of a process's end, which
    # bash does not tell again. `wait` would then return at once for ever.
    if [[ -z ${ended:-} || $ended == "$ticker" ]]; then
      ended=''
      if ! is_alive "$handler_pid"; then
        ended=$handler_pid
      elif [[ -n $engine_pid ]] && ! is_alive "$engine_pid"; then
        ended=$engine_pid
      fi
      [[ -z ${ended:-} ]] || { status=0 && wait "$ended" 2>/dev/null; } || status=$?
    fi
    case ${ended:-} in
      "$handler_pid")
        stop_all || true
        exit "$status"
        ;;
      "$engine_pid") [[ -z $engine_pid ]] || engine_exited "$status" ;;
    esac
  done
}

main() {
  stop_requested='' restart_requested='' engine_pid='' handler_pid='' keeper_pid='' ticker=''
  cache_was_removed='' tcmalloc='' tcmalloc_found=''
  restarts=()
  trap 'stop_requested=SIGTERM' TERM
  trap 'stop_requested=SIGINT' INT
  trap 'stop_requested=SIGHUP' HUP  # a closed terminal would leave the two programs running
  trap 'restart_requested=yes' USR1
  trap : PIPE  # nobody reads the log any more; not '', which the programs would inherit
  trap clean_up EXIT
  open_standard_streams
  name_user
  find_python
  read_arguments "$@"
  look_for_tcmalloc
  prepare_start
  [[ $ENGINE == a1111 ]] || exec {tcmalloc_found}<&-  # no other engine needs it
  serve_on_port "$@"
  prepare_run_dir
  stop_if_requested
  [[ $ENGINE == external ]] || start_engine
  start_handler "${arguments[@]}"
  supervise
}

# Tests source this file to call single functions.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  main "$@"
fi
