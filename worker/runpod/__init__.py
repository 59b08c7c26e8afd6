"""To RunPod: takes jobs, runs them, posts results, stops jobs, reports an unfit worker."""
