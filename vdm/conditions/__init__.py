"""Conditions: what a clip is to show, as tokens, maps and embeddings. Every file is one condition."""
