#!/usr/bin/env bash
# A run on Cloud TPU VMs, by queued resources: from a request for a slice to a finished run, through preemptions.
#
# usage: launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [options] [-- jaxdrl run --config=FILE --workdir=/shared/DIR ...]
#
# actions
#   create  requests the slice and waits until it is there
#   setup   copies this checkout (what is committed) to every worker and installs it
#   run     starts the command behind -- on every worker, where it is restarted when it is interrupted, and watches it: a preempted slice
#           is requested, set up and started again. Workers go on when this shell ends; `resume` watches again
#   resume  does what is missing to have the command running, from any state: create, setup, run, watch
#   status  the state of the slice and of the run on every worker
#   log     what worker 0 prints
#   stop    saves a checkpoint and ends the run; the slice stays, and costs
#   delete  deletes the slice
#
# options
#   --name=NAME  --zone=ZONE  --project=PROJECT      the project is gcloud's where it is not given
#   --accelerator-type=TYPE     such as v6e-64, v5p-128, v5litepod-16, v4-32; for create, run and resume
#   --runtime-version=VERSION   default: the one for that type
#   --slices=N                  several slices, joined over the data centre's network; default 1
#   --spot | --reserved         cheap and preempted at any time | out of a reservation; default: on demand
#   --valid-until=DURATION      how long the request may wait, such as 6h; default: for ever
#   --create-flag=FLAG --ssh-flag=FLAG   further flags of gcloud, may be repeated: --ssh-flag=--tunnel-through-iap
#   --env=NAME=VALUE            for the command, may be repeated; it is readable on the workers: no secrets
#   --nfs=HOST:/SHARE           mounted by setup on every worker as /shared, where workdirs can be: Filestore, or any NFS server
#   --extra=NAMES               extras of the package to install besides tpu, such as tfds
#   --restarts=N                of the command on a worker, within an hour; default 5
#   --recreations=N             of the slice after a preemption; default 50
#   --poll=SECONDS              between two looks of the watch; default 60
#   --delete-after              deletes the slice when the run has ended, in whatever way
#   --dry-run                   prints every command (for resume: as after a preemption)
#
# Exit code: that of the run. https://cloud.google.com/tpu/docs/queued-resources explains the states of a request.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

action=${1:-} name="" zone="" project="" accelerator_type="" runtime_version="" slices=1 tier="" valid_until="" extra="" nfs=""
restarts=5 recreations=50 poll=60 delete_after="" create_flags=() ssh_flags=() environment=()
detached="\$HOME/jaxdrl/launch/detached.sh" deleted="" failures=0
(($# == 0)) || shift
while (($#)); do
  case $1 in
    --) shift && command=("$@") && break ;;
    --help | -h) action=--help ;;
    --dry-run) dry_run=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --accelerator-type=*) accelerator_type=${1#*=} ;;
    --runtime-version=*) runtime_version=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --spot | --reserved) [[ -z $tier || $tier == "$1" ]] || die "choose --spot or --reserved" && tier=$1 ;;
    --valid-until=*) valid_until=${1#*=} ;;
    --create-flag=*) create_flags+=("${1#*=}") ;;
    --ssh-flag=*) ssh_flags+=("${1#*=}") ;;
    --env=*) environment+=("${1#*=}") ;;
    --nfs=*) nfs=${1#*=} ;;
    --extra=*) extra=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --recreations=*) recreations=${1#*=} ;;
    --poll=*) poll=${1#*=} ;;
    --delete-after) delete_after=1 ;;
    *) die "'$1' is not understood; see ${0##*/} --help" ;;
  esac
  shift
done

check() {
  required name zone
  resource --name "$name"
  number --slices "$slices" && number --restarts "$restarts" && number --recreations "$recreations" && number --poll "$poll"
  ((slices >= 1)) || die "--slices must be at least 1"
  [[ -z $extra || $extra =~ ^[a-z]+(,[a-z]+)*$ ]] || die "--extra must be names such as tfds,tensorboard, got '$extra'"
  [[ -z $nfs || $nfs =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*$ ]] || die "--nfs must be HOST:/SHARE, got '$nfs'"
  local pair
  for pair in "${environment[@]}"; do
    [[ $pair =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "--env must be NAME=VALUE, got '$pair'"
  done
  [[ $action != create && $action != run && $action != resume ]] || check_type
  [[ $action != run && $action != resume ]] || { join_run && shared_workdir; }
  needs gcloud "see https://cloud.google.com/sdk/docs/install"
}

# https://cloud.google.com/tpu/docs/runtimes: the images for JAX.
check_type() {
  required accelerator_type
  local found
  case $accelerator_type in
    v6e-*) found=v2-alpha-tpuv6e ;;
    v5p-*) found=v2-alpha-tpuv5 ;;
    v5litepod-*) found=v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) found=tpu-ubuntu2204-base ;;
    tpu7x-*) die "--accelerator-type=$accelerator_type is to be had through GKE only; see launch/xpk.sh" ;;
    *) found="" ;;
  esac
  runtime_version=${runtime_version:-$found}
  [[ -n $runtime_version ]] || die "--runtime-version is missing: no default is known for --accelerator-type=$accelerator_type"
}

