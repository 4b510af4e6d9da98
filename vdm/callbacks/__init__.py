"""What happens around a training step: checkpoints, moving average, progress, sample videos."""
