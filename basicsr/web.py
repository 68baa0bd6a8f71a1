"""A page in the browser: drop a photograph, compare before and after, download the result. `demo.py --web` serves it.

Needs the package gradio. Nothing is fetched from other servers. The files of a page, uploads included, are in a folder
of its own, and are deleted when the page is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
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

# Before gradio is imported. It asks its own server whether it runs, which must not go to a proxy.
os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_DISABLE_TELEMETRY='1', no_proxy='*', NO_PROXY='*')

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

PREVIEW = 2048  # longest side of the pictures on the page, in pixels
PORTS = range(7860, 7960)  # gradio's
LOOPBACK = ('127.0.0.1', 'localhost')
TLC = ('as the weights say', 'on', 'off')


def serve(args: argparse.Namespace, task: Task, folder: Path) -> int:
    """Serves the page until Ctrl-C or a signal. The arguments of demo.py are the defaults of its settings; `folder` is
    for files, and has gradio's in `uploads`. Raises UsageError."""
    with usage_errors():
        port = free_port(args.host, args.port)
        pages = Pages(folder, args, weights_choices(args, task))
        tlc = TLC[0 if args.tlc is None else 1 if args.tlc else 2]
        pages.restorer_for(next(iter(pages.weights)), args.device, args.precision, tlc, args.tile)
    blocks = build(pages, tlc)
    middleware = [Middleware(OwnServerOnly)]
    if args.host in LOOPBACK:  # no page of another server may reach this one under a name of its own
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK]))
    _, address, _ = blocks.launch(
        server_name=f'[{args.host}]' if ':' in args.host else args.host,
        server_port=port,
        app_kwargs={'middleware': middleware},
        allowed_paths=[str(folder)],  # else not .photo.png if this is below the working directory
        prevent_thread_lock=True,
        share=False,  # whatever GRADIO_SHARE says
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        enable_monitoring=False,
    )
    print(f'open {address} in a browser; Ctrl-C ends the program', flush=True)
    try:
        while True:
            time.sleep(60)
            pages.sweep()
    finally:
        pages.end()
        blocks.close(verbose=False)
    return 0


def free_port(host: str, port: int | None) -> int:
    """The port, or the first free one of `PORTS`. Raises UsageError."""
    for number in PORTS if port is None else [port]:
        try:
            for address in (host, '127.0.0.1'):  # gradio wants it free there, too
                family = socket.AF_INET6 if ':' in address else socket.AF_INET
                socket.create_server((address, number), family=family).close()
            return number
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                reason = (error.strerror or str(error)).partition(' (')[0]
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
                headers = [*message.get('headers', ()), *self.HEADERS]
                if '/file=' in scope['path']:  # a photograph: the browser must not keep it either
                    headers = [each for each in headers if each[0] != b'cache-control']
                    headers.append((b'cache-control', b'no-store'))
                message['headers'] = headers
            await send(message)

        with contextlib.suppress(ClientDisconnect):  # an upload that was broken off
            await self.app(scope, receive, with_headers)


def weights_choices(args: argparse.Namespace, task: Task) -> dict[str, Path]:
    """Files of weights for single images, by the names that the page shows; those of the command line first. Raises
    UserError if these are missing, or are for another task."""
    first = args.weights or default_weights(task.name, args.sigma)
    check_weights_task(first, task, args.sigma)
    found = {first.name: first}
    for other in TASKS.values():
        files = [*map(other.published_file, other.weights), other.shipped_file]
        for path in files if 'dual_pixel_task' not in other.network else ():
            if path is not None and path.is_file():
                found.setdefault(path.name, path)
    return found


class StoppedError(Exception):
    """The page asked to stop, or was closed."""


