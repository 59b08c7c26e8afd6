"""RunPod's network volumes over their S3 API: files are sent, checked and resumed."""
