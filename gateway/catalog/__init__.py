"""What a back has: its lists, cached, so that reading them starts no worker."""
