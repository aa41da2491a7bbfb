"""The JobSet file against published schemas, and the TPU script with a pretended gcloud.

The pods are held to the strict schema of a Job (package `kubernetes-validate`). The JobSet around
them is held to its own definition where JOBSET_CRD names that file, which no package brings:
config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset.
"""

import os
import pathlib
import re
import shlex
import subprocess

import pytest

pytestmark = pytest.mark.cluster
PODS = pathlib.Path(__file__).parents[2] / "launch" / "pods"


def jobset():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((PODS / "jobset.yaml").read_text())


def strict(schema):
    """A schema of a definition, where fields that it does not know are refused."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(part) for name, part in schema.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return made


def test_the_job_of_a_jobset_fits_the_schema():
    validate = pytest.importorskip("kubernetes_validate")
    (hosts,) = jobset()["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "masks"}}
    job |= hosts["template"]
    validate.validate(job, "1.37", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["comand"] = []
    with pytest.raises(validate.ValidationError, match="comand"):
        validate.validate(job, "1.37", strict=True)


def test_what_a_jobset_says_is_what_the_job_needs():
    spec = jobset()["spec"]
    (hosts,) = spec["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    rules = job["podFailurePolicy"]["rules"]
    codes = {code: rule["action"] for rule in rules for code in rule["onExitCodes"]["values"]}
    assert codes == {75: "Ignore", 1: "FailJob", 2: "FailJob"}
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # which a policy of failures asks for
    assert pod["terminationGracePeriodSeconds"] > 20  # what a process takes to leave
    # Each pod finds its number and its service by names that only an Indexed job has.
    assert job.get("completionMode", "Indexed") == "Indexed"


def test_a_jobset_fits_its_definition():
    jsonschema, yaml = pytest.importorskip("jsonschema"), pytest.importorskip("yaml")
    path = os.environ.get("JOBSET_CRD")
    if not path:
        pytest.skip("JOBSET_CRD does not name the definition of a JobSet")
    crd = yaml.safe_load(pathlib.Path(path).read_text())
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1alpha2")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"].pop("additionalProperties", None)
    jsonschema.validate(jobset(), schema)
    wrong = jobset()
    wrong["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(wrong, schema)


GCLOUD = """#!/bin/bash
printf '%q ' "$@" >> "$LOG"; echo >> "$LOG"
case "$*" in *" describe "*) exit "${THERE:-1}" ;; esac
for argument; do
  case $argument in --command=*) echo "${argument#--command=}" > "$LOG.command" ;; esac
done
"""


@pytest.mark.parametrize("there", [True, False])
def test_a_slice_is_made_once_and_told_what_to_run(tmp_path, there):
    tool, log = tmp_path / "gcloud", tmp_path / "log"
    tool.write_text(GCLOUD)
    tool.chmod(0o755)
    name = "a b's $(touch HACKED).png"
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    env |= {"THERE": "0" if there else "1", "NAME": "masks", "ZONE": "z", "TYPE": "v5litepod-16"}
    line = ["bash", str(PODS / "tpu_vm.sh"), f"--images={name}", "--model=demo"]
    subprocess.run(line, cwd=tmp_path, env={**env, "OUT": "/mnt/o"}, check=True)
    calls = [call.split()[3] for call in log.read_text().splitlines()]
    assert calls == ["describe", *([] if there else ["create"]), "scp", "ssh"]
    # The workers' shell: it reads back what was given, and runs nothing else of it.
    command = pathlib.Path(f"{log}.command").read_text()
    (run,) = re.findall(r"exec (python -m launch.masks .*)", command)
    words = shlex.split(run)
    assert words[3:] == ["--multiprocess", "--out=/mnt/o", f"--images={name}", "--model=demo"]
    seen = subprocess.run(["bash", "-c", f"printf '%s\\n' {run}"], capture_output=True, text=True)
    assert f"--images={name}" in seen.stdout.splitlines()
    assert not (tmp_path / "HACKED").exists()
    # Without what it needs it says what is missing.
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode
    assert "OUT" in done.stderr
