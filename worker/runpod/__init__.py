"""To RunPod: takes jobs, runs them, posts their results, and ends the worker in good order."""
