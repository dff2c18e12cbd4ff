r"""Fills `gke_jobset.yaml` in for a pod of TPUs, and prints it.

    python launch/gke.py --topology v5e:16x16 --slices 2 --image REGISTRY/voxinstruct-jax:1 --queue tpu \
        -- voxinstruct train configs/pretrain_ar.py --out /runs/pretrain_ar > job.yaml
    kubectl apply -f job.yaml

The image has this package installed; the claim is a volume that all hosts can write. The run's folder, the shards and
the compile cache lie under `/runs`.
"""

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).with_name("gke_jobset.yaml")
ACCELERATORS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
    "tpu7x": ("tpu7x", 3),
}
"""GKE's name of each chip, and its number of dimensions."""
CHIPS_A_HOST = 4
ONE_HOST = {1: 1, 4: 4, 8: 8}
"""Chips of slices that are one host, by their number, where the chip has two dimensions."""
LONGEST_NAME = 40
"""Pods are called after the JobSet, with a slice, a host and five letters after it: 63 characters in all."""


def main() -> int:
    """Prints the filled form; returns 0, or 2 when a value cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, help="v5e:16x16, v5p:4x4x8, v6e:16x16, ... as `plan` takes it")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--image", required=True)
    parser.add_argument("--name", default="voxinstruct")
    parser.add_argument("--queue", required=True, help="a LocalQueue of Kueue")
    parser.add_argument("--claim", default="runs", help="a PersistentVolumeClaim that all hosts can write")
    parser.add_argument("--retries", type=int, default=10, help="failures that are started again; preemptions are free")
    parser.add_argument("--spot", action="store_true", help="take spot machines")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    try:
        filled = fill(yaml.safe_load(TEMPLATE.read_text()), options)
    except ValueError as error:
        parser.error(str(error))
    print(yaml.safe_dump(filled, sort_keys=False), end="")
    return 0


def fill(job_set: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Writes the options into the form, and returns it.

    Raises:
        ValueError: A value cannot be.
    """
    accelerator, shape, hosts, chips = describe(options.topology)
    if options.slices < 1:
        raise ValueError(f"--slices {options.slices}: expected 1 or more")
    if not re.fullmatch(rf"[a-z]([a-z0-9-]{{0,{LONGEST_NAME - 2}}}[a-z0-9])?", options.name):
        raise ValueError(f"--name {options.name}: expected at most {LONGEST_NAME} lower-case letters, digits or -")
    job_set["metadata"]["name"] = options.name
    job_set["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = options.queue
    job_set["spec"]["failurePolicy"]["maxRestarts"] = options.retries
    [slices] = job_set["spec"]["replicatedJobs"]
    slices["replicas"] = options.slices
    job = slices["template"]["spec"]
    job |= {"completions": hosts, "parallelism": hosts}
    pod = job["template"]["spec"]
    pod["nodeSelector"] = {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    if options.spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
        pod["tolerations"] = [{"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"}]
    [container] = pod["containers"]
    container |= {"image": options.image, "command": options.command}
    container["resources"] = {kind: {"google.com/tpu": chips} for kind in ("requests", "limits")}
    [volume] = pod["volumes"]
    volume["persistentVolumeClaim"]["claimName"] = options.claim
    return job_set


def describe(topology: str) -> tuple[str, str, int, int]:
    """Returns GKE's name of the chip, the shape, and how many hosts of how many chips a slice has.

    Raises:
        ValueError: There is no such slice.
    """
    chip, _, shape = topology.partition(":")
    if chip not in ACCELERATORS:
        raise ValueError(f"--topology {topology}: expected CHIP:SHAPE; chips: {', '.join(ACCELERATORS)}")
    accelerator, dimensions = ACCELERATORS[chip]
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (dimensions - 1), shape):
        raise ValueError(
            f"--topology {topology}: {chip} has shapes of {dimensions} numbers, such as 4x4{'x4' * (dimensions - 2)}"
        )
    total = math.prod(int(side) for side in shape.split("x"))
    chips = ONE_HOST.get(total, CHIPS_A_HOST) if dimensions == 2 else CHIPS_A_HOST
    if total % chips:
        raise ValueError(f"--topology {topology}: {total} chips are no whole hosts of {chips}")
    return accelerator, shape, total // chips, chips


if __name__ == "__main__":
    sys.exit(main())
