"""Datasets as code: records become tar shards, shards become batches. Knows nothing of models."""
