"""Launchers that need a cluster: their scripts lint, their forms fit the schemas, their loops do what they say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
TRAIN = ["voxinstruct", "train", "configs/pretrain_ar.py", "--out", "/runs/pretrain_ar"]


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda script: script.name)
def test_shell_scripts_pass_shellcheck(script):
    done = subprocess.run(
        [str(Path(sys.executable).parent / "shellcheck"), str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# --- GKE -------------------------------------------------------------------------------------------------------------


def check_job_set(job_set):
    """Checks a JobSet by the schema of its kind, and the jobs in it by Kubernetes' own; unknown fields are errors."""
    jsonschema.validate(job_set, json.loads(Path(__file__).with_name("jobset_schema.json").read_text()))
    for replicated in job_set["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}
        kubernetes_validate.validate(job, "1.37", strict=True)


def fill(*arguments):
    command = [sys.executable, LAUNCH / "gke.py", "--image", "x/y:1", "--queue", "q", *arguments, "--", *TRAIN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (yaml.safe_load(done.stdout), None) if done.returncode == 0 else (None, done.stderr.splitlines()[-1])


def test_the_form_of_a_job_set_is_valid_as_it_stands():
    check_job_set(yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text()))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("spec",), "suspended"),
        (("spec", "failurePolicy"), "maxRetries"),
        (("spec", "replicatedJobs", 0, "template", "spec"), "paralelism"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec"), "gracePeriod"),
    ],
)
def test_the_schema_finds_misspelt_fields(path, name):
    job_set = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    place = job_set
    for step in path:
        place = place[step]
    place[name] = 1
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError), match=name):
        check_job_set(job_set)


