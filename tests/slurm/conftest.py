"""The cluster, for as long as the tests of a file take. A machine has one: other processes of tests wait for it."""

import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from clusters import HERE, Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        pytest.skip("SLURM is not installed: apt-get install slurm-wlm munge")
    with (Path(tempfile.gettempdir()) / "slurm-of-tests.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield from _running(tmp_path_factory.mktemp("cluster"))


def _running(folder):
    started = subprocess.run(["bash", str(HERE / "cluster.sh"), "start", str(folder)], capture_output=True, text=True,
                             timeout=60, check=False, stdin=subprocess.DEVNULL)  # fmt: skip
    try:
        if started.returncode == 3:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stdout + started.stderr
        yield Cluster(folder)
    finally:
        subprocess.run(["bash", str(HERE / "cluster.sh"), "stop", str(folder)], timeout=60, check=False)
