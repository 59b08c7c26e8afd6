"""The sites that models come from: the references to each site, its metadata and its tokens.

Pure: a host states which requests to send and reads the answers; `worker.http` sends them.
"""
