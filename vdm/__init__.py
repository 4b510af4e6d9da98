"""The video diffusion library: knows neither Dysen nor any dataset."""