@pytest.mark.parametrize(
    ("topology", "accelerator", "hosts", "chips"),
    [
        ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
        ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
        ("v6e:1x1", "tpu-v6e-slice", 1, 1),
        ("v5p:4x4x8", "tpu-v5p-slice", 32, 4),
        ("v4:2x2x2", "tpu-v4-podslice", 2, 4),
        ("tpu7x:2x2x1", "tpu7x", 1, 4),
    ],
)
def test_a_filled_form_asks_for_the_whole_slice(topology, accelerator, hosts, chips):
    job_set, _ = fill("--topology", topology, "--slices", "2", "--spot", "--retries", "5")
    check_job_set(job_set)
    [slices] = job_set["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    assert slices["replicas"] == 2
    assert job["completions"] == job["parallelism"] == hosts
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod["containers"][0]["command"] == TRAIN
    assert job_set["spec"]["failurePolicy"]["maxRestarts"] == 5


@pytest.mark.parametrize(
    ("exit_code", "action"),
    [(2, "FailJobSet"), (75, "RestartJobSetAndIgnoreMaxRestarts"), (1, "RestartJobSet"), (134, "RestartJobSet")],
)
def test_preemption_is_free_and_wrong_use_is_final(exit_code, action):
    job_set = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    on_codes = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert on_codes["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    # How Kubernetes' job controller words it (pod_failure_policy.go), and JobSet's first rule that fits.
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    if exit_code in on_codes["values"]:
        reason = "PodFailurePolicy"
        message = f"Container train for pod x/y failed with exit code {exit_code} matching FailJob rule at index 0"
    fitting = [
        rule["action"]
        for rule in job_set["spec"]["failurePolicy"]["rules"]
        if reason in rule["onJobFailureReasons"]
        and any(re.search(pattern, message) for pattern in rule.get("onJobFailureMessagePatterns", [""]))
    ]
    assert [*fitting, "RestartJobSet"][0] == action


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology", "v9:4x4"], "chips: v4, v5e"),
        (["--topology", "v5p:16x16"], "v5p has shapes of 3 numbers"),
        (["--topology", "v5e:3x3"], "9 chips are no whole hosts"),
        (["--topology", "v5e:4x4", "--name", "A_run"], "lower-case"),
        (["--topology", "v5e:4x4", "--slices", "0"], "--slices 0"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line(arguments, said):
    _, error = fill(*arguments)
    assert said in error


# --- queued resources ------------------------------------------------------------------------------------------------

GCLOUD = """#!{python}
# Answers as gcloud would: the next of the written states and exit codes.
import fcntl, json, sys
from pathlib import Path
folder = Path({folder!r})
lock = (folder / "lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)  # slices ask at the same time
with (folder / "calls").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
verb = next(word for word in ("describe", "create", "delete", "ssh") if word in sys.argv)
answers = folder / f"{{verb}}.answers"
if answers.exists():
    first, *rest = answers.read_text().split()
    answers.write_text(" ".join(rest))
    if verb == "ssh":
        sys.exit(int(first))
    if first == "ABSENT":
        sys.exit(1)
    print(first)
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Runs the script against a stand-in for gcloud that has these answers; gives exit code and the calls made."""
    stand_in = tmp_path / "gcloud"
    stand_in.write_text(GCLOUD.format(python=sys.executable, folder=str(tmp_path)))
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def run(*options, states, codes):
        (tmp_path / "describe.answers").write_text(states)
        (tmp_path / "ssh.answers").write_text(codes)
        needed = ["--name", "n", "--zone", "z", "--type", "v5litepod-16", "--runtime", "r", "--poll", "0"]
        done = subprocess.run(
            [LAUNCH / "tpu_queued_resource.sh", *needed, *options, "--", *TRAIN],
            capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        return done.returncode, [(call, next(w for w in call if w in ("describe", "create", "delete", "ssh")))
                                 for call in calls]  # fmt: skip

    return run


def verbs(calls):
    return [verb for _, verb in calls if verb != "describe"]


def test_tpus_are_waited_for_set_up_and_given_back(cloud):
    code, calls = cloud(
        "--spot", "--setup", "make ready", states="ABSENT WAITING_FOR_RESOURCES PROVISIONING ACTIVE", codes="0 0"
    )
    assert code == 0
    assert verbs(calls) == ["create", "ssh", "ssh", "delete"]
    [create] = [call for call, verb in calls if verb == "create"]
    assert {"--spot", "--node-id=n", "--accelerator-type=v5litepod-16"} <= set(create)
    set_up, train = [call for call, verb in calls if verb == "ssh"]
    assert "--command=make ready" in set_up
    assert "--worker=all" in train
    assert " ".join(TRAIN) in train[-1]
    assert "VOXINSTRUCT_CLUSTER=gcetpu" in train[-1]


def test_tpus_that_are_taken_away_are_asked_for_anew(cloud):
    states = "ACTIVE SUSPENDING SUSPENDING SUSPENDED ABSENT ACTIVE"
    code, calls = cloud("--retries", "0", states=states, codes="255 0")
    assert code == 0
    assert verbs(calls) == ["ssh", "delete", "create", "ssh", "delete"]


def test_a_preempted_run_goes_on_for_free_and_a_failing_one_does_not_for_ever(cloud):
    code, calls = cloud("--retries", "1", states="ACTIVE " * 6, codes="75 75 1 1")
    assert code == 1
    assert verbs(calls) == ["ssh"] * 4 + ["delete"]


def test_wrong_use_is_not_started_again(cloud):
    code, calls = cloud(states="ACTIVE", codes="2")
    assert code == 2
    assert verbs(calls) == ["ssh", "delete"]


def test_each_slice_has_its_own_connection(cloud):
    code, calls = cloud("--slices", "2", states="ABSENT ACTIVE", codes="0 0")
    assert code == 0
    assert sorted(call[4] for call, verb in calls if verb == "ssh") == ["n-0", "n-1"]
    [create] = [call for call, verb in calls if verb == "create"]
    assert {"--node-count=2", "--node-prefix=n"} <= set(create)
