"""Export a network to ONNX, to run it without PyTorch.

    python scripts/export_onnx.py                                    # → motion_deblurring_compact.onnx, here
    python scripts/export_onnx.py --weights net_g_300000.pth --output deblur.onnx --fp16

Needs `pip install onnx`. If onnxruntime is installed too, the model is checked against PyTorch before it is written.

The model takes `image`, float32 (batch, channels, height, width), RGB in [0, 1], of any batch and size; it includes
padding and cropping. It returns `restored`, of the same size, not clamped. Its metadata state this and the network's
options. Attention is over local windows (TLC) where demo.py's is: with weights that were validated with it, such as
those of this repository; --tlc and --no-tlc choose.

With --fp16, weights and features are in half precision, and the file has about half the size. `image` and `restored`
are float32 all the same, and so are the first and the last convolution and all sums over pixels, which can be far
beyond half precision's largest number, 65504.

Exit status: 0 if the file was written, 1 if the model differs from PyTorch or the file cannot be written, 2 on wrong
arguments, 130 after Ctrl-C, 143 after SIGTERM. An existing file is replaced once the new one is complete.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('scripts.export_onnx'))

import argparse
import io
import itertools
import json
import warnings
from typing import BinaryIO

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from basicsr.archs.from_weights import build_network, network_options
from basicsr.archs.restormer_arch import MDTA, Restormer
from basicsr.inference import Restorer
from basicsr.inference.strip_engine import runs_in_strips
from basicsr.inference.tlc import window_indices
from basicsr.ops import attend_and_project, attention_statistics
from basicsr.tasks import default_weights
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.cli import add_param_key, add_tlc, file_or_folder, usage_errors
from basicsr.utils.errors import UsageError, UserError
from basicsr.utils.files import atomic_write

try:
    import onnx
except ImportError:
    onnx = None
try:
    import onnxruntime
except ImportError:
    onnxruntime = None

OPSET = 17  # the first with layer normalisation; runtimes since the end of 2022 support it
TRACED = (2, 19, 29)  # batch, height, width: the model does not depend on them
CHECKED = (1, 45, 70)  # other numbers, to show that it does not
TOLERANCE = 1e-3  # a quarter of an 8-bit level: rounding errors are far below, a wrong model far above
TOLERANCE_FP16 = 2e-3  # half a level: a value of 8 bits changes by one level at most


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Export a network to ONNX, for images of any size.')
    p.add_argument(
        '--weights',
        type=file_or_folder,
        metavar='FILE',
        help="a checkpoint; default: demo.py's for motion deblurring",
    )
    add_param_key(p)
    add_tlc(p)
    p.add_argument(
        '--fp16',
        action='store_true',
        help='weights and features in half precision, for a file of about half the size; input and output stay float32',
    )
    p.add_argument(
        '--output', type=file_or_folder, metavar='FILE',
        help='the ONNX file, replaced if it exists; default: <name of the weights>.onnx in the working directory',
    )  # fmt: skip
    return p


def main(args: argparse.Namespace) -> None:
    if onnx is None:
        raise UsageError('the package onnx is required; pip install onnx')
    with usage_errors():
        weights = load_weights(args.weights or default_weights('motion_deblurring'), args.param_key)
        net = build_network(weights)
        # The model, which has sums and windows of its own, is compared with this.
        restorer = Restorer(build_network(weights), 'cpu', 'fp32', tlc=weights.with_tlc(args.tlc))
        if restorer.window:
            use_windows(net, restorer.window)
        if args.fp16:
            use_half(net)
        net = AnySize(net).eval()
    output = args.output or Path(f'{weights.path.stem}.onnx')
    channels = restorer.channels
    kind = {1: 'grey', 3: 'RGB', 6: 'RGB of the left and the right view'}.get(channels, 'values')
    metadata = {
        'input': f'image: float32 (batch, {channels}, height, width), {kind} in [0, 1], of any size',
        'output': 'restored: float32, of the height and width of the input, not clamped',
        'weights': f'{weights.path.name} ({weights.key})' if weights.key else weights.path.name,
        'network_g': json.dumps(network_options(weights), default=str),
        'tlc': f'TLC in windows of {restorer.window} pixels' if restorer.window else 'without TLC',
        'precision': 'fp16, with sums in fp32' if args.fp16 else 'fp32',
    }
    tolerance = TOLERANCE_FP16 if args.fp16 else TOLERANCE
    # The second size has more than one window, and sums over more pixels.
    checked = [CHECKED, (1, 45, (restorer.window or 400) + 51)]

    def write(file: BinaryIO) -> None:
        if output.is_dir() or (output.exists() and output.samefile(weights.path)):
            raise UsageError(
                f'--output: {output} is a folder, or the weights themselves; allowed: another file'
            )
        model = to_onnx(net, channels, metadata)
        difference = compare(model, restorer, checked)
        if difference is None:
            print('not checked: onnxruntime cannot be imported; pip install onnxruntime')
        elif difference <= tolerance:
            print(f'checked: onnxruntime and PyTorch differ by at most {difference:.1e}')
        else:  # including NaN
            raise UserError(
                f'{output} is not written: onnxruntime and PyTorch differ by {difference:.1e}; '
                f'allowed: {tolerance:g}'
            )
        file.write(model)

    try:
        atomic_write(output, write)  # opens the file first: fails before the work if it cannot be written
    except OSError as error:
        raise UsageError(f'--output: {output} cannot be written: {error.strerror or error}') from None
    print(f'{output}: {output.stat().st_size / 1e6:.1f} MB', *metadata.values(), sep='\n')


class AnySize(nn.Module):
    """Pads images (B, C, H, W) of any H and W as `restore_tensor` does, applies the network, and crops the result.

    Padding is computed by tensors: a decision in Python would be fixed to the traced size.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_BCHW: Tensor) -> Tensor:
        H, W = x_BCHW.shape[-2:]
        return self.net(x_BCHW.index_select(2, self.sources(H)).index_select(3, self.sources(W)))[..., :H, :W]

    def sources(self, size: int) -> Tensor:
        """Returns the index that each row (column) of the padded image is copied from."""
        last = size - 1
        index = torch.arange(size + -size % getattr(self.net, 'multiple', 8))
        # Not by abs(), which OpenVINO computes wrong for these integers in a model of a fixed size.
        reflected = torch.minimum(index, 2 * last - index)
        # A side of n has n − 1 pixels to reflect. If that is too few, repeat the last one.
        return torch.where(reflected[-1] >= 0, reflected, index.clamp(max=last))


