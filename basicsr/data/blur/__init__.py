"""Realistic motion blur for sharp photographs."""
