"""The embedded world: short clips of coloured shapes whose events, order and pixels are all known."""