# gcloud compute tpus GROUP VERB ..., where the slice is.
cloud() { execute gcloud compute tpus "$@" --zone="$zone" ${project:+"--project=$project"} --quiet 3>&-; }

# A command on every worker of every slice, or on one of the first slice: on_workers WORKER COMMAND.
on_workers() {
  local node=all
  [[ $1 == all ]] || node=0
  cloud queued-resources ssh "$name" --node="$node" --worker="$1" --command="$2" "${ssh_flags[@]}"
}

# Functions that take several steps stop at the first that fails by themselves: `set -e` does not hold where their callers look at the result.
request() {
  local nodes=("--node-id=$name")
  ((slices == 1)) || nodes=("--node-count=$slices" "--node-prefix=$name")
  cloud queued-resources create "$name" "${nodes[@]}" --accelerator-type="$accelerator_type" \
    --runtime-version="$runtime_version" ${tier:+"$tier"} ${valid_until:+"--valid-until-duration=$valid_until"} "${create_flags[@]}"
}

discard() { cloud queued-resources delete "$name" --force; }

# Prints the request's state; ABSENT where there is none, UNKNOWN where nobody says. In a dry run the argument is the answer.
slice_state() {
  local answer
  if [[ -n $dry_run ]]; then
    cloud queued-resources describe "$name" '--format=value(state.state)' >&3
    echo "$1"
  elif answer=$(cloud queued-resources describe "$name" '--format=value(state.state)' 2>&1); then
    grep -xE '[A-Z_]+' <<<"$answer" | tail -n 1
  elif grep -qiE 'NOT_FOUND|was not found' <<<"$answer"; then
    echo ABSENT
  else
    say "the state of $name is not known: $(tail -n 1 <<<"$answer")"
    echo UNKNOWN
  fi
}

wait_until_active() {
  local state before=""
  while :; do
    state=$(slice_state ACTIVE)
    [[ $state == "$before" ]] || say "the request $name is $state"
    before=$state
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED)
        cloud queued-resources describe "$name" '--format=yaml(state)' >&2 || true
        say "the request was not granted: look at quota, --valid-until and what $zone has"
        return 1
        ;;
      ABSENT) say "there is no request $name in $zone" && return 1 ;;
    esac
    sleep "$poll"
  done
}

setup() {
  local folder=/tmp extras="tpu${extra:+,$extra}"
  [[ -n $dry_run ]] || folder=$(mktemp -d)
  execute git -C "${here%/*}" archive --format=tar.gz --output="$folder/jaxdrl.tar.gz" HEAD &&
    cloud queued-resources scp "$folder/jaxdrl.tar.gz" "$name:jaxdrl.tar.gz" --node=all --worker=all "${ssh_flags[@]}" || return 1
  [[ -n $dry_run ]] || rm -rf "$folder"
  [[ -z $nfs ]] || on_workers all "$(mounting)" || return 1
  # The images have Python 3.10; uv brings its own. Files of an earlier checkout must not stay beside the new ones.
  on_workers all "if $detached status 2>/dev/null | grep -qx running; then echo 'a run is under way; stop it first' >&2; exit 1; fi; \
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet --upgrade uv && \
rm -rf ~/jaxdrl && mkdir ~/jaxdrl && tar -xzf ~/jaxdrl.tar.gz -C ~/jaxdrl && cd ~/jaxdrl && \
python3 -m uv venv --quiet --clear --python=3.11 ~/jaxdrl-env && \
python3 -m uv pip install --quiet --python=\$HOME/jaxdrl-env/bin/python -e '.[$extras]' -c constraints.txt"
}

# fstab, since a worker may be started again. A new share belongs to root alone.
mounting() {
  echo "mountpoint --quiet /shared || { sudo apt-get install --yes --quiet nfs-common && sudo mkdir -p /shared && \
echo '$nfs /shared nfs defaults,_netdev 0 0' | sudo tee -a /etc/fstab && sudo mount /shared && sudo chmod a+rwx /shared; }"
}

