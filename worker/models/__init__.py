"""Model files on this machine: found, downloaded, checked, linked, merged and evicted."""
