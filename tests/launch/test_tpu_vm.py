"""tpu_vm.sh against a gcloud of our own: one worker, which is a folder on this machine."""

import shlex

import pytest

from tests.launch.shells import LAUNCH, environment, program, run

PLACE = ("--name=drl", "--zone=us-east5-b", "--project=ours", "--accelerator-type=v5p-128", "--poll=0")
COMMAND = ("--", "jaxdrl", "run", "--config=configs/drl_digits.py", "--workdir=/shared/it's")
GCLOUD = r"""
echo "$*" >> "$FAKE/log"; verb=$4; state=$FAKE/state
for word in "$@"; do [[ $word != --command=* ]] || line=${word#--command=}; done
case $3-$verb in
  queued-resources-describe) [[ -e $state ]] || { echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1; }; cat "$state" ;;
  queued-resources-create) [[ ! -e $state ]] || exit 1; echo ACTIVE > "$state"; mkdir "$FAKE/worker" ;;
  queued-resources-delete) rm -rf "$state" "$FAKE/worker" ;;
  queued-resources-scp) cp "$5" "$FAKE/worker/jaxdrl.tar.gz" ;;
  queued-resources-ssh) [[ $(cat "$state") == ACTIVE && -d $FAKE/worker ]] && HOME=$FAKE/worker bash -c "$line" ;;
  tpu-vm-list) cat "$FAKE/nodes" 2>/dev/null ;;
esac
"""


def fake(tmp_path, jaxdrl):
    """A Google Cloud; `jaxdrl` is what a run does, `$n` the number of its start."""
    tools = tmp_path / "bin"
    program(tools, "gcloud", GCLOUD)
    program(tools, "python3", 'echo "$*" >> "$FAKE/python3"')
    program(
        tools, "git", f'for word in "$@"; do [[ $word != --output=* ]] || tar -czf "${{word#*=}}" -C {LAUNCH.parent} launch; done'
    )
    program(tools, "jaxdrl", f'echo "$*" >> "$FAKE/runs"; n=$(wc -l < "$FAKE/runs")\n{jaxdrl}')
    return environment(tools, FAKE=tmp_path)


def asked(tmp_path):
    """What was asked of gcloud, in order, without the looks."""
    words = [line.split()[3] for line in (tmp_path / "log").read_text().splitlines()]
    return [word for word in words if word not in ("describe", "ssh", "list")]


def test_the_words_of_every_step():
    shown = run("tpu_vm.sh", "resume", *PLACE, "--slices=2", "--spot", "--valid-until=6h", "--create-flag=--network=pods", "--dry-run",
                "--ssh-flag=--tunnel-through-iap", "--env=A=b c", "--extra=tfds", "--restarts=9", "--delete-after", *COMMAND)  # fmt: skip
    lines = [shlex.split(line) for line in shown.stdout.splitlines()]
    steps = {words[4]: words for words in lines if words[:4] == ["gcloud", "compute", "tpus", "queued-resources"]}
    assert all({"--zone=us-east5-b", "--project=ours", "--quiet"} <= set(words) for words in steps.values())
    assert {"--node-count=2", "--node-prefix=drl", "--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot",
            "--valid-until-duration=6h", "--network=pods"} <= set(steps["create"])  # fmt: skip
    assert "--force" in steps["delete"]
    assert {"drl:jaxdrl.tar.gz", "--worker=all", "--node=all", "--tunnel-through-iap"} <= set(steps["scp"])
    setup, start, status = (words for words in lines if "ssh" in words)
    assert {"--worker=all", "--node=all", "--tunnel-through-iap"} <= set(setup) & set(start) & set(status)
    assert ".[tpu,tfds]" in next(word for word in setup if word.startswith("--command="))
    remote = shlex.split(next(word for word in start if word.startswith("--command=")).partition("=")[2])
    assert remote[remote.index("launch/detached.sh") - 1] == "A=b c"
    assert {"--limit=9", "--also=1"} <= set(remote)
    assert remote[remote.index("--") + 1 :] == [*COMMAND[1:], "--config.runtime.distributed=auto"]
    verbs = [words[4] if words[0] == "gcloud" else words[0] for words in lines]
    assert verbs == ["describe", "delete", "create", "describe", "git", "scp", "ssh", "ssh", "sleep", "describe", "ssh", "delete"]


