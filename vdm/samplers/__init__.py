"""Samplers: from noise to a clean latent with a denoiser, one function a file, all with one contract.

    sampler(denoise, noise, schedule, *, <settings>, step_noise=None, callback=None) -> latent

`denoise(x, timestep)` gives the clean latent that a noisy one means. The settings of each come from conf/sampler.
"""
