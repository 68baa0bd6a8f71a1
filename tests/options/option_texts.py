"""A short option file, and cases as text."""

import re

SMALL = """\
name: small
datasets:
  train:
    type: Dataset_PairedImage
    dataroot_lq: lq
    dataroot_gt: gt
    gt_size: 64
    batch_size_per_gpu: 4
network_g:
  type: Restormer
  dim: 8
train:
  total_iter: 100
  scheduler:
    type: CosineAnnealingRestartCyclicLR
    periods: [100]
    eta_mins: [1e-6]
  optim_g: {type: AdamW, lr: 3e-4}
  pixel_opt:
    type: L1Loss
val:
  metrics:
    psnr:
      type: calculate_psnr
logger:
  print_freq: 10
"""


def cases(text):
    """(inputs, expected lines) of each case. Inputs are lines, or parts of a line between ` | `; `\\n` breaks a line in
    them. Expected lines are indented; there may be none."""
    found = re.findall(r'((?:^\S.*\n)+)((?:^    .*\n)*)', text, re.MULTILINE)
    return [
        (
            [each.replace('\\n', '\n') for each in re.split(r'\n| \| ', inputs.strip('\n'))],
            [*map(str.strip, expected.splitlines())],
        )
        for inputs, expected in found
    ]
