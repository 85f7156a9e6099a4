"""What is started again and what is not: restart.sh, and what stands around it on a worker, under mpirun and under Slurm."""

import signal
import subprocess
import sys
import time

import pytest

from tests.launch.shells import LAUNCH, environment, program, run

# Ends with the next of CODES each time; `-9` is death by a signal.
COUNTED = """
echo run >> "$FOLDER/runs"
n=$(wc -l < "$FOLDER/runs"); set -- $CODES; code=${!n:-0}
[[ $code != -* ]] || kill "$code" $$
exit "$code"
"""
# Runs until it is told to stop; then it saves for a moment.
LONG = """
trap 'kill $!; sleep 0.3; echo saved >> "$FOLDER/saved"; exit 75' TERM
echo "$@" >> "$FOLDER/runs"
sleep 120 & wait
"""

# Hands SIGUSR1 on and kills on SIGTERM, as srun does.
SRUN = """
echo "$*" >> "$FOLDER/steps"
while [[ $1 != */rank.sh ]]; do shift; done
"$@" &
trap 'told=1; kill -USR1 $!' USR1
trap 'kill -9 $!; exit 137' TERM
wait $!; code=$?
[[ -z $told ]] || { wait $!; code=$?; }
exit "$code"
"""


def wait_for(path, seconds=60.0):
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.02)
    return path.read_text()


# A shell cannot trap what its parent ignores, and tests that run in the background ignore SIGINT.
TRAPPABLE = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"


def begin(script, *arguments, env):
    return subprocess.Popen(
        [sys.executable, "-c", TRAPPABLE, "bash", str(LAUNCH / script), *arguments],
        env=env,
        cwd=LAUNCH.parent,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("codes", "options", "code", "runs"),
    [
        ("75 75 0", (), 0, 3),
        ("-9 134 0", (), 0, 3),
        ("143 75 1", (), 1, 3),
        ("0", (), 0, 1),
        ("2", (), 2, 1),
        ("1", (), 1, 1),
        ("75 2", (), 2, 2),
        ("1 24 0", ("--also=1,24",), 0, 3),
        ("1 2 0", ("--also=1",), 2, 2),
        ("255 0", ("--mistake=255",), 2, 1),
        ("75 75 75 0", ("--limit=2",), 75, 3),
        ("75 0", ("--limit=0",), 75, 1),
    ],
)
def test_restarts_after_interruptions_alone(tmp_path, codes, options, code, runs):
    command = program(tmp_path, "counted", COUNTED)
    done = run("restart.sh", "--delay=0", *options, "--", str(command), env=environment(FOLDER=tmp_path, CODES=codes))
    assert done.returncode == code
    assert len((tmp_path / "runs").read_text().split()) == runs


def test_restarts_that_are_long_ago_do_not_count(tmp_path):
    command = program(tmp_path, "counted", COUNTED)
    env = environment(FOLDER=tmp_path, CODES="75 75 75 0")
    assert run("restart.sh", "--delay=0", "--limit=1", "--window=0", "--", str(command), env=env).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_waits_for_the_checkpoint(tmp_path, number):
    process = begin("restart.sh", "--delay=300", "--", str(program(tmp_path, "long", LONG)), env=environment(FOLDER=tmp_path))
    wait_for(tmp_path / "runs")
    process.send_signal(number)
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "saved").exists()
    assert len((tmp_path / "runs").read_text().splitlines()) == 1


def test_the_code_of_a_run_that_sigterm_kills(tmp_path):
    # Ten times: bash loses the code now and then.
    for _ in range(10):
        assert run("restart.sh", "--", str(program(tmp_path, "hit", "kill -TERM $PPID; exec sleep 120"))).returncode == 143


def test_told_to_stop_between_two_runs(tmp_path):
    command = program(tmp_path, "counted", COUNTED)
    process = begin("restart.sh", "--delay=300", "--", str(command), env=environment(FOLDER=tmp_path, CODES="75 0"))
    assert process.stderr is not None
    assert "restart 1 of 5" in process.stderr.readline()
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert len((tmp_path / "runs").read_text().split()) == 1


def test_a_rank_hands_on_its_index_the_signal_and_a_mistake(tmp_path):
    env = environment(FOLDER=tmp_path, OMPI_COMM_WORLD_RANK=3)
    process = begin("rank.sh", "--index-from=OMPI_COMM_WORLD_RANK", "--", str(program(tmp_path, "long", LONG)), "a b", env=env)
    assert wait_for(tmp_path / "runs") == "a b --config.runtime.process_index=3\n"
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "saved").exists()
    assert run("rank.sh", "--mistake=255", "--", "bash", "-c", "exit 2", env=env).returncode == 255
    assert run("rank.sh", "--mistake=255", "--", "bash", "-c", "exit 7", env=env).returncode == 7


