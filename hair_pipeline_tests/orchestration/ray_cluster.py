"""A Ray cluster on this machine with one pretended GPU, for as long as its stdin is open.

Prints the address of the job server; for every line on stdin prints all jobs with what they asked for, as JSON.
"""

import json
import sys

import ray
from ray.dashboard.modules.job.common import JobInfoStorageClient
from ray.experimental import internal_kv

JOB_PREFIX = JobInfoStorageClient.JOB_DATA_KEY_PREFIX.encode()


def main() -> None:
    context = ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        object_store_memory=100 << 20,
        include_dashboard=True,
        dashboard_port=int(sys.argv[1]),
        log_to_driver=False,
    )
    print(f"http://{context.dashboard_url}", flush=True)
    for _ in sys.stdin:
        keys = internal_kv._internal_kv_list(JOB_PREFIX, namespace="job")
        jobs = [json.loads(internal_kv._internal_kv_get(key, namespace="job")) for key in keys]
        print(json.dumps(jobs), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
