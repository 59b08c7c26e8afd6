"""A1111's samplers and noise schedules, built from diffusers' schedulers."""