@pytest.mark.parametrize(
    ("kind", "version"),
    [("v6e-8", "v2-alpha-tpuv6e"), ("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v4-32", "tpu-ubuntu2204-base")],
)
def test_the_image_of_a_type(kind, version):
    shown = run("tpu_vm.sh", "create", "--name=a", "--zone=b", f"--accelerator-type={kind}", "--dry-run").stdout
    assert f"--runtime-version={version}" in shown
    assert "--node-id=a" in shown
    named = run(
        "tpu_vm.sh", "create", "--name=a", "--zone=b", f"--accelerator-type={kind}", "--runtime-version=mine", "--dry-run"
    )
    assert "--runtime-version=mine" in named.stdout


def test_resume_goes_through_a_preemption_to_the_end(tmp_path):
    env = fake(tmp_path, 'if ((n == 1)); then sleep 0.3; echo SUSPENDED > "$FAKE/state"; exit 137; fi')
    done = run("tpu_vm.sh", "resume", *PLACE, "--restarts=0", "--delete-after", *COMMAND, env=env)
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path) == ["create", "scp", "delete", "create", "scp", "delete"]
    assert (tmp_path / "runs").read_text() == f"{' '.join(COMMAND[1:])[7:]} --config.runtime.distributed=auto\n" * 2
    assert ".[tpu]" in (tmp_path / "python3").read_text()


def test_a_run_that_a_shutdown_has_interrupted_goes_on(tmp_path):
    # A machine that is shut down tells everybody to stop, restart.sh as well; this one comes back.
    done = run(
        "tpu_vm.sh",
        "resume",
        *PLACE,
        *COMMAND,
        env=fake(tmp_path, "trap : TERM; if ((n == 1)); then kill -TERM $PPID; exit 75; fi"),
    )
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path) == ["create", "scp"]
    assert len((tmp_path / "runs").read_text().splitlines()) == 2


def test_a_crash_that_restarts_did_not_mend_ends_the_watch(tmp_path):
    done = run("tpu_vm.sh", "resume", *PLACE, "--restarts=0", *COMMAND, env=fake(tmp_path, "exit 139"))
    assert done.returncode == 139
    assert asked(tmp_path) == ["create", "scp"]


def test_nodes_that_are_preempted_under_an_active_request(tmp_path):
    env = fake(
        tmp_path,
        'if ((n == 1)); then sleep 0.3; echo PREEMPTED > "$FAKE/nodes"; mv "$FAKE/worker" "$FAKE/gone"; else rm -f "$FAKE/nodes"; fi',
    )
    done = run("tpu_vm.sh", "resume", *PLACE, "--restarts=0", *COMMAND, env=env)
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path) == ["create", "scp", "delete", "create", "scp"]
    assert "is still there, and costs" in done.stderr


def test_a_mistake_ends_the_watch_with_its_code(tmp_path):
    done = run("tpu_vm.sh", "resume", *PLACE, *COMMAND, env=fake(tmp_path, "exit 2"))
    assert done.returncode == 2
    assert asked(tmp_path) == ["create", "scp"]
    assert len((tmp_path / "runs").read_text().splitlines()) == 1


def test_a_slice_that_somebody_deletes_stays_deleted(tmp_path):
    done = run("tpu_vm.sh", "resume", *PLACE, *COMMAND, env=fake(tmp_path, 'rm "$FAKE/state"; exit 1'))
    assert done.returncode == 1
    assert "was deleted" in done.stderr
    assert asked(tmp_path) == ["create", "scp"]


