"""`benchmark.py inference --peers`: the same network in other runtimes. benchmark.py starts this file once for each row
and round; it does not import PyTorch, whose memory would be counted as the runtime's."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder, whose names are common ones

import importlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODES = {'openvino': ['openvino', 'openvino+bf16'], 'onnxruntime': ['onnxruntime']}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Returns the median and the range of the seconds, and the peak memory of this process, which includes loading."""
    width, height = map(int, task['size'].split('x'))
    shape = 1, task['channels'], height, width
    restore = load(task['mode'], task['model'], shape, task['threads'])
    image = np.random.default_rng(0).random(shape, np.float32)
    restore(image)  # not timed, as in inference.measure
    times = []
    for _ in range(task['repeats']):
        began = time.perf_counter()
        restore(image)
        times.append(time.perf_counter() - began)
    seconds = {'seconds': statistics.median(times), 'range': [min(times), max(times)]}
    return {**seconds, 'peak_MB': of_process('VmHWM') / 1e6}


def load(mode: str, model: str, shape: tuple[int, ...], threads: int) -> Callable[[NDArray], NDArray]:
    """Returns the function that restores an image (1, C, H, W) of this shape by an ONNX file, with the settings that
    were fastest for the network of 26.1 M parameters.

    Exits with a message if the processor does not compute in the precision of `mode`.
    """
    peer, _, precision = mode.partition('+')
    if peer == 'openvino':
        # Only its model converter sends usage data; without this package it cannot.
        sys.modules['openvino_telemetry'] = None  # type: ignore[assignment]
    runtime = importlib.import_module(peer)
    if peer == 'onnxruntime':  # any size: a fixed one is not faster, and takes more memory
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        session = runtime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
        return lambda image: session.run(None, {'image': image})[0]
    core = runtime.Core()
    if precision and precision.upper() not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        sys.exit(f'this processor does not compute in {precision}')
    network = core.read_model(model)
    network.reshape(list(shape))  # a fixed size is faster, and takes less memory
    settings = {'INFERENCE_PRECISION_HINT': precision or 'f32', 'INFERENCE_NUM_THREADS': threads}
    compiled = core.compile_model(network, 'CPU', {'PERFORMANCE_HINT': 'LATENCY', **settings})
    request = compiled.create_infer_request()
    return lambda image: request.infer({0: image})[0]


def of_process(name: str) -> int:
    """Returns the bytes of an entry of this process's status: VmRSS (now) or VmHWM (the peak)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == '__main__':
    print(json.dumps(measure(json.loads(sys.argv[1]))))
