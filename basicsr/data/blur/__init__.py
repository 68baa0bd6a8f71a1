"""Synthetic motion blur of sharp photographs."""
