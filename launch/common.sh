# shellcheck shell=bash
# What the launchers share: read with `source`, never run.

# Empty: commands are run; otherwise they are only printed. Arguments after `--`: the command of the run.
dry_run=""
command=()

# A mistake of the user: one line, exit code 2.
die() {
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# `${word@Q}` and arrays that may be empty.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "bash 4.4 or newer is needed, this is $BASH_VERSION (macOS: brew install bash)"

# The comment at the top of a script is its help.
usage() { sed -n '2,/^$/{/^$/d;s/^# \{0,1\}//;p;}' "$0"; }

# Prints words so that a shell reads them back as they are.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+^-]+$ ]] || word=${word@Q}
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command, or prints it.
execute() {
  if [[ -n $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# Stops with one line where a program that is about to be used is missing; a dry run needs none.
needs() {
  [[ -n $dry_run ]] || command -v "$1" >/dev/null || die "$1 is not installed; $2"
}

# Options that must be given, by the names of their variables (of which none is `option`).
required() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || die "--${option//_/-} is missing; see ${0##*/} --help"
  done
}

# A whole number that is not negative: `number --name VALUE`.
number() {
  [[ $2 =~ ^[0-9]+$ ]] || die "$1 must be a whole number, got '$2'"
}

# Waits for the process in `child`, whose exit code is in `code` then. A trap that sets `woken` ends `wait` before the process has ended.
child="" woken="" code=0
await() {
  while :; do
    woken="" code=0
    wait "$child" 2>/dev/null || code=$?
    [[ -n $woken ]] || break
  done
  # What bash says of a process that ended in the moment in which a trap ran: its code is lost. It had no time to save anything.
  ((code >= 0)) || code=143
  child=""
}

# Lower case, digits and dashes, as Google Cloud and Kubernetes want it: `resource --name VALUE`.
resource() {
  [[ $2 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "$1 must be at most 40 of a-z, 0-9 and -, starting with a letter, got '$2'"
}

# The command of the run, with `--config.runtime.distributed=auto` where it does not say how its processes find each other.
join_run() {
  ((${#command[@]})) || die "the command is missing; write it behind --, for example: -- jaxdrl run --config=configs/drl_digits.py --workdir=DIR"
  [[ ${command[0]} == jaxdrl ]] || die "the command must start with jaxdrl, got '${command[0]}'"
  local word
  for word in "${command[@]}"; do
    [[ $word != --config.runtime.distributed=* ]] || return 0
  done
  command+=(--config.runtime.distributed=auto)
}

# Every process writes into the same workdir, and it must outlive the machines: a path relative to a worker's disk does neither.
shared_workdir() {
  local word
  for word in "${command[@]}"; do
    [[ $word != --workdir=*://* ]] ||
      die "$word: a workdir is a folder that all workers mount; a bucket is for --config.runtime.checkpoints.directory=gs://BUCKET/NAME"
    [[ $word != --workdir=/?* ]] || return 0
  done
  die "--workdir must be an absolute path on storage that every worker mounts; write it as --workdir=/DIR behind --"
}
