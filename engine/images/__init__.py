"""Pictures without a diffusion model: reading, resizing, masks, upscalers and PNG info."""
