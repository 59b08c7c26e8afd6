"""A1111's API `/sdapi/v1` over a queue of jobs, for the programs that speak it."""
