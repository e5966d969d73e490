"""Manifests of jobs: a TrainJob of Kubeflow Trainer with the queue of Kueue, and a task of SkyPilot."""

from __future__ import annotations

from typing import Any

from projects.jobs import SCRIPT, Job
from projects.submitters import Kubernetes, Skypilot

GRACE_S = 120  # for a pod to save
QUEUE = "kueue.x-k8s.io/queue-name"
NODE = "node"  # the job of Trainer's runtimes that trains, and its container


def train_job(job: Job, cluster: Kubernetes) -> dict[str, Any]:
    """Return a TrainJob of one node (trainer.kubeflow.org/v1alpha1), suspended until Kueue lets it begin.

    The claim with the job's folder is added to the runtime's pods by a patch.
    """
    asked = {"nvidia.com/gpu": job.gpus, "cpu": job.cpus, "memory": f"{job.memory}Mi" if job.memory else 0}
    limits = {name: str(value) for name, value in asked.items() if value}
    volumes = [
        {"name": "jobs", "persistentVolumeClaim": {"claimName": cluster.volume}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # loader processes hand batches over in it
    ]
    mounts = [{"name": "jobs", "mountPath": cluster.folder}, {"name": "shm", "mountPath": "/dev/shm"}]
    pod = {
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [{"name": NODE, "volumeMounts": mounts}],
        "volumes": volumes,
    }
    patch = {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}]}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": job.name,
            "namespace": cluster.namespace,
            **({"labels": {QUEUE: cluster.queue}} if cluster.queue else {}),
        },
        "spec": {
            **({"suspend": True} if cluster.queue else {}),
            "runtimeRef": {"name": cluster.runtime},
            "trainer": {
                "image": cluster.image,
                "command": ["sh", f"{job.folder}/{SCRIPT}"],
                "numNodes": 1,
                **({"resourcesPerNode": {"limits": limits, "requests": dict(limits)}} if limits else {}),
            },
            "runtimePatches": [{"manager": "trainer", "trainingRuntimeSpec": {"template": {"spec": patch}}}],
        },
    }


def sky_task(job: Job, rented: Skypilot) -> dict[str, Any]:
    """Return a task of SkyPilot: the job's folder is its work folder, whose script it runs."""
    resources = {
        "infra": rented.infra,
        "accelerators": f"{rented.accelerators}:{job.gpus}" if rented.accelerators and job.gpus else "",
        "cpus": f"{job.cpus}+" if job.cpus else "",
        "memory": f"{job.memory / 1024:.4g}+" if job.memory else "",  # GiB
        "image_id": f"docker:{rented.image}" if rented.image else "",
        "use_spot": rented.use_spot,
        "autostop": rented.idle_minutes,
    }
    wanted = {name: value for name, value in resources.items() if value}
    return {"name": job.name, "workdir": ".", "num_nodes": 1, "resources": wanted, "run": f"sh {SCRIPT}\n"}
