"""From the engine to the caller: pictures in the result, in a bucket, or at the job's own URLs."""
