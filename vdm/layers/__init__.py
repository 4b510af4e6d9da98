"""Building blocks of the backbones: attention, residual and temporal layers, embeddings. torch and einops only."""
