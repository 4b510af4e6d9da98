"""First stages: video to latent and back. Every file is one network or one part of its loss."""
