"""The cluster, for as long as its tests take."""

import shutil
import subprocess

import pytest
from clusters import HERE, Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        pytest.skip("SLURM is not installed: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("cluster")
    started = subprocess.run(["bash", str(HERE / "cluster.sh"), "start", str(folder)], capture_output=True, text=True,
                             timeout=60, check=False, stdin=subprocess.DEVNULL)  # fmt: skip
    try:
        if started.returncode == 3:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stdout + started.stderr
        yield Cluster(folder)
    finally:
        subprocess.run(["bash", str(HERE / "cluster.sh"), "stop", str(folder)], timeout=60, check=False)
