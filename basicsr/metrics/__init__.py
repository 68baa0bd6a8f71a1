"""Metrics. Every file in this folder registers itself."""