def test_mpi_starts_a_process_a_host(tmp_path):
    program(
        tmp_path,
        "mpirun",
        'printf "%s\\n" "$@" > "$FOLDER/words"; echo "$OMPI_MCA_odls_base_sigkill_timeout" > "$FOLDER/grace"; exit "$CODE"',
    )
    arguments = ("--hosts=10.0.0.4,b", "--grace=7", "--restarts=0", "--env=CODE", "--", "jaxdrl", "run", "--config.name=a b")
    done = run("mpi.sh", *arguments, env=environment(tmp_path, FOLDER=tmp_path, CODE=2, NCCL_DEBUG="INFO"))
    assert done.returncode == 2
    words = (tmp_path / "words").read_text().splitlines()
    assert words[words.index("-np") + 1] == "2"
    assert words[words.index("--host") + 1] == "10.0.0.4:1,b:1"
    assert {words[place + 1] for place, word in enumerate(words) if word == "-x"} >= {"PATH", "CODE", "NCCL_DEBUG"}
    assert words[words.index("jaxdrl") :] == [
        "jaxdrl",
        "run",
        "--config.name=a b",
        "--config.runtime.distributed=10.0.0.4:8482",
        "--config.runtime.num_processes=2",
    ]
    assert (tmp_path / "grace").read_text() == "7\n"


def slurm(tmp_path, state="RUNNING", **variables):
    program(tmp_path, "srun", SRUN)
    program(
        tmp_path, "scontrol", f'echo "$*" >> "$FOLDER/asked"; [[ $1 != show ]] || echo "JobId=7 JobState={state} Reason=None"'
    )
    return environment(tmp_path, FOLDER=tmp_path, SLURM_JOB_ID=7, SLURM_SUBMIT_DIR=LAUNCH.parent, **variables)


@pytest.mark.parametrize(("codes", "code", "runs"), [("0", 0, 1), ("2", 2, 1), ("1", 1, 1)])
def test_slurm_hands_on_how_the_run_ended(tmp_path, codes, code, runs):
    program(tmp_path, "jaxdrl", COUNTED)
    done = run("slurm.sbatch", "--srun-option=--cpus-per-task=4", "--", "jaxdrl", "run", env=slurm(tmp_path, CODES=codes))
    assert done.returncode == code
    steps = (tmp_path / "steps").read_text().splitlines()
    assert len(steps) == runs
    assert "--cpus-per-task=4" in steps[0]
    assert steps[0].endswith("jaxdrl run --config.runtime.distributed=auto")
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(("state", "before", "queued"), [("RUNNING", 0, True), ("RUNNING", 3, False), ("CANCELLED", 0, False)])
def test_slurm_queues_again_before_the_time_limit(tmp_path, state, before, queued):
    program(tmp_path, "jaxdrl", LONG)
    env = slurm(tmp_path, state, **({"SLURM_RESTART_COUNT": before} if before else {}))
    process = begin("slurm.sbatch", "--requeues=3", "--", "jaxdrl", "run", env=env)
    wait_for(tmp_path / "runs")
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "saved").exists()
    assert ("requeue 7" in (tmp_path / "asked").read_text().splitlines()) == queued


def test_detached_runs_report_and_stop(tmp_path):
    folder, env = f"--folder={tmp_path}/run", environment(FOLDER=tmp_path)
    assert run("detached.sh", "status", folder).stdout == "none\n"
    long = str(program(tmp_path, "long", LONG))
    assert run("detached.sh", "start", folder, "--delay=0", "--", long, "first", env=env).returncode == 0
    wait_for(tmp_path / "runs")
    assert run("detached.sh", "status", folder).stdout == "running\n"
    assert "runs already" in run("detached.sh", "start", folder, "--", long, "second", env=env).stderr
    assert run("detached.sh", "stop", folder).stdout == "stopped\n"
    assert run("detached.sh", "status", folder).stdout == "stopped\n"
    assert wait_for(tmp_path / "run" / "exit_code") == "75\n"
    assert (tmp_path / "runs").read_text() == "first\n"
    assert run("detached.sh", "start", folder, "--", "bash", "-c", "echo wrote; exit 2").returncode == 0
    wait_for(tmp_path / "run" / "exit_code")
    assert run("detached.sh", "status", folder).stdout == "exited 2\n"
    assert "wrote" in run("detached.sh", "log", folder).stdout
    # A machine that was started anew has the number of a process that is another's by now.
    (tmp_path / "run" / "exit_code").unlink()
    (tmp_path / "run" / "pid").write_text("1")
    assert run("detached.sh", "status", folder).stdout == "lost\n"
