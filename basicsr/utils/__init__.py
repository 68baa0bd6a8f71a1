"""Shared by all packages: errors, files, devices, checkpoints, registries, the frame of programs."""
