"""ControlNet and ADetailer: the units of a job, their models, and the proof. Pure."""
