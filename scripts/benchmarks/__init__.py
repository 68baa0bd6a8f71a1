"""What scripts/benchmark.py measures: a module for each of its commands, and what they share."""

PRECISIONS = ('fp32', 'bf16', 'fp16')
PLAIN_MODES = ('plain+bf16', 'plain+compile', 'plain+bf16+compile')  # beside `plain`, of which ratios are taken