class LocalAttention(nn.Module):
    """MDTA in TLC's windows, whose number and size depend on the image. As all have the same size, they are gathered
    into a batch of P windows, (P, C, h, w). Where they overlap, the result is their mean."""

    def __init__(self, attn: MDTA, window: int) -> None:
        super().__init__()
        self.attn, self.window = attn, window

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inside_rows, first_rows, last_rows = window_indices(x_BCHW.shape[2], self.window)
        inside_columns, first_columns, last_columns = window_indices(x_BCHW.shape[3], self.window)

        def gather(x_BCHW: Tensor) -> Tensor:
            return rearrange(x_BCHW[:, :, inside_rows][..., inside_columns], 'b c n h m w -> (b n m) c h w')

        qk_BKHW, v_BCHW = self.attn.query_key_value(x_BCHW)
        attn_Phcc = self.attn.attention(attention_statistics(gather(qk_BKHW), self.attn.num_heads))
        y_PChw = attend_and_project(attn_Phcc, gather(v_BCHW), self.attn.project_out)
        counts = {'n': inside_rows.shape[0], 'm': inside_columns.shape[0]}
        y_BCHW = rearrange(y_PChw, '(b n m) c h w -> b c (n h) (m w)', **counts)
        y_BCHW = (y_BCHW.index_select(2, first_rows) + y_BCHW.index_select(2, last_rows)) / 2
        return (y_BCHW.index_select(3, first_columns) + y_BCHW.index_select(3, last_columns)) / 2


def use_windows(net: Restormer, window: int) -> None:
    """Replaces the network's attention by attention over windows of that side at full resolution."""
    levels = [
        (net.encoder_level1, net.decoder_level1, net.refinement),
        (net.encoder_level2, net.decoder_level2),
        (net.encoder_level3, net.decoder_level3),
        (net.latent,),
    ]
    for level, stages in enumerate(levels):
        for block in itertools.chain(*stages):
            block.attn = LocalAttention(block.attn, window >> level)


def use_half(net: nn.Module) -> None:
    """Converts a Restormer to half precision, except for its first and last convolution. Raises ValueError for others.

    Its sums and normalisations are in single precision for features of any type.
    """
    if not runs_in_strips(net):
        raise ValueError(f'--fp16: found the network {type(net).__name__}; allowed: Restormer alone')
    net.half()
    net.patch_embed.float().register_forward_hook(lambda _, inputs, output: output.half())
    net.output.float().register_forward_pre_hook(lambda _, inputs: inputs[0].float())


def to_onnx(net: nn.Module, channels: int, metadata: dict[str, str]) -> bytes:
    """Returns the ONNX file of a network that takes any size."""
    batch, height, width = TRACED
    dynamic = {0: 'batch', 2: 'height', 3: 'width'}
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter is the older one: the newer cannot do this in PyTorch 2.4, and needs more packages.
        warnings.simplefilter('ignore', DeprecationWarning)
        # The traced size could matter: AnySize and `compare` prevent that.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        torch.onnx.export(
            net, (torch.rand(batch, channels, height, width),), file, opset_version=OPSET, dynamo=False,
            input_names=['image'], output_names=['restored'], dynamic_axes={'image': dynamic, 'restored': dynamic},
        )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


def compare(model: bytes, restorer: Restorer, sizes: list[tuple[int, int, int]]) -> float | None:
    """Returns the largest difference from PyTorch on random images of (batch, height, width), or None without
    onnxruntime."""
    if onnxruntime is None:
        return None
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    images = [torch.rand(batch, restorer.channels, *size) for batch, *size in sizes]
    differences = [
        abs(session.run(None, {'image': image.numpy()})[0] - restorer.restore(image).numpy()).max()
        for image in images
    ]
    return float(np.max(differences))  # NaN if any is
