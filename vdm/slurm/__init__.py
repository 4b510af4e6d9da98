"""What a cluster run by SLURM needs: sweeps as job arrays, jobs that come back after a warning, jobs that wait for others."""
