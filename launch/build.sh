#!/usr/bin/env bash
# Builds the image that XPK, GKE or Slurm run, and pushes it.
#
# usage: launch/build.sh --for=cuda|tpu --image=NAME:TAG [--push] [--dry-run]
#
#   --for=cuda|tpu    launch/Dockerfile.cuda or launch/Dockerfile.tpu
#   --image=NAME:TAG  such as us-docker.pkg.dev/my-project/images/jaxdrl:tpu
#   --push            to the registry in the name (once before: gcloud auth configure-docker us-docker.pkg.dev)
#   --dry-run         prints every command

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

kind="" image="" push=""
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --for=*) kind=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --push) push=1 ;;
    *) die "'$1' is not understood; see ${0##*/} --help" ;;
  esac
  shift
done
[[ $kind == cuda || $kind == tpu ]] || die "--for must be cuda or tpu, got '$kind'"
required image
[[ $image =~ ^[a-z0-9][a-z0-9._/:-]*$ ]] || die "--image must be a name such as us-docker.pkg.dev/my-project/images/jaxdrl:tpu, got '$image'"
needs docker "see https://docs.docker.com/engine/install"

# Machines with TPUs and most with GPUs are x86, whatever this one is.
execute docker build --platform=linux/amd64 --file="$here/Dockerfile.$kind" --tag="$image" "${here%/*}"
[[ -z $push ]] || execute docker push "$image"
