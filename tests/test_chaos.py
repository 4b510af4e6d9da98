"""Faults of each kind do no harm; and a run that is harmed is seen to be, or the table would be worth nothing."""

import shutil

import pytest

from benchmarks import chaos, chaos_trial

FAST = ("flipped bit in the checkpoint", "half a run.json", "full disk", "dead data worker", "dead rank", "vanished shard",
        "flaky object store", "started twice")  # fmt: skip


@pytest.fixture(scope="module")
def folder(shapes_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    shutil.copytree(shapes_root, folder / "datasets")
    return folder


@pytest.mark.slow
def test_one_fault_of_many_kinds_does_no_harm(folder):
    outcomes = chaos.unleash(folder, len(FAST), 1, kinds=FAST, stages=["autoencoder"])
    assert not chaos.harm(outcomes), chaos.table(outcomes)
    assert set(outcomes) == set(FAST)
    assert outcomes["vanished shard"][chaos_trial.REFUSED] == 1
    assert outcomes["flaky object store"][chaos_trial.RECOVERED] == 1


def test_harm_is_seen(folder, tmp_path):
    (tmp_path / "datasets").symlink_to(folder / "datasets")
    with chaos.blind():
        outcomes = chaos.unleash(tmp_path, 2, 5, kinds=["flipped bit in the checkpoint"], stages=["autoencoder"])
    assert chaos.harm(outcomes), chaos.table(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kind_and_stage(folder, tmp_path):
    (tmp_path / "datasets").symlink_to(folder / "datasets")
    outcomes = chaos.unleash(tmp_path, 34, 2)
    assert len(outcomes) == 17
    assert not chaos.harm(outcomes), chaos.table(outcomes)
