"""A page in the browser: drop a photograph, compare before and after, download the result. `demo.py --web` serves it.

Needs the package gradio. Nothing is fetched from other servers. What a page has on disk, the upload included, is in a
folder of its own, and is deleted when the page is closed.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from basicsr.images.listing import list_images
from basicsr.images.reader import Image, read_image
from basicsr.images.writer import write_png
from basicsr.inference.restorer import Restorer
from basicsr.tasks import TASKS, Task, check_weights_task, default_weights
from basicsr.utils.cli import usage_errors
from basicsr.utils.device import PRECISIONS
from basicsr.utils.errors import UsageError, UserError
from basicsr.utils.files import SHIPPED

os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_DISABLE_TELEMETRY='1')  # before gradio is imported

import gradio as gr
from starlette.middleware import Middleware

PREVIEW = 2048  # longest side of the pictures on the page, in pixels
PORTS = range(7860, 7960)  # gradio's
TLC = {'as the weights say': None, 'on': True, 'off': False}


def serve(args: argparse.Namespace, task: Task) -> int:
    """Serves the page until Ctrl-C or a signal. The arguments of demo.py are the defaults of its settings. Raises
    UsageError."""
    folder = Path(tempfile.mkdtemp(prefix='restormer-')).resolve()
    try:
        os.environ['GRADIO_TEMP_DIR'] = str(folder / 'uploads')
        with usage_errors():
            port = free_port(args.host, args.port)
            pages = Pages(folder / 'pages', args, weights_choices(args, task))
            tlc = 'as the weights say' if args.tlc is None else 'on' if args.tlc else 'off'
            pages.restorer_for(next(iter(pages.weights)), args.device, args.precision, tlc, args.tile)
        blocks = build(pages, tlc)
        _, address, _ = blocks.launch(
            server_name=args.host,
            server_port=port,
            app_kwargs={'middleware': [Middleware(OwnServerOnly)]},
            prevent_thread_lock=True,
            ssr_mode=False,
            quiet=True,
            footer_links=[],
        )
        print(f'open {address} in a browser; Ctrl-C ends the program', flush=True)
        try:
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def free_port(host: str, port: int | None) -> int:
    """The port, or the first free one of `PORTS`. Raises UsageError."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    for number in PORTS if port is None else [port]:
        try:
            socket.create_server((host, number), family=family).close()
            return number
        except (OSError, OverflowError) as error:
            if getattr(error, 'errno', None) != errno.EADDRINUSE:
                reason = (getattr(error, 'strerror', None) or str(error)).partition(' (')[0]
                raise UsageError(f'--host {host}: cannot serve at port {number}: {reason}') from None
    raise UsageError(f'--port: found {port or f"{PORTS[0]} to {PORTS[-1]}"} in use; allowed: a free port')