# 1, too, is restarted: a worker whose peer is gone may see that as an error of its own.
start() {
  local variables=""
  ((${#environment[@]} == 0)) || variables="$(quoted "${environment[@]}") "
  on_workers all "cd ~/jaxdrl && env PATH=\$HOME/jaxdrl-env/bin:\$PATH ${variables}\
launch/detached.sh start --limit=$restarts --delay=15 --also=1 -- $(quoted "${command[@]}")"
}

# What the workers say together; with the lowest exit code that is not 0, where there is one.
run_status() {
  local lines code
  lines=$(on_workers all "$detached status 2>/dev/null || echo none" 2>/dev/null | grep -xE 'running|lost|none|stopped|exited [0-9]+') || true
  code=$(sed -n 's/^exited //p' <<<"$lines" | sort -n | grep -vxm 1 0) || true
  if [[ -z $lines ]]; then
    echo unreachable
  elif grep -qxE 'lost|none' <<<"$lines"; then
    echo idle
  elif grep -qx running <<<"$lines"; then
    echo "${code:+failing }${code:-running}"
  elif grep -qx stopped <<<"$lines"; then
    echo stopped
  else
    echo "${code:+failed }${code:-done}"
  fi
}

# Spot slices of some types are gone although their request says ACTIVE.
nodes_gone() {
  cloud tpu-vm list --filter="name~/$name(-[0-9]+)?\$" '--format=value(state)' 2>/dev/null | grep -qE 'PREEMPTED|TERMINATED'
}

recreate() {
  recreations=$((recreations - 1))
  if ((recreations < 0)); then
    say "the slice was lost too often (--recreations)"
    exit 1
  fi
  say "the slice is gone; requesting another"
  [[ -n $deleted ]] || discard || return 1
  deleted=1
  request || return 1
  deleted=""
  wait_until_active && setup && start
}

# What went wrong once may have to do with a machine that was going; what goes wrong again and again has not.
try_again() {
  failures=$((failures + 1))
  if ((failures >= 5)); then
    say "that failed $failures times in a row; the watch ends, what is there stays, and costs"
    exit 1
  fi
  say "that failed; trying again"
}

# Ends with the run's exit code.
finish() {
  if [[ -n $delete_after ]]; then
    discard
  else
    say "the slice $name is still there, and costs; delete it when it is not needed"
  fi
  exit "$1"
}

# Ends with the run's exit code where the workers say that it has ended. Some answers count only when `before` was the same.
look() {
  local status code
  status=$(run_status)
  code=${status#* }
  case $status in
    running) failures=0 ;;
    done) say "the run is done" && finish 0 ;;
    stopped) say "the run was stopped; resume goes on with it" && finish 75 ;;
    failed\ *)
      # A machine that is shut down ends a run with 75 or, before it could save, 143; if it was preempted the request says so a moment later.
      if ((code < 128 && code != 75)); then
        say "the run ended with exit code $code; see the log" && finish "$code"
      elif [[ $before == "$status" && ($code == 75 || $code == 143) ]]; then
        say "the run was interrupted; starting it again"
        start || try_again
      elif [[ $before == "$status" ]]; then
        say "the run ended with exit code $code, after all restarts; see the log" && finish "$code"
      fi
      ;;
    failing\ *)
      # The others end a moment later, or never.
      if [[ $before == "$status" ]]; then
        say "a worker ended with exit code $code; stopping the others"
        on_workers all "$detached stop" || true
        finish "$code"
      fi
      ;;
    idle)
      say "not all workers have the run; starting it anew"
      if ! { on_workers all "$detached stop 2>/dev/null || true" && setup && start; }; then try_again; fi
      ;;
    unreachable) ! nodes_gone || recreate || try_again ;;
  esac
  before=$status
}

watch_run() {
  if [[ -n $dry_run ]]; then
    execute sleep "$poll"
    slice_state ACTIVE >/dev/null
    on_workers all "$detached status 2>/dev/null || echo none"
    [[ -z $delete_after ]] || finish 0
    return
  fi
  local state before=""
  say "looking every $poll s; Ctrl-C ends that, not the run"
  while :; do
    sleep "$poll"
    state=$(slice_state ACTIVE)
    [[ -z $deleted || $state != ABSENT ]] || state=SUSPENDED
    case $state in
      ACTIVE) look ;;
      SUSPENDING | SUSPENDED | FAILED) recreate || try_again ;;
      # Somebody has deleted it: it is not for us to pay for another.
      DELETING | ABSENT) say "the slice was deleted" && exit 1 ;;
    esac
  done
}

resume() {
  local state
  state=$(slice_state SUSPENDED)
  case $state in
    UNKNOWN) exit 1 ;;
    ABSENT) request ;;
    SUSPENDING | SUSPENDED | FAILED) discard && request ;;
  esac
  wait_until_active
  if [[ -z $dry_run && $(run_status) == running ]]; then
    say "the run is under way"
  else
    setup
    start
  fi
  watch_run
}

exec 3>&1
case $action in
  create | setup | run | resume | status | log | stop | delete) check ;;
  --help | -h) usage && exit 0 ;;
  *) die "'$action' is no action; choose create, setup, run, resume, status, log, stop or delete" ;;
esac
case $action in
  create)
    request
    wait_until_active
    ;;
  run)
    start
    watch_run
    ;;
  status)
    cloud queued-resources describe "$name" '--format=value(state.state)'
    on_workers all "$detached status"
    ;;
  setup | resume) "$action" ;;
  log) on_workers 0 "$detached log" ;;
  stop) on_workers all "$detached stop" ;;
  delete) discard ;;
esac
