"""Networks: no files, no options, no choice of a device. Files named `*_arch.py` register themselves."""
