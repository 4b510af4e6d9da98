"""The video diffusion library: knows neither Dysen nor any dataset."""

from vdm.compat import watch

watch()
