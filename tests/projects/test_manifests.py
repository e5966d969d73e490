"""Manifests of jobs, beside what Kubeflow Trainer's TrainJob and SkyPilot's task have: keys, types and required ones.

The tables are of the published schemas: trainer.kubeflow.org/v1alpha1 (kubeflow/trainer, 2026-08) and SkyPilot's task
(skypilot-org/skypilot, sky/utils/schemas.py, 2026), as far as the manifests go. Neither has other keys on these levels.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from projects.jobs import Job
from projects.manifests import sky_task, train_job
from projects.sending import yaml_text
from projects.submitters import Kubernetes, Skypilot

TRAIN_JOB = {  # by path: the keys that there are, and those that must be there
    "": ("apiVersion kind metadata spec", "apiVersion kind metadata spec"),
    "spec": (
        "activeDeadlineSeconds initializer managedBy runtimePatches runtimeRef suspend trainer",
        "runtimeRef",
    ),
    "spec.runtimeRef": ("apiGroup kind name", "name"),
    "spec.trainer": ("args command env image numNodes numProcPerNode resourcesPerNode", ""),
    "spec.trainer.resourcesPerNode": ("claims limits requests", ""),
    "spec.runtimePatches[]": ("manager time trainingRuntimeSpec", "manager"),
    "spec.runtimePatches[].trainingRuntimeSpec": ("template", ""),
    "spec.runtimePatches[].trainingRuntimeSpec.template": ("metadata spec", ""),
    "spec.runtimePatches[].trainingRuntimeSpec.template.spec": ("replicatedJobs", ""),
    "spec.runtimePatches[].trainingRuntimeSpec.template.spec.replicatedJobs[]": ("name template", "name"),
}
SKY = "name workdir num_nodes resources file_mounts service pool setup run envs secrets volumes config"
SKY_RESOURCES = "infra accelerators cpus memory instance_type use_spot disk_size image_id ports labels autostop"


def job(**changes: Any) -> Job:
    values = {"project": "birds", "exp": "Small_net", "id": "2026-11-29x08-15-00", "method": "kubernetes", "place": "."}
    asked = {"words": [], "folder": "/shared/birds/small.1", "gpus": 2, "cpus": 8, "memory": 16384}
    return Job.model_validate({**values, **asked, **changes})


def check(value: Any, table: dict[str, tuple[str, str]], path: str = "") -> None:
    """Assert the keys of a manifest's objects, level by level."""
    for item in value if isinstance(value, list) else ():
        check(item, table, f"{path}[]")
    if isinstance(value, dict):
        known, required = table.get(path, ("", ""))
        assert not known or set(required.split()) <= set(value) <= set(known.split()), path
        for name, each in value.items():
            check(each, table, f"{path}.{name}".lstrip("."))


def test_a_train_job_has_the_published_keys_and_kueues_label() -> None:
    cluster = Kubernetes(image="registry.example/t:1", folder="/shared", volume="images", queue="team", namespace="ml")
    manifest = yaml.safe_load(yaml_text(train_job(job(), cluster)))
    check(manifest, TRAIN_JOB)
    assert (manifest["apiVersion"], manifest["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"} and manifest["spec"]["suspend"]
    assert re.fullmatch("[a-z]([a-z0-9-]{0,41}[a-z0-9])?", manifest["metadata"]["name"])
    trainer = manifest["spec"]["trainer"]
    assert trainer["command"] == ["sh", "/shared/birds/small.1/job.sh"] and trainer["numNodes"] == 1
    limits = {"nvidia.com/gpu": "2", "cpu": "8", "memory": "16384Mi"}
    assert trainer["resourcesPerNode"] == {"limits": limits, "requests": limits}
    (patch,) = manifest["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"jobs": "/shared", "shm": "/dev/shm"} and {each["name"] for each in pod["volumes"]} == set(mounts)
    assert "env" not in pod["containers"][0]  # which Trainer refuses of its own container

    small = train_job(job(gpus=0, cpus=0, memory=0), cluster.model_copy(update={"queue": ""}))
    assert "labels" not in small["metadata"] and "suspend" not in small["spec"]
    assert "resourcesPerNode" not in small["spec"]["trainer"]


def test_a_sky_task_has_the_published_keys() -> None:
    rented = Skypilot(accelerators="H100", infra="aws", use_spot=True, image="registry.example/t:1")
    task = yaml.safe_load(yaml_text(sky_task(job(), rented)))
    check(task, {"": (SKY, "run"), "resources": (SKY_RESOURCES, "")})
    assert task["resources"] == {
        **{"infra": "aws", "accelerators": "H100:2", "cpus": "8+", "memory": "16+", "use_spot": True},
        **{"image_id": "docker:registry.example/t:1", "autostop": 60},
    }
    assert (task["workdir"], task["num_nodes"], task["run"]) == (".", 1, "sh job.sh\n")
    assert sky_task(job(gpus=0, cpus=0, memory=0), Skypilot(idle_minutes=0))["resources"] == {}
