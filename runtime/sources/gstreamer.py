"""Read cameras through GStreamer, such as the CSI cameras of a Jetson. A child process sends raw frames by pipe."""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from PIL import Image

from pairvpr.errors import SourceError
from pairvpr.runtime.sources.base import Frame

PROGRAM = "gst-launch-1.0"
CSI_SIZE = (1280, 720)  # every sensor that NVIDIA supports has this mode, and the model needs about 300 pixels
CSI_CAMERA = (
    "nvarguscamerasrc sensor-id={number} ! video/x-raw(memory:NVMM),width={width},height={height},framerate=30/1 "
    "! nvvidconv ! video/x-raw,format=RGBA"
)


class GstreamerFeed:
    """Read the RGBA frames of a pipeline's last element.

    pipeline: elements in the syntax of gst-launch-1.0.
    size: width and height in pixels.
    title: the name in error messages.
    timeout: seconds without a whole frame after which the camera counts as lost. The constructor waits for a frame.
    advice: the remedy in error messages.

    Raises SourceError if GStreamer is missing or no frame comes.
    """

    def __init__(self, pipeline: str, size: tuple[int, int], title: str, *, timeout: float, advice: str) -> None:
        self._size = size
        self._title = title
        self._timeout = timeout
        self._advice = advice
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        self._pipe, write_end = os.pipe()
        # A separate pipe, because NVIDIA's camera element writes messages to the standard output.
        command = [PROGRAM, "-q", *pipeline.split(), "!", "fdsink", f"fd={write_end}", "sync=false"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._messages,
                stderr=self._messages,
                pass_fds=[write_end],
                start_new_session=True,  # Ctrl-C must not reach the child, which close() ends
            )
        except OSError as error:
            os.close(self._pipe)
            self._messages.close()
            raise SourceError(
                f"{title} needs {PROGRAM} ({error.strerror}): sudo apt install gstreamer1.0-tools"
            ) from error
        finally:
            os.close(write_end)
        try:
            self._first: RawShot | None = self._read()
        except BaseException:
            self.close()
            raise

    def shots(self) -> Iterator[RawShot]:
        """Yield the frames in order. Raise SourceError when the camera is lost."""
        while True:
            shot, self._first = self._first, None
            yield self._read() if shot is None else shot
            del shot

    def close(self) -> None:
        """End the child process, which releases the camera. May be called again."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        if not self._messages.closed:
            self._messages.close()
            os.close(self._pipe)

    def _read(self) -> RawShot:
        started, deadline = perf_counter(), time.monotonic() + self._timeout
        width, height = self._size
        pixels = np.empty(width * height * 4, np.uint8)
        free = pixels.data
        while free:
            ready, _, _ = select.select([self._pipe], [], [], max(deadline - time.monotonic(), 0))
            count = os.readv(self._pipe, [free]) if ready else 0
            if not count:
                raise SourceError(f"{self._title} gives no pictures ({self._reason(bool(ready))}): {self._advice}")
            free = free[count:]
        return RawShot(pixels.reshape(height, width, 4), (perf_counter() - started) * 1e3)

    def _reason(self, ended: bool) -> str:
        """Return GStreamer's first error message, or else the kind of the loss."""
        if ended:
            with suppress(subprocess.TimeoutExpired):  # close() kills it
                self._process.wait(self._timeout)
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").splitlines()
        said = (line.partition(": ")[2] for line in lines if line.startswith(("ERROR", "WARNING: erroneous")))
        return next(said, "it ended" if ended else "no data in time")


@dataclass(frozen=True)
class RawShot:
    """Hold a frame from the pipe: RGBA (H, W, 4)."""

    pixels: np.ndarray
    decode_ms: float

    def as_frame(self, name: str, timestamp: float | None) -> Frame:
        """Return the frame with its picture in RGB."""
        started = perf_counter()
        picture = Image.fromarray(np.ascontiguousarray(self.pixels[:, :, :3]))
        return Frame(name, timestamp, picture, None, self.decode_ms + (perf_counter() - started) * 1e3)
