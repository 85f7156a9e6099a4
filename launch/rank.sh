#!/usr/bin/env bash
# What mpi.sh and slurm.sbatch have started for every process: COMMAND, with SIGTERM for it when SIGUSR1 arrives.
#
# usage: launch/rank.sh [options] -- COMMAND...
#
#   --index-from=VARIABLE  puts --config.runtime.process_index=VALUE behind the command
#   --mistake=CODE         ends with that exit code instead of 2: srun hands on the highest of all processes' codes
#   --dry-run              prints the command
#
# Both mpirun and srun hand SIGUSR1 on at once. Of SIGTERM mpirun first waits, and srun kills the processes.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

variable="" mistake=2
while (($#)); do
  case $1 in
    --) shift && command=("$@") && break ;;
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --index-from=*) variable=${1#*=} ;;
    --mistake=*) mistake=${1#*=} ;;
    *) die "'$1' is not understood; see ${0##*/} --help" ;;
  esac
  shift
done
((${#command[@]})) || die "the command is missing; write it behind --"
number --mistake "$mistake"
if [[ -n $variable ]]; then
  [[ -n ${!variable:-} ]] || die "--index-from: $variable is not set; mpirun of Open MPI sets OMPI_COMM_WORLD_RANK"
  command+=("--config.runtime.process_index=${!variable}")
fi
if [[ -n $dry_run ]]; then
  execute "${command[@]}"
  exit 0
fi

# Signals come to the whole process group: the command must not die of SIGUSR1, and gets SIGTERM without this shell's help.
trap '' USR1
"${command[@]}" &
child=$!
trap 'woken=1; kill -TERM "$child" 2>/dev/null || true' USR1
trap 'woken=1' TERM
await
((code != 2)) || code=$mistake
exit "$code"
