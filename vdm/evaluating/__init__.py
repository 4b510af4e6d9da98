"""evaluate.py: what a run makes, or a folder of anybody's videos, measured by a protocol."""