class Page:
    """The files of one open page. Every picture has a path of its own, as browsers keep what they have seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.upload: Path | None = None  # gradio's file; pages where the same photograph is dropped share it
        self.opened: tuple[Path, Path] | None = None  # the photograph and its preview
        self.lock = threading.Lock()  # of the files
        self.stop = threading.Event()
        self.closed = False

    def new(self, name: str) -> Path:
        """A path for a new file."""
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir(parents=True)
        return folder / name

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.upload is not None:
            self.upload.unlink(missing_ok=True)
        self.opened = self.upload = None


class Pages:
    """Opens and restores the photographs of all pages. A request's session names its page.

    Browsers choose the name of the session and the path of an upload: neither is trusted.
    """

    def __init__(self, folder: Path, args: argparse.Namespace, weights: dict[str, Path]) -> None:
        self.folder = folder / 'pages'
        self.uploads = folder / 'uploads'
        self.args = args
        self.weights = weights
        self.pages: dict[str, Page] = {}
        self.settings: tuple[object, ...] = ()
        self.restorer: Restorer | None = None

    def page(self, request: gr.Request) -> Page:
        return self.pages.setdefault(str(request.session_hash), Page(self.folder / secrets.token_hex(8)))

    def close(self, request: gr.Request) -> None:
        page = self.page(request)
        page.stop.set()
        with page.lock:
            page.clear()
            page.closed = True  # an upload may still come

    def stop(self, request: gr.Request) -> None:
        self.page(request).stop.set()

    def end(self) -> None:
        """Stops what pages do."""
        for page in [*self.pages.values()]:
            page.stop.set()

    def sweep(self) -> None:
        """Deletes uploads that no page took in ten minutes, such as parts of those that were broken off."""
        for path in [*self.uploads.rglob('*')]:
            with contextlib.suppress(OSError):  # a page deletes it
                if path.is_file() and path.stat().st_mtime < time.time() - 600:
                    path.unlink()

    def upload(self, page: Page, path: str | None) -> tuple[Path, str]:
        """`open` with a file that the browser has uploaded. Raises UsageError if it has not."""
        source = Path(path or '').resolve()
        if not source.is_relative_to(self.uploads):
            raise UsageError(f'{source.name}: is not an upload')
        return self.open(page, source, uploaded=True)

    def open(self, page: Page, source: Path, uploaded: bool = False) -> tuple[Path, str]:
        """Makes a file the page's photograph. Returns its preview and a caption. Raises ImageFileError, OSError,
        UsageError if the page is closed."""
        page.stop.set()  # the result would be of the photograph before
        with page.lock:
            if source != page.upload:
                page.clear()
            page.upload = source if uploaded else None
            try:
                if page.closed:
                    raise UsageError('the page has lost its connection: reload it')
                photograph = page.new(source.name)
                shutil.copyfile(source, photograph)
                image = read_image(photograph)
                before = write_preview(page.new('before.png'), image)
            except BaseException:
                page.clear()
                raise
            page.opened = photograph, before
            return before, f'{photograph.name}: {described(image)}'

    def restore(
        self, page: Page, settings: tuple[str, str, str, str, int], report: Callable[[float], None]
    ) -> tuple[tuple[Path, Path], Path, str]:
        """Restores the page's photograph. Returns the previews before and after, the result and a caption. Raises
        UserError, ValueError, OSError, MemoryError, StoppedError."""
        with page.lock:
            if page.stop.is_set():  # while others were restored
                raise StoppedError
            if page.opened is None:
                raise UsageError('choose a photograph first')
            photograph, before = page.opened

            def progress(done: float) -> None:
                if page.stop.is_set():
                    raise StoppedError
                report(done)

            restorer = self.restorer_for(*settings)
            restorer.progress = progress
            image = read_image(photograph)
            after = replace(image, pixels=restorer(image.pixels))
            preview = write_preview(page.new('after.png'), after)
            result = page.new(f'{photograph.stem}.png')
            write_png(result, after.pixels, after.icc_profile, after.colour_chunks)
            text = f'{result.name}: {described(after)}, restored on {restorer.settings}'
            return (before, preview), result, text

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
                tlc={'on': self.args.tlc or True, 'off': False}.get(tlc),  # on: with the window of --tlc
                param_key=self.args.param_key,
                tile=tile or None,
                tile_overlap=self.args.tile_overlap if tile else None,
            )
            restorer.check_channels()
            self.restorer, self.settings = restorer, settings
        return self.restorer


def described(image: Image) -> str:
    height, width = image.pixels.shape[:2]
    return f'{width}×{height} pixels, {8 * image.pixels.itemsize} bits'


def write_preview(path: Path, image: Image) -> Path:
    """Writes an image as the page shows it: 8 bits, at most PREVIEW pixels on a side. Returns the path."""
    pixels, longest = image.pixels, max(image.pixels.shape[:2])
    if longest > PREVIEW:
        height, width = (max(1, round(side * PREVIEW / longest)) for side in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    if pixels.dtype == np.uint16:
        pixels = np.round(pixels / 257).astype(np.uint8)
    write_png(path, pixels, image.icc_profile, image.colour_chunks)
    return path


def build(pages: Pages, tlc: str) -> gr.Blocks:
    """The page's parts, and what they call."""
    args = pages.args
    samples = list_images(SHIPPED / 'demo' / 'degraded')
    # Gradio serves files below these folders where they are; it would copy others, and keep the copies.
    gr.set_static_paths([pages.folder, samples[0].parent])
    devices = ['auto', 'cpu', *(f'cuda:{number}' for number in range(torch.cuda.device_count()))]
    devices += ['mps'] if torch.backends.mps.is_available() else []
    devices += [args.device] if args.device not in devices else []

    with gr.Blocks(title='Restormer', analytics_enabled=False) as blocks:
        gr.Markdown(
            '# Restormer\nDrop a photograph, press *Restore*, and compare. Closing the page deletes your files.'
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
                    precision = gr.Dropdown([*PRECISIONS], value=args.precision.lower(), label='Precision')
                    windows = gr.Radio([*TLC], value=tlc, label='Attention over local windows (TLC)')
                    tile = gr.Number(
                        args.tile or 0, label='Tile side in pixels: less memory, inexact; 0: none', precision=0
                    )
            with gr.Column(scale=3):
                before = gr.Image(label='Before', interactive=False, buttons=['fullscreen'])
                slider = gr.ImageSlider(
                    label='Before and after', visible=False, interactive=False, buttons=['fullscreen']
                )
                caption = gr.Markdown()
                download = gr.DownloadButton('Download PNG', variant='primary', visible=False)

        def show(work: Callable[[], tuple[Path, str]]) -> dict[Any, Any]:
            preview: Path | None
            try:
                preview, text = work()
            except (UserError, OSError, MemoryError) as error:
                refuse('Not opened', error)
                preview, text = None, 'cannot be opened'  # nor is the photograph before kept
            hidden = gr.update(visible=False)
            return {
                before: gr.update(value=preview, visible=True), slider: hidden, download: hidden,
                caption: as_text(text),
            }  # fmt: skip

        def upload(path: str | None, request: gr.Request) -> dict[Any, Any]:
            return {**show(lambda: pages.upload(pages.page(request), path)), drop: None}

        def choose(event: gr.SelectData, request: gr.Request) -> dict[Any, Any]:
            return show(lambda: pages.open(pages.page(request), samples[event.index]))

        def run(
            weights: str, device: str, precision: str, tlc: str, tile: int, request: gr.Request,
            progress: gr.Progress = gr.Progress(),  # noqa: B008 - as gradio wants it
        ) -> dict[Any, Any]:  # fmt: skip
            progress(0, desc='Loading the weights')
            try:
                previews, result, text = pages.restore(
                    pages.page(request),
                    (weights, device, precision, tlc, tile),
                    lambda done: progress(done, desc='Restoring'),
                )
            except StoppedError:
                return {caption: 'stopped'}
            except (UserError, ValueError, OSError, MemoryError) as error:
                refuse('Not restored', error)
                return {caption: 'not restored'}
            return {
                before: gr.update(visible=False),
                slider: gr.update(value=previews, visible=True),
                download: gr.update(value=result, visible=True),
                caption: as_text(text),
            }

        def start(request: gr.Request) -> list[Any]:
            pages.page(request).stop.clear()  # Stop counts from now on, also while others are restored
            return [gr.update(interactive=False), gr.update(visible=True)]

        def finish() -> list[Any]:
            return [gr.update(interactive=True), gr.update(visible=False)]

        private: Any = {'api_visibility': 'private'}
        shown = [before, slider, download, caption]
        drop.upload(upload, drop, [*shown, drop], **private)
        examples.select(choose, None, shown, **private)
        settings = [weights, device, precision, windows, tile]
        # One image at a time, as each takes as much memory as is free.
        ran = restore.click(start, None, [restore, stop], **private).then(
            run, settings, shown, concurrency_limit=1, show_progress_on=[before, slider], **private
        )
        for ended in (ran.success, ran.failure):
            ended(finish, None, [restore, stop], **private)
        stop.click(pages.stop, queue=False, **private)
        blocks.unload(pages.close)
    return blocks


def as_text(text: str) -> str:
    """Markdown that shows a text as it is written: file names have *, _, [ and $."""
    return re.sub(r'([!-/:-@\[-`{-~])', r'\\\1', text)


def refuse(title: str, error: Exception) -> None:
    """Shows a sentence of demo.py on the page, without the folder of the page's files."""
    sentence = str(error) or 'out of memory'
    gr.Warning(re.sub(r'\S*/pages/\w+/\w+/', '', sentence), duration=None, title=title)
