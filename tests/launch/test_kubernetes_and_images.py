"""xpk's words, GKE's manifest and the images."""

import re
import shlex

import pytest
import yaml

from tests.launch.shells import LAUNCH, ROOT, run

RUN = ("--", "jaxdrl", "run", "--config=configs/drl_digits.py", "--workdir=/shared/first")
PLACE = ("--cluster=pod", "--zone=us-east5-b", "--project=ours", "--image=registry/jaxdrl:tpu")


def words(*arguments):
    shown = run("xpk.sh", *arguments[:1], "--dry-run", *PLACE, *arguments[1:])
    assert shown.returncode == 0, shown.stderr
    return [shlex.split(line) for line in shown.stdout.splitlines()]


def test_xpk_restarts_what_was_interrupted():
    options = (
        "--tpu-type=v6e-256",
        "--slices=2",
        "--workload=drl",
        "--restarts=7",
        "--grace=90",
        "--env=A=b c",
        "--priority=high",
    )
    (found,) = words("run", *options, *RUN)
    assert found[:3] == ["xpk", "workload", "create"]
    assert set(found[3:]) == {
        "--workload=drl", "--cluster=pod", "--zone=us-east5-b", "--project=ours", "--tpu-type=v6e-256", "--num-slices=2",
        "--docker-image=registry/jaxdrl:tpu", "--priority=high", "--max-restarts=7", "--restart-on-exit-codes=1,75",
        "--termination-grace-period-seconds=90", "--env=A=b c",
        "--command=exec jaxdrl run --config=configs/drl_digits.py --workdir=/shared/first --config.runtime.distributed=auto",
    }  # fmt: skip
    gone, again = words("resume", *options, *RUN)
    assert gone[:4] == ["xpk", "workload", "delete", "--workload=drl"]
    assert "--force" in gone
    assert again == found


def test_xpk_says_to_processes_on_gpus_where_they_are():
    (found,) = words("run", "--device-type=h200-141gb-8", "--nodes=4", *RUN)
    assert {"--device-type=h200-141gb-8", "--num-nodes=4"} <= set(found)
    (command,) = (word for word in found if word.startswith("--command="))
    assert command.endswith(
        "--config.runtime.distributed=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT "
        "--config.runtime.num_processes=$NNODES --config.runtime.process_index=$NODE_RANK"
    )


def test_xpk_manages_the_cluster():
    (made,) = words("cluster", "--tpu-type=v5p-128", "--reservation=ours")
    assert made[:3] == ["xpk", "cluster", "create"]
    assert {"--tpu-type=v5p-128", "--num-slices=1", "--reservation=ours"} <= set(made)
    assert words("delete")[0][:4] == ["xpk", "cluster", "delete", "--cluster=pod"]
    assert words("list")[0][:3] == ["xpk", "workload", "list"]
    assert words("stop", "--workload=drl")[0][:4] == ["xpk", "workload", "delete", "--workload=drl"]
    assert (
        "--selector=jobset.sigs.k8s.io/jobset-name=drl,batch.kubernetes.io/job-completion-index=0"
        in words("log", "--workload=drl")[0]
    )


def test_the_manifest_restarts_all_but_mistakes():
    (manifest,) = yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    (group,) = manifest["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    # Kubernetes refuses a podFailurePolicy with another one.
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    (hopeless,) = job["podFailurePolicy"]["rules"]
    assert hopeless == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2]},
    }
    # No shell between SIGTERM and the run.
    assert "command" not in container
    assert container["args"][0] == "run"
    assert "--config.runtime.distributed=auto" in container["args"]
    recipe = next(word.partition("=")[2] for word in container["args"] if word.startswith("--config="))
    assert (ROOT / recipe).is_file()


@pytest.mark.parametrize(("kind", "extra"), [("cuda", "cuda"), ("tpu", "tpu")])
def test_an_image_has_what_it_needs(kind, extra):
    text = (LAUNCH / f"Dockerfile.{kind}").read_text()
    copied = [word for line in re.findall(r"^COPY (.*)$", text, flags=re.MULTILINE) for word in line.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "jaxdrl", "configs", "launch"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
    extras = re.search(r"-e '\.\[([a-z,]+)\]' -c constraints.txt", text)
    assert extras is not None
    known = re.search(r"^\[project.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), flags=re.M | re.S)
    assert known is not None
    for name in extras.group(1).split(","):
        assert re.search(rf"^{name} = ", known.group(1), flags=re.MULTILINE), name
    assert extra in extras.group(1).split(",")
    # The form without a shell, which would keep SIGTERM for itself.
    assert 'ENTRYPOINT ["jaxdrl"]' in text
    assert "FROM python:3.11" in text


def test_building_and_pushing():
    shown = run("build.sh", "--for=tpu", "--image=registry/jaxdrl:tpu", "--push", "--dry-run").stdout.splitlines()
    built, pushed = (shlex.split(line) for line in shown)
    assert built == [
        "docker",
        "build",
        "--platform=linux/amd64",
        f"--file={LAUNCH}/Dockerfile.tpu",
        "--tag=registry/jaxdrl:tpu",
        str(ROOT),
    ]
    assert pushed == ["docker", "push", "registry/jaxdrl:tpu"]
    assert len(run("build.sh", "--for=cuda", "--image=a", "--dry-run").stdout.splitlines()) == 1
