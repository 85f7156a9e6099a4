#!/usr/bin/env bash
# Keeps one command running on this machine after the shell that started it is gone: what tpu_vm.sh calls on every worker.
#
# usage: launch/detached.sh start [options of restart.sh] -- COMMAND...
#        launch/detached.sh status|stop|log
#
#   start   starts COMMAND under restart.sh, unless one runs already
#   status  one line: running, exited CODE, stopped (by stop), lost (the machine was started anew), or none
#   stop    SIGTERM, waits until the checkpoint is saved and the command has ended; it is not restarted
#   log     prints what the command has written, and follows it while it runs
#
#   --limit=N --window=SECONDS --delay=SECONDS --also=CODES   as restart.sh has them
#   --folder=DIR  where pid, log and exit code are; default ~/jaxdrl-run
#   --dry-run     prints the command that would be started

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

action=${1:-} folder=$HOME/jaxdrl-run options=()
(($# == 0)) || shift
while (($#)); do
  case $1 in
    --) shift && command=("$@") && break ;;
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --folder=*) folder=${1#*=} ;;
    --limit=* | --window=* | --delay=* | --also=*) options+=("$1") ;;
    *) die "'$1' is not understood; see ${0##*/} --help" ;;
  esac
  shift
done

# The number alone does not say it: after a restart of the machine another process may have it.
running() { [[ -s $folder/pid ]] && grep -aqs restart.sh "/proc/$(<"$folder/pid")/cmdline"; }

status() {
  if running; then
    echo running
  elif [[ -e $folder/stopped ]]; then
    echo stopped
  elif [[ -s $folder/exit_code ]]; then
    echo "exited $(<"$folder/exit_code")"
  elif [[ -e $folder/pid ]]; then
    echo lost
  else
    echo none
  fi
}

start() {
  ((${#command[@]})) || die "the command is missing; write it behind --"
  # Checks options before anything is in the background, where nobody reads an error.
  "$here/restart.sh" --dry-run "${options[@]}" -- "${command[@]}" >/dev/null
  if [[ -n $dry_run ]]; then
    execute "$here/restart.sh" "${options[@]}" -- "${command[@]}"
    return
  fi
  if running; then
    say "runs already, as process $(<"$folder/pid"); its log is $folder/log"
    return
  fi
  mkdir -p "$folder"
  rm -f "$folder/pid" "$folder/exit_code" "$folder/stopped"
  # A session of its own: the end of an ssh connection ends what belongs to its session.
  # shellcheck disable=SC2016  # expanded by the inner shell
  setsid bash -c 'folder=$1; shift
    trap "" HUP; trap : TERM INT
    "$@" & child=$!; echo "$child" >"$folder/pid"
    while :; do code=0; wait "$child" || code=$?; kill -0 "$child" 2>/dev/null || break; done
    echo "$code" >"$folder/exit_code"' \
    detached "$folder" "$here/restart.sh" "${options[@]}" -- "${command[@]}" </dev/null >>"$folder/log" 2>&1 &
  for _ in {1..50}; do
    [[ ! -s $folder/pid ]] || break
    sleep 0.1
  done
  if [[ ! -s $folder/pid ]]; then
    say "the command did not start; see $folder/log"
    exit 1
  fi
  say "started, as process $(<"$folder/pid"); its log is $folder/log"
}

# A machine that is shut down ends a run with the same exit code: the mark says that this was wanted.
stop() {
  if running; then
    touch "$folder/stopped"
    kill -TERM "$(<"$folder/pid")"
    while running; do sleep 0.2; done
  fi
  status
}

log() {
  [[ -e $folder/log ]] || die "there is no log in $folder; nothing was started"
  if running; then tail -n +1 --pid="$(<"$folder/pid")" -f "$folder/log"; else cat "$folder/log"; fi
}

case $action in
  start | stop | status | log) "$action" ;;
  --help | -h) usage ;;
  *) die "'$action' is no command; choose start, status, stop or log" ;;
esac
