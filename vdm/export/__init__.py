"""From a run to a folder that `diffusers.TextToVideoSDPipeline` loads: python -m vdm.export run=<run> to=<folder>."""
