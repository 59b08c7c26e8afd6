"""What A1111 is sent for a picture, and what its answer must prove."""
