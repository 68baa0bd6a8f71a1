"""Export a network to ONNX, to run it without PyTorch.

    python scripts/export_onnx.py                                    # → motion_deblurring_compact.onnx, here
    python scripts/export_onnx.py --weights net_g_300000.pth --output deblur.onnx

Needs `pip install onnx`. If onnxruntime is installed too, the model is checked against PyTorch before it is written.

The model takes `image`, float32 (batch, channels, height, width), RGB in [0, 1], of any batch and size; it includes
padding and cropping. It returns `restored`, of the same size, not clamped. Its metadata state this and the network's
options. It is the network without TLC, which demo.py uses with weights that were validated with it, such as those of
this repository.

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
import json
import warnings
from typing import BinaryIO

import torch
from torch import Tensor, nn

from basicsr.archs.from_weights import build_network, network_options
from basicsr.tasks import default_weights
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.cli import add_param_key, file_or_folder, usage_errors
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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Export a network to ONNX, for images of any size.')
    p.add_argument(
        '--weights',
        type=file_or_folder,
        metavar='FILE',
        help="a checkpoint; default: demo.py's for motion deblurring",
    )
    add_param_key(p)
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
        net = AnySize(build_network(weights)).eval()
    output = args.output or Path(f'{weights.path.stem}.onnx')
    channels = next(parameter.shape[1] for parameter in net.parameters() if parameter.ndim == 4)
    kind = {1: 'grey', 3: 'RGB', 6: 'RGB of the left and the right view'}.get(channels, 'values')
    metadata = {
        'input': f'image: float32 (batch, {channels}, height, width), {kind} in [0, 1], of any size',
        'output': 'restored: float32, of the height and width of the input, not clamped',
        'weights': f'{weights.path.name} ({weights.key})' if weights.key else weights.path.name,
        'network_g': json.dumps(network_options(weights), default=str),
    }

    def write(file: BinaryIO) -> None:
        if output.is_dir() or (output.exists() and output.samefile(weights.path)):
            raise UsageError(
                f'--output: {output} is a folder, or the weights themselves; allowed: another file'
            )
        model = to_onnx(net, channels, metadata)
        difference = compare(model, net, channels)
        if difference is None:
            print('not checked: onnxruntime cannot be imported; pip install onnxruntime')
        elif difference <= TOLERANCE:
            print(f'checked: onnxruntime and PyTorch differ by at most {difference:.1e}')
        else:  # including NaN
            raise UserError(
                f'{output} is not written: onnxruntime and PyTorch differ by {difference:.1e}; '
                f'allowed: {TOLERANCE:g}'
            )
        file.write(model)

    try:
        atomic_write(output, write)  # opens the file first: fails before the work if it cannot be written
    except OSError as error:
        raise UsageError(f'--output: {output} cannot be written: {error.strerror or error}') from None
    print(f'{output}: {output.stat().st_size / 1e6:.1f} MB', *metadata.values(), sep='\n')
    if weights.tlc:
        print(
            'without TLC, which demo.py uses with these weights and which gives better results on large images'
        )


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


def compare(model: bytes, net: nn.Module, channels: int) -> float | None:
    """Returns the largest difference from PyTorch on a random image, or None without onnxruntime."""
    if onnxruntime is None:
        return None
    image = torch.rand(CHECKED[0], channels, *CHECKED[1:])
    with torch.inference_mode():
        expected = net(image).numpy()
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    (restored,) = session.run(None, {'image': image.numpy()})
    return float(abs(restored - expected).max())
