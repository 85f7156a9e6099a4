#!/usr/bin/env bash
# A run on machines with GPUs that know each other by SSH, through Open MPI's mpirun: one process a machine, with all its GPUs.
#
# usage: launch/mpi.sh --hosts=HOST,HOST,... [options] -- jaxdrl run --config=FILE --workdir=/shared/DIR ...
#
#   --hosts=HOST,...         process 0, whom all others must reach, runs on the first
#   --port=PORT              of process 0; default 8482
#   --coordinator=ADDRESS    of process 0, where the others know the first host by another name
#   --folder=DIR             where the command runs, on every machine; default: this one
#   --env=NAME               a variable that all processes get from here, may be repeated; PATH and LD_LIBRARY_PATH, and what begins with JAX_,
#                            XLA_ or NCCL_, are taken along
#   --mpirun-option=OPTION   may be repeated: --mpirun-option=--allow-run-as-root
#   --restarts=N             within an hour, after a checkpoint or death by a signal; default 5
#   --grace=SECONDS          for the others when a process has ended, until SIGTERM, and again until SIGKILL; default 20
#   --dry-run                prints the command
#
# All machines need the checkout and the environment at the same place, and --workdir on storage that all of them mount. MPI only starts the processes:
# they talk by NCCL. SIGTERM and Ctrl-C save a checkpoint; the same command goes on.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

hosts="" port=8482 coordinator="" folder=$PWD restarts=5 grace=20 options=() variables=(PATH)
while (($#)); do
  case $1 in
    --) shift && command=("$@") && break ;;
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --hosts=*) hosts=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --coordinator=*) coordinator=${1#*=} ;;
    --folder=*) folder=${1#*=} ;;
    --env=*) variables+=("${1#*=}") ;;
    --mpirun-option=*) options+=("${1#*=}") ;;
    --restarts=*) restarts=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    *) die "'$1' is not understood; the command stands behind --, see ${0##*/} --help" ;;
  esac
  shift
done
required hosts
[[ $hosts =~ ^[A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*$ ]] || die "--hosts must be names or addresses with commas between them, got '$hosts'"
number --port "$port" && number --restarts "$restarts" && number --grace "$grace"
((port > 0 && port < 65536)) || die "--port must be between 1 and 65535, got '$port'"
join_run
[[ ${command[-1]} == --config.runtime.distributed=auto ]] || die "config.runtime.distributed is set by this launcher; leave it out"
unset 'command[-1]'
for name in "${variables[@]}"; do
  [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ && -n ${!name+set} ]] || die "--env=$name: there is no such variable here"
done
while IFS= read -r name; do
  case $name in
    LD_LIBRARY_PATH | JAX_* | XLA_* | NCCL_*) variables+=("$name") ;;
  esac
done < <(compgen -e)
needs mpirun "install Open MPI (apt install openmpi-bin) on every machine"

IFS=, read -ra machines <<<"$hosts"
exports=()
for name in "${variables[@]}"; do exports+=(-x "$name"); done
command+=("--config.runtime.distributed=${coordinator:-${machines[0]}}:$port" "--config.runtime.num_processes=${#machines[@]}")

# How long mpirun waits, twice, before it kills: a second, unless it is told otherwise. Open MPI 4 reads the first, 5 the second.
export OMPI_MCA_odls_base_sigkill_timeout=$grace PRTE_MCA_odls_base_sigkill_timeout=$grace
# Not jax.distributed's own look at Open MPI: it knows version 4 alone, and one GPU a process.
run=("$here/restart.sh" --limit="$restarts" --signal=USR1 -- mpirun -np "${#machines[@]}" --host "${hosts//,/:1,}:1" --map-by node --bind-to none
  --tag-output --wdir "$folder" "${exports[@]}" "${options[@]}" "$here/rank.sh" --index-from=OMPI_COMM_WORLD_RANK -- "${command[@]}")
[[ -z $dry_run ]] || { execute "${run[@]}" && exit 0; }
# `exec`: a signal must reach it, not a shell that would die of it.
exec "${run[@]}"