class OwnServerOnly:
    """ASGI middleware: the browser may load nothing from other servers, whatever the page asks for."""

    HEADERS = (
        (b'content-security-policy', b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"),
        (b'referrer-policy', b'no-referrer'),
    )

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message['type'] == 'http.response.start':
                message['headers'] = [*message.get('headers', ()), *self.HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)


def weights_choices(args: argparse.Namespace, task: Task) -> dict[str, Path]:
    """Weights for single images that exist, by what the page calls them; those of the command line first. Raises
    UserError if those are missing, or are for another task."""
    first = args.weights or default_weights(task.name, args.sigma)
    check_weights_task(first, task, args.sigma)
    found = {f'{task.name}: {first.name}': first}
    for other in TASKS.values():
        files = [other.published_file(sigma) for sigma in other.weights]
        if other.shipped_file is not None:
            files.append(other.shipped_file)
        for path in files if other.channels[0] != 6 else ():
            if path.is_file():
                found.setdefault(f'{other.name}: {path.name}', path)
    return found


class StoppedError(Exception):
    """The page asked to stop, or was closed."""


class Page:
    """The files of one open page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photograph: Path | None = None
        self.lock = threading.Lock()  # of the files
        self.stop = threading.Event()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.photograph = None


class Pages:
    """What the server does for its pages, each known by the session of the request."""

    def __init__(self, folder: Path, args: argparse.Namespace, weights: dict[str, Path]) -> None:
        self.folder = folder
        self.args = args
        self.weights = weights
        self.pages: dict[str, Page] = {}
        self.settings: tuple[object, ...] = ()
        self.restorer: Restorer | None = None

    def page(self, request: gr.Request) -> Page:
        key = str(request.session_hash)
        return self.pages.setdefault(key, Page(self.folder / key))

    def close(self, request: gr.Request) -> None:
        page = self.page(request)
        page.stop.set()
        with page.lock:
            page.clear()
        del self.pages[page.folder.name]

    def stop(self, request: gr.Request) -> None:
        self.page(request).stop.set()

    def upload(self, path: str, request: gr.Request) -> tuple[Path, str]:
        return self.open(self.page(request), Path(path), shutil.move)

    def open(self, page: Page, source: Path, take: Callable[[Path, Path], object]) -> tuple[Path, str]:
        """Makes a file the page's photograph. Returns a preview and a caption."""
        with page.lock:
            page.clear()
            page.folder.mkdir(parents=True)
            photograph = page.folder / source.name
            take(source, photograph)
            try:
                image = read_image(photograph)
                preview = write_preview(page.folder / 'before', image)
            except (UserError, OSError, MemoryError) as error:
                page.clear()
                raise refusal(error, photograph) from None
            page.photograph = photograph
            return preview, f'{photograph.name}: {described(image)}'

    def restore(
        self, weights: str, device: str, precision: str, tlc: str, tile: int | None, request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio finds it there
    ) -> tuple[tuple[Path, Path], Path, str]:  # fmt: skip
        """Restores the page's photograph. Returns previews before and after, the result and a caption."""
        page = self.page(request)
        page.stop.clear()
        with page.lock:
            if page.photograph is None:
                raise gr.Error('Choose a photograph first.', print_exception=False, title='No photograph')

            def report(done: float) -> None:
                if page.stop.is_set():
                    raise StoppedError
                progress(done, desc='Restoring')

            try:
                progress(0, desc='Loading the weights')
                restorer = self.restorer_for(weights, device, precision, tlc, tile)
                restorer.progress = report
                before = read_image(page.photograph)
                pixels = restorer(before.pixels)
                after = Image(pixels, before.icc_profile, before.colour_chunks)
                folder = page.folder / 'after'
                preview = write_preview(folder, after)
                result = folder / f'{page.photograph.stem}.png'
                write_png(result, after.pixels, after.icc_profile, after.colour_chunks)
            except StoppedError:
                raise gr.Error('Stopped.', print_exception=False, title='Not restored') from None
            except (UserError, ValueError, OSError, MemoryError) as error:
                raise refusal(error, page.photograph) from None
            with_tlc = restorer.engine is not None and restorer.engine.window is not None
            about = f'{restorer.device}, {restorer.precision}' + (', TLC' if with_tlc else '')
            caption = f'{result.name}: {described(after)}, restored on {about}'
            return (page.folder / 'before' / 'preview.png', preview), result, caption

    def restorer_for(self, weights: str, device: str, precision: str, tlc: str, tile: int | None) -> Restorer:
        """Keeps the last one: a page usually restores several photographs with the same settings. Raises UserError,
        ValueError."""
        settings = (weights, device, precision, tlc, tile)
        if self.restorer is None or settings != self.settings:
            self.restorer = None  # free its memory first
            restorer = Restorer.from_checkpoint(
                self.weights[weights],
                device,
                precision,
                tlc=self.args.tlc if tlc == 'on' and self.args.tlc else TLC[tlc],  # with the window of --tlc
                param_key=self.args.param_key,
                tile=tile or None,
                tile_overlap=self.args.tile_overlap if tile else None,
            )
            restorer.check_channels()
            self.restorer, self.settings = restorer, settings
        return self.restorer


def refusal(error: Exception, photograph: Path) -> gr.Error:
    """The sentence of demo.py, without the folder."""
    sentence = (str(error) or 'out of memory').replace(f'{photograph.parent}{os.sep}', '')
    return gr.Error(sentence, duration=None, print_exception=False, title='Not restored')


def described(image: Image) -> str:
    height, width = image.pixels.shape[:2]
    return f'{width}×{height} pixels, {8 * image.pixels.itemsize} bits'


def write_preview(folder: Path, image: Image) -> Path:
    """Writes preview.png, as the page shows an image: 8 bits, at most PREVIEW pixels on a side."""
    pixels, longest = image.pixels, max(image.pixels.shape[:2])
    if longest > PREVIEW:
        height, width = (max(1, round(side * PREVIEW / longest)) for side in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    if pixels.dtype == np.uint16:
        pixels = np.round(pixels / 257).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    write_png(folder / 'preview.png', pixels, image.icc_profile, image.colour_chunks)
    return folder / 'preview.png'


def build(pages: Pages, tlc: str) -> gr.Blocks:
    """The page's parts, and what they call."""
    args = pages.args
    samples = list_images(SHIPPED / 'demo' / 'degraded')
    # Gradio serves files below these folders where they are; it would copy others, and keep the copies.
    gr.set_static_paths([pages.folder, samples[0].parent])
    devices = ['auto', 'cpu', *(f'cuda:{number}' for number in range(torch.cuda.device_count()))]
    devices += ['mps'] if torch.backends.mps.is_available() else []
    devices += [args.device] if args.device not in devices else []

    # Files that no page took, as of uploads that were broken off, go after ten minutes.
    with gr.Blocks(title='Restormer', analytics_enabled=False, delete_cache=(60, 600)) as blocks:
        gr.Markdown(
            '# Restormer\nDrop a blurred photograph, press *Restore*, and compare. It stays on this computer.'
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                drop = gr.File(label='Photograph', height=140)
                examples = gr.Gallery(
                    samples, label='Examples', columns=2, height=140, allow_preview=False, buttons=[],
                    interactive=False,
                )  # fmt: skip
                restore = gr.Button('Restore', variant='primary')
                stop = gr.Button('Stop', visible=False)
                with gr.Accordion('Advanced', open=False):
                    weights = gr.Dropdown([*pages.weights], label='Weights')
                    device = gr.Dropdown(devices, value=args.device, label='Device')
                    precision = gr.Dropdown([*PRECISIONS], value=args.precision, label='Precision')
                    windows = gr.Radio([*TLC], value=tlc, label='Attention over local windows (TLC)')
                    tile = gr.Number(
                        args.tile, label='Tile side in pixels: less memory, not exact', precision=0
                    )
            with gr.Column(scale=3):
                before = gr.Image(label='Before', interactive=False, buttons=['fullscreen'])
                slider = gr.ImageSlider(
                    label='Before and after', visible=False, interactive=False, buttons=['fullscreen']
                )
                caption = gr.Markdown()
                download = gr.DownloadButton('Download PNG', variant='primary', visible=False)

        def choose(event: gr.SelectData, request: gr.Request) -> tuple[Path, str]:
            return pages.open(pages.page(request), samples[event.index], shutil.copyfile)

        def show_before() -> list[Any]:
            return [gr.update(visible=True), *[gr.update(visible=False)] * 2]

        def show_after() -> list[Any]:
            return [gr.update(visible=False), *[gr.update(visible=True)] * 2]

        def busy(now: bool) -> Callable[[], list[Any]]:
            return lambda: [gr.update(interactive=not now), gr.update(visible=now)]

        private: Any = {'api_visibility': 'private'}
        views = [before, slider, download]
        for event, call, inputs in ((drop.upload, pages.upload, [drop]), (examples.select, choose, None)):
            opened = event(call, inputs, [before, caption], **private)
            opened.success(show_before, None, views, **private)
        drop.upload(lambda: None, None, drop, **private)  # to take the next one
        started = restore.click(busy(True), None, [restore, stop], **private)
        restored = started.then(
            pages.restore,
            [weights, device, precision, windows, tile],
            [slider, download, caption],
            concurrency_limit=1,  # each image takes as much memory as is free
            show_progress_on=[before, slider],
            **private,
        )
        restored.success(show_after, None, views, **private)
        restored.then(busy(False), None, [restore, stop], **private)
        stop.click(pages.stop, queue=False, **private)
        blocks.unload(pages.close)
    return blocks
