"""What scripts/benchmark.py measures: a module for each of its commands, and what they share."""

PRECISIONS = ('fp32', 'bf16', 'fp16')
