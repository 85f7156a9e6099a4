#!/usr/bin/env bash
# A run on GKE through XPK (https://github.com/AI-Hypercomputer/xpk, `pip install xpk`): the cluster, the workload, its restarts.
#
# usage: launch/xpk.sh ACTION --cluster=NAME --zone=ZONE [options] [-- jaxdrl run --config=configs/FILE --workdir=/shared/DIR ...]
#
# actions
#   cluster  creates the cluster with its slices
#   run      starts the workload
#   resume   deletes what is left of the workload and starts it again; the run goes on from its last checkpoint
#   list     the cluster's workloads and their states
#   log      what process 0 prints (kubectl; `gcloud container clusters get-credentials` first)
#   stop     deletes the workload: SIGTERM, and --grace seconds for the checkpoint
#   delete   deletes the cluster
#
# options
#   --cluster=NAME  --zone=ZONE  --project=PROJECT   the project is gcloud's where it is not given
#   --workload=NAME          default jaxdrl
#   --tpu-type=TYPE          such as v6e-64, v5p-128, v5litepod-16, tpu7x-64; for cluster and run
#   --device-type=TYPE       instead: GPUs, such as h100-mega-80gb-8, h200-141gb-8, b200-8
#   --slices=N               TPU slices; default 1
#   --nodes=N                machines with GPUs; default 1
#   --spot | --reservation=NAME | --on-demand | --flex   for cluster: one of them
#   --image=IMAGE            what launch/build.sh pushed; for run
#   --env=NAME=VALUE         may be repeated; readable in the cluster: no secrets
#   --priority=LEVEL         very-low, low, medium, high or very-high; default medium
#   --restarts=N             of all processes, in all; default 50
#   --grace=SECONDS          from SIGTERM to SIGKILL; default 120
#   --dry-run                prints every command
#
# A workload starts again when a process ends with 75, 1 (which a process may show when its peer is gone) or by a signal; 2, a mistake of the user, ends it.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=${1:-} cluster="" zone="" project="" workload=jaxdrl tpu_type="" device_type="" slices=1 nodes=1 capacity="" image="" priority=medium
restarts=50 grace=120 environment=()
(($# == 0)) || shift
while (($#)); do
  case $1 in
    --) shift && command=("$@") && break ;;
    --help | -h) action=--help ;;
    --dry-run) dry_run=1 ;;
    --cluster=*) cluster=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --workload=*) workload=${1#*=} ;;
    --tpu-type=*) tpu_type=${1#*=} ;;
    --device-type=*) device_type=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
    --spot | --on-demand | --flex | --reservation=?*)
      [[ -z $capacity || $capacity == "$1" ]] || die "choose one of $capacity and $1"
      capacity=$1
      ;;
    --image=*) image=${1#*=} ;;
    --env=*) environment+=("--env=${1#*=}") ;;
    --priority=*) priority=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    *) die "'$1' is not understood; see ${0##*/} --help" ;;
  esac
  shift
done

check() {
  required cluster zone
  resource --cluster "$cluster" && resource --workload "$workload"
  number --slices "$slices" && number --nodes "$nodes" && number --restarts "$restarts" && number --grace "$grace"
  ((slices >= 1 && nodes >= 1)) || die "--slices and --nodes must be at least 1"
  [[ $priority =~ ^(very-low|low|medium|high|very-high)$ ]] || die "--priority must be very-low, low, medium, high or very-high, got '$priority'"
  local pair
  for pair in "${environment[@]}"; do
    [[ $pair =~ ^--env=[A-Za-z_][A-Za-z0-9_]*= ]] || die "--env must be NAME=VALUE, got '${pair#--env=}'"
  done
  [[ -z $tpu_type || -z $device_type ]] || die "choose --tpu-type or --device-type"
  if [[ $action == cluster ]]; then
    [[ -n $tpu_type$device_type ]] || die "--tpu-type (or --device-type) is missing; see ${0##*/} --help"
    [[ -n $capacity ]] || die "--spot, --reservation=NAME, --on-demand or --flex is missing: how the machines are paid for"
  elif [[ $action == run || $action == resume ]]; then
    [[ -n $tpu_type$device_type ]] || die "--tpu-type (or --device-type) is missing; see ${0##*/} --help"
    [[ -n $image ]] || die "--image is missing; launch/build.sh makes and pushes one"
    join_run
    shared_workdir
  fi
  if [[ $action == log ]]; then
    needs kubectl "see https://kubernetes.io/docs/tasks/tools"
  else
    needs xpk "run: pip install xpk"
  fi
}

place() { printf '%s\n' "--cluster=$cluster" "--zone=$zone" ${project:+"--project=$project"}; }

machines() {
  if [[ -n $tpu_type ]]; then
    printf '%s\n' "--tpu-type=$tpu_type" "--num-slices=$slices"
  else
    printf '%s\n' "--device-type=$device_type" "--num-nodes=$nodes"
  fi
}

# `exec`, so that the SIGTERM that XPK hands on reaches the run and not a shell before it.
start() {
  local words=() line
  line="exec $(quoted "${command[@]}")"
  # jax.distributed knows pods with TPUs; in pods with GPUs XPK says where process 0 is.
  # shellcheck disable=SC2016  # expanded in the pod
  [[ -n $tpu_type ]] || line=${line/%--config.runtime.distributed=auto/'--config.runtime.distributed=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT --config.runtime.num_processes=$NNODES --config.runtime.process_index=$NODE_RANK'}
  mapfile -t words < <(place && machines)
  execute xpk workload create --workload="$workload" "${words[@]}" --docker-image="$image" --command="$line" --priority="$priority" \
    --max-restarts="$restarts" --restart-on-exit-codes=1,75 --termination-grace-period-seconds="$grace" "${environment[@]}"
}

stop() {
  local words=()
  mapfile -t words < <(place)
  execute xpk workload delete --workload="$workload" "${words[@]}" --force
}

manage_cluster() {
  local words=()
  if [[ $1 == create ]]; then mapfile -t words < <(place && machines); else mapfile -t words < <(place); fi
  execute xpk cluster "$1" "${words[@]}" "${@:2}"
}

case $action in
  cluster | run | resume | list | log | stop | delete) check ;;
  --help | -h) usage && exit 0 ;;
  *) die "'$action' is no action; choose cluster, run, resume, list, log, stop or delete" ;;
esac
case $action in
  cluster) manage_cluster create "$capacity" ;;
  run) start ;;
  resume)
    stop
    start
    ;;
  list)
    mapfile -t words < <(place)
    execute xpk workload list "${words[@]}"
    ;;
  log)
    execute kubectl logs --follow --timestamps --selector="jobset.sigs.k8s.io/jobset-name=$workload,batch.kubernetes.io/job-completion-index=0" \
      --tail=-1 --max-log-requests=32
    ;;
  stop) stop ;;
  delete) manage_cluster delete --force ;;
esac
