"""Export a network to ONNX, to run it without PyTorch.

    python scripts/export_onnx.py                                    # → motion_deblurring_compact.onnx, here
    python scripts/export_onnx.py --weights net_g_300000.pth --output deblur.onnx

Needs `pip install onnx`; if onnxruntime is installed, too, the model is run once before it is written.

The model takes `image`, float32 (batch, channels, height, width), RGB in [0, 1], of any batch and size: padding
and cropping are in it. It gives `restored`, of the same size, not clamped. Its metadata say so, and hold the
network's options. It is the network without TLC, which demo.py uses with weights that were
validated with it, as those of this repository were.

Exit status: 0 if the file was written, 1 if it would not give what PyTorch gives, 2 on a wrong argument, 130 after
Ctrl-C, 143 after SIGTERM; an older file is replaced by a whole one or stays.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

# Run as a script, Python looks for modules in scripts/, and the package may not be installed.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr.utils.console import print_any_name
from basicsr.utils.files import expanded
from basicsr.utils.signals import ending_cleanly

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 17  # the first with layer normalisation; runtimes since the end of 2022 have it
TRACED = (2, 19, 29)  # batch, height, width; nothing of it stays in the model
CHECKED = (1, 45, 70)  # other numbers, so that it shows if something did
TOLERANCE = 1e-3  # a quarter of a step of 8 bits: rounding is far below, a wrong model far above


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Export a network to ONNX, for images of any size.')
    parser.add_argument(
        '--weights', type=expanded, metavar='FILE', help='a checkpoint; default: that of demo.py for motion deblurring'
    )  # fmt: skip
    parser.add_argument(
        '--output', type=expanded, metavar='FILE',
        help='the ONNX file, replaced if it is there; default: <name of the weights>.onnx in the working directory',
    )  # fmt: skip
    args = parser.parse_args(argv)
    print_any_name()
    try:
        with ending_cleanly():
            export(args, parser)
    except KeyboardInterrupt:
        return 130
    return 0


def export(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    # Imports are here, not above: --help answers at once, and Ctrl-C is quiet while these seconds pass too.
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        parser.error(f'the package onnx is needed and cannot be imported ({error}); pip install onnx')
    from basicsr.archs.from_weights import build_network, network_options
    from basicsr.tasks import default_weights
    from basicsr.utils.checkpoint import load_weights
    from basicsr.utils.files import atomic_write

    try:
        weights = load_weights(args.weights or default_weights('motion_deblurring'))
        net = any_size(build_network(weights))
    except ValueError as error:
        parser.error(str(error))
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
            parser.error(f'--output {output} is a folder, or the weights themselves; allowed: another file')
        model = to_onnx(net, channels, metadata)
        difference = compare(model, net, channels)
        if difference is None:
            print('not checked: onnxruntime cannot be imported; pip install onnxruntime')
        elif difference <= TOLERANCE:
            print(f'checked: onnxruntime and PyTorch differ by at most {difference:.1e}')
        else:  # nan, too
            said = f'onnxruntime and PyTorch differ by {difference:.1e}; allowed: {TOLERANCE:g}'
            parser.exit(1, f'{parser.prog}: error: {output} is not written: {said}\n')
        file.write(model)

    try:
        atomic_write(output, write)  # opens the file first: without the right to write, no work is done
    except OSError as error:
        parser.error(f'--output {output} cannot be written: {error.strerror or error}')
    print(f'{output}: {output.stat().st_size / 1e6:.1f} MB', *metadata.values(), sep='\n')
    if weights.tlc:
        print('without TLC, which demo.py uses with these weights: on large images its results are better')


def any_size(net: nn.Module) -> nn.Module:
    """`net` for images (B, C, H, W) of any H and W, padded and cropped as by `restore_tensor`.

    Python never decides by a size, as its decision for the traced image would stay in the model: where in the
    image each row and column of the padded one comes from is arithmetic on tensors.
    """
    import torch

    def places(size: int) -> Tensor:
        last = size - 1
        place = torch.arange(size + -size % getattr(net, 'multiple', 8))
        reflected = last - (last - place).abs()
        # A side of n has n - 1 pixels to reflect; where that is too few, the last one is repeated.
        return torch.where(reflected[-1] >= 0, reflected, place.clamp(max=last))

    class AnySize(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x_BCHW: Tensor) -> Tensor:
            H, W = x_BCHW.shape[-2:]
            return self.net(x_BCHW.index_select(2, places(H)).index_select(3, places(W)))[..., :H, :W]

    return AnySize().eval()


def to_onnx(net: nn.Module, channels: int, metadata: dict[str, str]) -> bytes:
    """The content of the file, for a network that takes any size."""
    import onnx
    import torch

    batch, height, width = TRACED
    dynamic = {0: 'batch', 2: 'height', 3: 'width'}
    file = io.BytesIO()
    with warnings.catch_warnings():
        # That the exporter is the older one: the newer cannot do this in PyTorch 2.4, and needs more packages.
        warnings.simplefilter('ignore', DeprecationWarning)
        # That the traced size may matter: AnySize and `compare` see to that.
        warnings.simplefilter('ignore', torch.jit.TracerWarning)
        torch.onnx.export(
            net, (torch.rand(batch, channels, height, width),), file, opset_version=OPSET, dynamo=False,
            input_names=['image'], output_names=['restored'], dynamic_axes={'image': dynamic, 'restored': dynamic},
        )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


def compare(model: bytes, net: nn.Module, channels: int) -> float | None:
    """Largest difference to the network's result for a random image; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    import torch

    batch, height, width = CHECKED
    image = torch.rand(batch, channels, height, width)
    with torch.inference_mode():
        expected = net(image).numpy()
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    (restored,) = session.run(None, {'image': image.numpy()})
    return float(abs(restored - expected).max())


if __name__ == '__main__':
    sys.exit(main())
