"""The operations of a Restormer block, each in the fastest way for the device and the type of its input.

Features are (B, C, H, W) in channels-last memory, or (…, C). Each operation has one meaning in training, plain
inference and strips; tests compare it with the plain formulation, `basicsr/archs/restormer_reference.py`.
"""

from basicsr.ops.channel_attention import (
    AttentionStatistics,
    attend_and_project,
    attention_statistics,
    merge_projection,
)
from basicsr.ops.dispatch import no_autocast, records_gradients, uses_triton
from basicsr.ops.layers import (
    channel_slice,
    depthwise,
    layer_norm,
    like_layout,
    padded_feed_forward,
    padded_halves,
    padded_inputs,
    pointwise,
)
from basicsr.ops.rows import DepthwiseRows, LayerNormRows, convolution_to_few

__all__ = [
    'AttentionStatistics',
    'DepthwiseRows',
    'LayerNormRows',
    'attend_and_project',
    'attention_statistics',
    'channel_slice',
    'convolution_to_few',
    'depthwise',
    'layer_norm',
    'like_layout',
    'merge_projection',
    'no_autocast',
    'padded_feed_forward',
    'padded_halves',
    'padded_inputs',
    'pointwise',
    'records_gradients',
    'uses_triton',
]
