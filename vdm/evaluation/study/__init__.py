"""The human study: a blinded page on which people rate videos of several systems, and the table of their ratings."""

from vdm.evaluation.study.command import main

__all__ = ["main"]