def test_no_more_slices_than_recreations(tmp_path):
    env = fake(tmp_path, 'sleep 0.3; echo SUSPENDED > "$FAKE/state"; exit 137')
    done = run("tpu_vm.sh", "resume", *PLACE, "--restarts=0", "--recreations=1", *COMMAND, env=env)
    assert done.returncode == 1
    assert "lost too often" in done.stderr
    assert asked(tmp_path).count("create") == 2


def test_what_fails_again_and_again_ends_the_watch(tmp_path):
    env = fake(tmp_path, "exit 137")
    program(tmp_path / "bin", "python3", 'echo run >> "$FAKE/python3"; (($(wc -l < "$FAKE/python3") < 4))')
    # The first setup is well; then the worker loses all it had, and no other works.
    program(tmp_path / "bin", "jaxdrl", 'sleep 0.3; rm -r "$FAKE/worker/jaxdrl" "$FAKE/worker/jaxdrl-run"')
    done = run("tpu_vm.sh", "resume", *PLACE, *COMMAND, env=env)
    assert done.returncode == 1
    assert "failed 5 times in a row" in done.stderr
    assert asked(tmp_path) == ["create", *["scp"] * 6]


def test_step_by_step_and_stopped(tmp_path):
    env = fake(tmp_path, "trap 'kill $!; exit 75' TERM; sleep 120 & wait")
    assert run("tpu_vm.sh", "create", *PLACE, env=env).returncode == 0
    assert run("tpu_vm.sh", "setup", *PLACE, env=env).returncode == 0
    home = environment(tmp_path / "bin", HOME=tmp_path / "worker", FAKE=tmp_path)
    assert run("detached.sh", "start", "--", "jaxdrl", env=home).returncode == 0
    # A setup would take the files away under the run.
    refused = run("tpu_vm.sh", "setup", *PLACE, env=env)
    assert refused.returncode == 1
    assert "a run is under way" in refused.stderr
    assert run("tpu_vm.sh", "status", *PLACE, env=env).stdout == "ACTIVE\nrunning\n"
    assert run("tpu_vm.sh", "stop", *PLACE, env=env).stdout == "stopped\n"
    assert (
        run(
            "tpu_vm.sh",
            "run",
            *PLACE[:-1],
            "--poll=1",
            "--",
            "jaxdrl",
            "run",
            "--workdir=/mnt/a",
            env=env | {"PATH": _dying(tmp_path)},
        ).returncode
        == 3
    )
    assert run("tpu_vm.sh", "delete", *PLACE, env=env).returncode == 0
    assert not (tmp_path / "state").exists()


def _dying(tmp_path):
    program(tmp_path / "other", "jaxdrl", "exit 3")
    return environment(tmp_path / "other")["PATH"].replace(":", f":{tmp_path}/bin:", 1)


def test_a_share_is_mounted_once_before_the_code_is_installed(tmp_path):
    env = fake(tmp_path, "exit 0")
    program(tmp_path / "bin", "sudo", '[[ $1 != tee ]] || cat > "$FAKE/fstab"; echo "$*" >> "$FAKE/sudo"')
    program(tmp_path / "bin", "mountpoint", "[[ -e $FAKE/fstab ]]")
    assert run("tpu_vm.sh", "create", *PLACE, env=env).returncode == 0
    for _ in range(2):
        done = run("tpu_vm.sh", "setup", *PLACE, "--nfs=10.0.0.2:/runs", env=env)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "fstab").read_text() == "10.0.0.2:/runs /shared nfs defaults,_netdev 0 0\n"
    assert (tmp_path / "sudo").read_text().splitlines().count("mount /shared") == 1
    program(tmp_path / "bin", "mountpoint", "exit 1")
    program(tmp_path / "bin", "sudo", "exit 1")
    assert run("tpu_vm.sh", "setup", *PLACE, "--nfs=10.0.0.2:/runs", env=env).returncode != 0  # nothing is installed without it
