"""The operations of a Restormer block, each in the way that is fast on the device and in the type of its input.

Features are (B, C, H, W) in channels-last memory, or (…, C). Every operation has one meaning everywhere; the plain
formulation that tests compare with is tests/archs/oracle.py.
"""

from basicsr.ops.autocast import no_autocast
from basicsr.ops.layers import (
    LAYER_NORM_EPS,
    add_products,
    channel_products,
    convolution_to_few,
    depthwise,
    depthwise_rows,
    gated_depthwise,
    gated_depthwise_rows,
    layer_norm,
    like_layout,
    padded_halves,
    padded_inputs,
    pointwise,
    records_gradients,
    uses_triton,
)

__all__ = [
    'LAYER_NORM_EPS',
    'add_products',
    'channel_products',
    'convolution_to_few',
    'depthwise',
    'depthwise_rows',
    'gated_depthwise',
    'gated_depthwise_rows',
    'layer_norm',
    'like_layout',
    'no_autocast',
    'padded_halves',
    'padded_inputs',
    'pointwise',
    'records_gradients',
    'uses_triton',
]
