"""Model files to modules: checkpoint layouts, motion modules, text encoder, VAE."""
