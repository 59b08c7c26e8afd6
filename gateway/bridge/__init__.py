"""The bridge: a RunPod endpoint as a server on this machine, for programs that speak other APIs."""
