"""Hydra looks for launchers in this namespace and nowhere else; the launcher itself is vdm/slurm/launcher.py."""

from vdm.slurm import launcher


class SlurmLauncher(launcher.SlurmLauncher):
    """hydra/launcher=slurm"""
