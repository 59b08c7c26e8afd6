"""Brings the pictures to the caller: in the result, into a bucket, or to the job's own URLs."""
