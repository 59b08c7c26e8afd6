"""A1111's samplers: the denoiser, noise schedules, random numbers, and the samplers themselves."""
