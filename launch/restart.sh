#!/usr/bin/env bash
# Runs a command again while it was interrupted: exit code 75 (a checkpoint was saved) and death by a signal (above 128).
#
# usage: launch/restart.sh [options] -- COMMAND...
#
#   --limit=N        restarts within --window; more, and the last exit code is handed on; default 5
#   --window=SECONDS default 3600
#   --delay=SECONDS  before a restart; default 10
#   --also=CODES     further exit codes to restart on, such as 1,24: never 0 or 2
#   --mistake=CODE   an exit code that means what 2 means, which is handed on for it
#   --signal=NAME    how the command is told to stop; default TERM
#   --dry-run        prints the command
#
# 0 (done), 2 (a mistake of the user) and other codes end it. So does being told to stop: SIGTERM, SIGINT and SIGHUP reach the command as
# --signal, it has the time it needs for its checkpoint, and its exit code is handed on.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

limit=5 window=3600 delay=10 also="" signal=TERM mistake=2 told="" passed="" ended=""

while (($#)); do
  case $1 in
    --) shift && command=("$@") && break ;;
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --limit=*) limit=${1#*=} ;;
    --window=*) window=${1#*=} ;;
    --delay=*) delay=${1#*=} ;;
    --also=*) also=${1#*=} ;;
    --mistake=*) mistake=${1#*=} ;;
    --signal=*) signal=${1#*=} ;;
    *) die "'$1' is not understood; the command stands behind --, see ${0##*/} --help" ;;
  esac
  shift
done
number --limit "$limit" && number --window "$window" && number --mistake "$mistake"
[[ $delay =~ ^[0-9]+([.][0-9]+)?$ ]] || die "--delay must be seconds, got '$delay'"
[[ -z $also || $also =~ ^[0-9]+(,[0-9]+)*$ ]] || die "--also must be exit codes such as 1,24, got '$also'"
[[ ,$also, != *,0,* && ,$also, != *,2,* ]] || die "--also must not name 0 (done) or 2 (a mistake of the user), got '$also'"
[[ $signal =~ ^(TERM|INT|USR1|USR2)$ ]] || die "--signal must be TERM, INT, USR1 or USR2, got '$signal'"
((${#command[@]})) || die "the command is missing; write it behind --"
if [[ -n $dry_run ]]; then
  execute "${command[@]}"
  exit 0
fi

stop() {
  told=1 woken=1
  [[ -z $child ]] || pass_on
}
pass_on() {
  passed=1
  kill -s "$signal" "$child" 2>/dev/null || true
}
trap stop TERM INT HUP

# Told to stop before there was a process to tell: that is done here.
finish() {
  [[ -z $told || -n $passed ]] || pass_on
  await
}

restarts=()
while :; do
  [[ -z $told ]] || exit "${ended:-143}"
  "${command[@]}" &
  child=$!
  finish
  ((code != mistake)) || exit 2
  [[ -z $told ]] || exit "$code"
  ((code == 75 || code > 128)) || [[ ,$also, == *,$code,* ]] || exit "$code"
  now=$(date +%s) recent=()
  for moment in "${restarts[@]}"; do
    ((now - moment >= window)) || recent+=("$moment")
  done
  restarts=("${recent[@]}" "$now")
  if ((${#restarts[@]} > limit)); then
    say "exit code $code; not restarted, since that was done $limit times within $window s"
    exit "$code"
  fi
  say "exit code $code; restart ${#restarts[@]} of $limit within $window s, in $delay s"
  ended=$code
  sleep "$delay" &
  child=$!
  finish
done
