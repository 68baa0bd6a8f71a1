"""The exact result for an image in bounded memory, and fast.

All that a transformer block needs of the rest of the image is sums over pixels (the attention statistics) and one row
above and below (the 3×3 depthwise convolutions). So each half of a block runs on horizontal strips: sum the statistics
over all strips, compute the small attention matrices, apply them strip by strip. Unlike tiles, strips leave no seams
and change no statistics.

Strips are also fast on a CPU: temporaries stay near the caches, in memory that is used again and again, where touching
a fresh page costs more than the arithmetic on it. Pixels are channels-last, so that every 1×1 convolution is a matrix
product without copies, and blocks work in place: features at full size exist once. Each core computes strips of its own
(`workers.py`), with kernels in C between the matrix products (`basicsr/ops/cpu_kernels.c`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable
from itertools import pairwise
from math import ceil
from typing import TypeGuard

import torch
from torch import Tensor, nn

from basicsr.archs.restormer_arch import Downsample, Restormer, TransformerBlock, Upsample
from basicsr.inference.strip_layers import Attention, Dense, FeedForward, Point, Strip
from basicsr.inference.tlc import Cells
from basicsr.inference.workers import MOST_WORKERS, Workers, worker_count
from basicsr.ops import no_autocast
from basicsr.utils.memory import empty, keep_freed_memory

# The largest temporary of a strip, in bytes. Smaller strips fit a CPU's caches better, but the time of a matrix product
# then goes into its preparation: measured on two cores with AMX. A GPU needs more work at once.
STRIP_BYTES_CPU = 4_000_000
STRIP_BYTES = 256_000_000

# What `StripEngine.memory` counts.
_TEMPORARIES = 10  # of each worker: simultaneous temporaries of a strip, in sizes of the largest one
_IMAGES = 3  # at full size: input, padded input, output
_CELL_MATRICES = 6  # of a cell or window: Gram matrices, their sums, the steps of the softmax
_SLACK = 128_000_000  # bytes: gaps in the heap, and what the libraries keep for each size of a matrix product

# Record CUDA graphs for images of up to this many pixels (Full HD). Beyond, launching takes a small part of the time,
# and a graph has memory of its own.
_RECORDED_PIXELS = 2**21

# Takes each half of a block that is done, and its level.
Advance = Callable[[Attention | FeedForward, int], None]


def runs_in_strips(net: nn.Module) -> TypeGuard[Restormer]:
    """Whether `StripEngine` computes what the network does: true for a Restormer, and for a subclass that inherits its
    forward pass and has only its kinds of parts."""

    if type(net) is Restormer or not isinstance(net, Restormer):
        return isinstance(net, Restormer)

    def is_known(part: nn.Module) -> bool:
        if isinstance(part, nn.Conv2d) and (part.padding_mode, part.dilation) != ('zeros', (1, 1)):
            return False
        layers = nn.Conv2d, nn.PixelShuffle, nn.PixelUnshuffle, nn.Sequential
        return part is net or type(part) in layers or type(part).__module__ == Restormer.__module__

    methods = ('forward', '_run', '_reduce')
    inherited = all(getattr(type(net), name) is getattr(Restormer, name) for name in methods)
    return inherited and all(map(is_known, net.modules()))


class StripEngine:
    """Runs a Restormer in strips. The result equals the network's, up to rounding.

    Args:
        net: see `runs_in_strips`. Its weights are taken as they are now; the engine may or may not see later changes.
        dtype: type of features and products; None for that of the weights. Sums, normalisations, softmax, and the first
            and the last convolution are never below single precision.
        window: side of TLC's windows at full resolution, a multiple of 8; None for plain inference.
        strip_bytes: size of the largest temporary; None for a size that is fast on the network's device. A strip has
            at least one row. May change between calls.

    `progress`, if set, is called after each half of a block with the part of the work that is done, up to 1. An
    exception that it raises ends the call. A recorded CUDA graph does not call it.
    """

    multiple = Restormer.multiple
    progress: Callable[[float], None] | None = None
    most_workers = MOST_WORKERS

    def __init__(
        self,
        net: Restormer,
        dtype: torch.dtype | None = None,
        window: int | None = None,
        strip_bytes: int | None = None,
    ) -> None:
        weight = net.patch_embed.proj.weight
        self.device = weight.device
        self.full_dtype = torch.promote_types(weight.dtype, torch.float32)
        self.dtype = dtype or self.full_dtype
        self.dim = len(weight)
        if window is not None and (window < 1 or window % self.multiple):
            raise ValueError(f'window: found {window}; allowed: a positive multiple of {self.multiple}')
        self.window = window
        self.grids: dict[tuple[int, int, int | None], Cells] = {}
        self.recorded = _Recorded()
        self.strip_bytes = strip_bytes or (STRIP_BYTES_CPU if self.device.type == 'cpu' else STRIP_BYTES)

        # The engine's own parameters, in the same memory: they stay there when the network moves.
        own = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in net.parameters()}
        net = copy.deepcopy(net, own)

        def dense(part: Downsample | Upsample, shuffled: bool = False) -> Dense:
            convolution = part.body[0]
            assert isinstance(convolution, nn.Conv2d)
            return Dense(convolution, self.dtype, shuffled)

        def halves(*levels: nn.Sequential) -> list[Attention | FeedForward]:
            found: list[Attention | FeedForward] = []
            for level in levels:
                for block in level:
                    assert isinstance(block, TransformerBlock)
                    found.append(Attention(block.norm1, block.attn, self.dtype))
                    found.append(FeedForward(block.norm2, block.ffn, self.dtype))
            return found

        with torch.no_grad():
            self.embed = Dense(net.patch_embed.proj, self.full_dtype)
            encoder = (net.encoder_level1, net.encoder_level2, net.encoder_level3, net.latent)
            self.encoder = [halves(level) for level in encoder]
            self.down = [dense(part) for part in (net.down1_2, net.down2_3, net.down3_4)]
            self.up = [dense(part, shuffled=True) for part in (net.up2_1, net.up3_2, net.up4_3)]
            self.reduce = {
                level: [
                    Point(half, self.dtype)
                    for half in zip(conv.weight.chunk(2, 1), (None, conv.bias), strict=True)
                ]
                for level, conv in ((1, net.reduce_chan_level2), (2, net.reduce_chan_level3))
            }
            self.decoder = [
                halves(net.decoder_level1, net.refinement),
                halves(net.decoder_level2),
                halves(net.decoder_level3),
            ]
            self.skip = None
            if net.dual_pixel_task:
                self.skip = Point((net.skip_conv.weight, net.skip_conv.bias), self.full_dtype)
            self.output = Dense(net.output, self.full_dtype)
        self.out_channels = len(self.output.weight)
        # Channels of the largest temporary per column at full resolution: lower levels have fewer columns.
        self.levels = [*enumerate(self.encoder), *enumerate(self.decoder)]
        self.widest = max(
            [8 * self.dim, *(half.channels >> level for level, halves in self.levels for half in halves)]
        )

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W); H and W multiples of 8, values in [0, 1], the result not clamped."""
        B, _, H, W = x_BCHW.shape
        if H % self.multiple or W % self.multiple:
            raise ValueError(
                f'input of {tuple(x_BCHW.shape)}: height and width must be multiples of {self.multiple}'
            )
        y_BHWC = torch.empty(B, H, W, self.out_channels, dtype=self.full_dtype, device=self.device)
        if self.device.type == 'cpu':
            keep_freed_memory()
        with torch.inference_mode(), no_autocast(self.device), torch.cuda.device_of(x_BCHW):
            if self._is_recorded(B * H * W):
                key = (x_BCHW.shape, x_BCHW.dtype, self.strip_bytes)
                self.recorded.run(key, self._restore_all, x_BCHW, y_BHWC)
            else:
                self._restore_all(x_BCHW, y_BHWC)
        return y_BHWC.permute(0, 3, 1, 2)

    def _is_recorded(self, pixels: int) -> bool:
        if self.device.type != 'cuda' or pixels > _RECORDED_PIXELS:
            return False
        # A recording's input and result are ordered on this stream only.
        return torch.cuda.current_stream() == torch.cuda.default_stream()

    def _restore_all(self, x_BCHW: Tensor, y_BHWC: Tensor) -> None:
        advance = self._counter(len(x_BCHW))
        # Workers of this call: several threads may restore at once.
        with Workers(self.device, self.most_workers) as workers:
            for x_CHW, y_HWC in zip(x_BCHW, y_BHWC, strict=True):  # one by one: each has its own statistics
                self._restore(x_CHW.permute(1, 2, 0), y_HWC, workers, advance)

    def _counter(self, images: int) -> Advance:
        """Returns a function that counts the work of a half of a block at a level, and calls `progress`."""
        progress = self.progress
        if progress is None:
            return lambda half, level: None

        def work(half: Attention | FeedForward, level: int) -> int:
            return (half.channels >> level) ** 2  # a level has 1/4^level of the pixels

        total = images * sum(work(half, level) for level, halves in self.levels for half in halves)
        done = 0

        def advance(half: Attention | FeedForward, level: int) -> None:
            nonlocal done
            done += work(half, level)
            progress(done / total)

        return advance

    def memory(self, H: int, W: int) -> int:
        """Upper bound of the bytes that a call needs for each image, with input and output, without the weights."""
        row, workers = self._row_bytes(W), worker_count(self.device, self.most_workers)
        strips = max(min(workers * self.strip_bytes, H * row), workers * row)
        return self._at_full_size(H, W) + _TEMPORARIES * strips

    def fit(self, H: int, W: int, limit: int) -> bool:
        """Shrink the strips, and take fewer workers, until `memory` is within a limit. False if it cannot be."""
        if self.memory(H, W) <= limit:
            return True
        left, least = limit - self._at_full_size(H, W), _TEMPORARIES * self._row_bytes(W)
        if left < least:
            return False
        self.most_workers = worker_count(self.device, min(self.most_workers, left // least))
        self.strip_bytes = min(self.strip_bytes, left // (_TEMPORARIES * self.most_workers))
        return True

    def _at_full_size(self, H: int, W: int) -> int:
        # In units of H·W·dim: the decoder's first level takes 2 (twice the width), and levels 2 to 4 take 0.5, 0.25 and
        # 0.125. On a CPU, half of the first level takes no pages until levels 3 and 4 are free.
        levels = 2.5 if self.device.type == 'cpu' else 2.875
        channels = max(self.embed.weight.shape[1], self.out_channels)
        images = _IMAGES * H * W * channels * self.full_dtype.itemsize
        return int(levels * self.dim * H * W * self.dtype.itemsize) + images + self._cells(H, W) + _SLACK

    def _cells(self, H: int, W: int) -> int:
        """Bytes of the matrices of TLC's cells and windows, at the level that needs most."""
        if self.window is None:
            return 0
        most = 0
        for level, halves in self.levels:
            cells = Cells.of(H >> level, W >> level, self.window >> level)
            numel = max((half.cell_numel for half in halves if isinstance(half, Attention)), default=0)
            most = max(most, len(cells) * numel, cells.windows * numel)
        return _CELL_MATRICES * most * self.full_dtype.itemsize

    def _row_bytes(self, W: int) -> int:
        return W * self.widest * self.dtype.itemsize

    def _restore(self, image_HWC: Tensor, result_HWC: Tensor, workers: Workers, advance: Advance) -> None:
        H, W, _ = image_HWC.shape
        C = self.dim
        # The decoder's first level holds the encoder's features beside the upsampled ones. So the encoder works in the
        # back half of that memory, and `_widen` spreads its features in place.
        memory = empty(self.dtype, self.device, 2 * H * W * C)
        levels = [memory[H * W * C :].view(H, W, C)]

        def embed(top: int, bottom: int) -> None:
            levels[0][top:bottom] = self.embed(image_HWC, top, bottom)

        self._map(workers, embed, H, W * C)
        for level in range(3):
            self._run(self.encoder[level], levels[level], level, workers, advance)
            levels.append(self._downsample(self.down[level], levels[level], workers))
        x_HWC = levels.pop()
        self._run(self.encoder[3], x_HWC, 3, workers, advance)
        for level in (2, 1):
            skip_HWC = levels.pop()
            self._upsample(level, x_HWC, skip_HWC, workers)
            x_HWC = skip_HWC
            self._run(self.decoder[level], x_HWC, level, workers, advance)
        wide_HWC = memory.view(H, W, 2 * C)
        self._widen(levels.pop(), wide_HWC)
        self._upsample(0, x_HWC, wide_HWC, workers)
        del x_HWC, skip_HWC
        self._run(self.decoder[0], wide_HWC, 0, workers, advance)

        def output(top: int, bottom: int) -> None:
            result_HWC[top:bottom] = self._output(image_HWC, wide_HWC, top, bottom)

        self._map(workers, output, H, W * C * 2)

    def _map(
        self, workers: Workers, function: Callable[[int, int], None], height: int, row_numel: int, step: int = 1
    ) -> None:
        """function(top, bottom) for strips of some rows: at least one for each worker."""
        strips = _cut(0, height, min(self._rows(row_numel), ceil(height / workers.count)), step)
        workers.map(function, *zip(*strips, strict=True))

    def _rows(self, row_numel: int) -> int:
        """Rows of a temporary, given the numbers in a row."""
        return max(1, self.strip_bytes // (row_numel * self.dtype.itemsize))

    def _run(
        self,
        halves: list[Attention | FeedForward],
        x_HWC: Tensor,
        level: int,
        workers: Workers,
        advance: Advance,
    ) -> None:
        """In place."""
        H, W, _ = x_HWC.shape
        cells = self._grid(H, W, self.window and self.window >> level)

        def cut(channels: int) -> list[list[Strip]]:
            rows = self._rows(W * channels)
            return [
                [
                    Strip(top, bottom, row)
                    for row, (above, below) in enumerate(cells.rows)
                    if max(first, above) < min(last, below)
                    for top, bottom in _cut(max(first, above), min(last, below), rows)
                ]
                for first, last in workers.parts(H)
            ]

        for half in halves:
            half.run(x_HWC, cells, cut, workers)
            advance(half, level)

    def _grid(self, H: int, W: int, window: int | None) -> Cells:
        """Made once for each size: copying its matrices to a GPU waits for the GPU. Kept for good, as a recorded graph
        reads them."""
        key = (H, W, window)
        if key not in self.grids:
            self.grids[key] = Cells.of(H, W, window, self.device)
        return self.grids[key]

    def _downsample(self, convolution: Dense, x_HWC: Tensor, workers: Workers) -> Tensor:
        """Convolution, then pixel-unshuffle."""
        H, W, C = x_HWC.shape
        y_HWC = empty(self.dtype, self.device, H // 2, W // 2, 2 * C)
        y_HWcij = y_HWC.view(H // 2, W // 2, C // 2, 2, 2)

        def part(top: int, bottom: int) -> None:
            part_nWc = convolution(x_HWC, top, bottom)
            y_HWcij[top // 2 : bottom // 2] = part_nWc.view(-1, 2, W // 2, 2, C // 2).permute(0, 2, 4, 1, 3)

        self._map(workers, part, H, W * C, step=2)
        return y_HWC

    def _upsample(self, level: int, x_HWC: Tensor, skip_HWC: Tensor, workers: Workers) -> None:
        """Convolution, then pixel-shuffle, into the level above, which holds the skip connection. At level 0 the result
        is the front half of its channels; at lower levels both are reduced to the channels of the skip."""
        H, W, _ = x_HWC.shape
        C = self.dim << level
        skip_HiWjK = skip_HWC.view(H, 2, W, 2, -1)

        def part(top: int, bottom: int) -> None:
            up_nWijC = self.up[level](x_HWC, top, bottom).reshape(-1, W, 2, 2, C)
            place_niWjK = skip_HiWjK[top:bottom]
            if level == 0:
                place_niWjK[..., :C] = up_nWijC.permute(0, 2, 1, 3, 4)
                return
            from_up, from_skip = self.reduce[level]
            reduced_NC = torch.empty_like(up_nWijC).view(-1, C)
            from_up.into(up_nWijC.view(-1, C), reduced_NC)
            skip_NC = place_niWjK.reshape(-1, C).clone()
            from_skip.into(skip_NC, place_niWjK.view(-1, C))
            place_niWjK += reduced_NC.view(up_nWijC.shape).permute(0, 2, 1, 3, 4)

        self._map(workers, part, H, W * 4 * C)

    def _widen(self, narrow_HWC: Tensor, wide_HWC: Tensor) -> None:
        """Move the narrow features, which fill the back half of the wide features' memory, to the back half of the wide
        channels. Each strip is copied first; all it overwrites beyond its own rows has been moved before."""
        H, W, C = narrow_HWC.shape
        for top, bottom in _cut(0, H, self._rows(W * C)):
            wide_HWC[top:bottom, :, C:] = narrow_HWC[top:bottom].clone()

    def _output(self, image_HWC: Tensor, x_HWC: Tensor, top: int, bottom: int) -> Tensor:
        if self.skip is None:
            return self.output(x_HWC, top, bottom) + image_HWC[top:bottom]
        # One more row above and below, for the convolution.
        H, _, K = x_HWC.shape
        first, last = max(top - 1, 0), min(bottom + 1, H)
        x_nWK = x_HWC[first:last].to(self.full_dtype, copy=True)
        embedded_NC = self.embed(image_HWC, first, last).reshape(-1, self.dim)
        self.skip.add_to(x_nWK.view(-1, K), embedded_NC)
        return self.output.rows(x_nWK, top == 0, bottom == H)


class _Recorded:
    """The kernels for one image size as a CUDA graph. On a small image, launching a thousand kernels one by one takes
    longer than a fast GPU takes to run them. Recorded when a size occurs twice in a row, dropped at another size."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.forget()

    def __reduce__(self) -> tuple[type[_Recorded], tuple[()]]:
        return _Recorded, ()  # a copied or unpickled engine starts without a graph

    def forget(self) -> None:
        """Free the graph's memory."""
        self.key: Hashable = None
        self.refused = False  # whether recording failed
        self.graph: torch.cuda.CUDAGraph | None = None
        self.x = self.y = torch.empty(0)

    def run(self, key: Hashable, restore: Callable[[Tensor, Tensor], None], x: Tensor, y: Tensor) -> None:
        """restore(x, y), on the default stream. It writes y, and may depend only on the key and the contents of x."""
        with self.lock:
            if key == self.key and not self.refused and self.graph is None:
                try:
                    self._record(restore, x, y)
                except RuntimeError:  # no memory for it, or another thread uses the device
                    self.refused = True
            if key == self.key and self.graph is not None:
                self.x.copy_(x)
                self.graph.replay()
                y.copy_(self.y)
                return
            if key != self.key:
                self.forget()
            restore(x, y)
            self.key = key

    def _record(self, restore: Callable[[Tensor, Tensor], None], x: Tensor, y: Tensor) -> None:
        x, result = x.clone(), torch.empty_like(y)
        graph = torch.cuda.CUDAGraph()
        # Threads that read the next image may pin memory during the recording.
        stream, mode = torch.cuda.Stream(), 'thread_local'
        with _ONE_RECORDS, torch.cuda.graph(graph, stream=stream, capture_error_mode=mode):
            restore(x, result)
        self.x, self.y, self.graph = x, result, graph


_ONE_RECORDS = threading.Lock()  # CUDA records one graph at a time


def _cut(first: int, last: int, rows: int, step: int = 1) -> list[tuple[int, int]]:
    """Split into parts of about equal size: multiples of `step`, and at most `rows` unless that is less than `step`."""
    units = (last - first) // step
    count = ceil(units / max(1, rows // step))
    edges = [first + step * (units * i // count) for i in range(count + 1)]
    return list(pairwise(edges))
