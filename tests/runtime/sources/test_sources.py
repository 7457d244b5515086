import http.client
import http.server
import io
import os
import re
import socket
import socketserver
import struct
import sys
import threading
import time
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from pairvpr.errors import SourceError
from pairvpr.runtime import sources
from pairvpr.runtime.remarks import remark_scope
from pairvpr.runtime.sources import Frame, LiveSource, list_pictures, live, open_source
from pairvpr.runtime.sources.base import NotThereError
from pairvpr.runtime.sources.video import VideoFeed, VideoSource, open_container

RATE = 10
TEST_PATTERN = f"testsrc=size=320x240:rate={RATE}"


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(path)
    return path


def write_clip(path, frames=12, side=64, codec="mpeg4"):
    """A video whose frame i is grey 16 * i, white in its upper half."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height = 2 * side, side
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(frames):
            pixels = np.full((side, 2 * side, 3), 16 * i, np.uint8)
            pixels[: side // 2] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def lavfi(pattern):
    """A live source that ends when its pattern does."""
    connect = partial(open_container, f"{pattern},realtime", "test", format="lavfi")
    return LiveSource("test", lambda: VideoFeed(connect(), "test"), endless=False)


@pytest.fixture
def impatient(monkeypatch):
    """What is lost is tried again soon."""
    monkeypatch.setattr(live, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(live, "LONGEST_WAIT", 0.4)


def grey(frame):
    """The lower half's grey value."""
    return float(np.asarray(frame.picture)[frame.picture.height // 2 + 4 :].mean())


@contextmanager
def serving(handler, kind=http.server.ThreadingHTTPServer):
    server = kind(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class MotionJpeg(http.server.BaseHTTPRequestHandler):
    """What network cameras serve: JPEG pictures, here one every 50 ms and 30 of them."""

    protocol_version = "HTTP/1.1"
    chunked = True  # without chunks FFmpeg takes the end for a lost connection

    def do_GET(self):
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        if self.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):  # the reader may leave
            for i in range(30):
                stream = io.BytesIO()
                Image.fromarray(np.full((48, 64, 3), 8 * i, np.uint8)).save(stream, "JPEG")
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {stream.tell()}\r\n\r\n"
                part = head.encode() + stream.getvalue() + b"\r\n"
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n" if self.chunked else part)
                time.sleep(0.05)
            self.finish_stream()

    def finish_stream(self):
        if self.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


class RtspCamera(socketserver.StreamRequestHandler):
    """A network camera of 20 frames, one every 50 ms, that sends MPEG-4 over RTSP's own TCP connection."""

    def handle(self):
        while True:
            method = self.rfile.readline().decode().partition(" ")[0]
            header = http.client.parse_headers(self.rfile)
            self.answer(method, header)
            if method == "PLAY":
                self.play()
                return

    def answer(self, method, header):
        extra, body = "", ""
        if method == "DESCRIBE":
            body = "v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 MP4V-ES/90000\r\na=control:track\r\n"
            extra = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        if method == "SETUP":
            assert "TCP" in header["Transport"]  # asked for first
            extra = f"Transport: {header['Transport']}\r\nSession: 1\r\n"
        self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {header['CSeq']}\r\n{extra}\r\n{body}".encode())

    def play(self):
        import av

        encoder = av.CodecContext.create("mpeg4", "w")
        encoder.width, encoder.height, encoder.pix_fmt = 128, 64, "yuv420p"
        encoder.time_base = Fraction(1, 20)
        frames = [av.VideoFrame.from_ndarray(np.full((64, 128, 3), 12 * i, np.uint8), "rgb24") for i in range(20)]
        for i, frame in enumerate(frames):
            frame.pts = i
            for packet in encoder.encode(frame):
                rtp = struct.pack(">BBHII", 0x80, 0xE0, i, 4500 * i, 1) + bytes(packet)
                self.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
            time.sleep(0.05)


def test_single_picture(tmp_path):
    path = picture(tmp_path / "a.png", 7)
    with open_source(str(path)) as source:
        assert (source.live, source.single, source.length) == (False, True, 1)
        (frame,) = source
    assert (frame.name, frame.timestamp, frame.error) == ("a.png", None, None)
    assert np.asarray(frame.picture).mean() == 7
    assert frame.decode_ms > 0


def test_single_picture_that_is_broken_raises(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(SourceError, match=r"a\.jpg"):
        list(open_source(str(tmp_path / "a.jpg")))


def test_picture_without_extension_is_known_by_its_content(tmp_path):
    picture(tmp_path / "a.png").rename(tmp_path / "snapshot")
    (frame,) = open_source(str(tmp_path / "snapshot"))
    assert frame.name == "snapshot"


def test_folder_in_natural_order_with_a_broken_file(tmp_path):
    for name in ("10.png", "2.PNG", "b/1.png", "a/x10.png", "a/x9.png", ".hidden/1.png", "a/.2.png"):
        picture(tmp_path / name)
    (tmp_path / "3.jpg").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("no picture")
    with open_source(str(tmp_path)) as source:
        assert (source.live, source.single, source.length) == (False, False, 6)
        frames = list(source)
    assert [frame.name for frame in frames] == [
        "2.PNG",
        "3.jpg",
        "10.png",
        "a/x9.png",
        "a/x10.png",
        "b/1.png",
    ]
    assert [frame.name for frame in frames if frame.error] == ["3.jpg"]
    assert "not a picture" in frames[1].error
    assert all((frame.picture is None) == (frame.error is not None) for frame in frames)
    assert list_pictures(tmp_path)[3] == ("a/x9.png", tmp_path / "a" / "x9.png")


def test_a_picture_that_vanishes_is_an_error_of_its_own(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    source = open_source(str(tmp_path))
    (tmp_path / "1.png").unlink()
    assert [frame.error is None for frame in source] == [False, True]


def test_linked_folders_are_entered_but_not_in_circles(tmp_path):
    picture(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "circle").symlink_to(tmp_path / "all")
    assert [name for name, _ in list_pictures(tmp_path / "all")] == ["linked/1.png"]


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(SourceError, match="holds no pictures"):
        open_source(str(tmp_path))
    (tmp_path / "map.sqlite").touch()
    with pytest.raises(SourceError, match=r"is a map, not a folder of pictures: .* and the map as --db"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match="is not a folder"):
        list_pictures(tmp_path / "notes.txt")
    (tmp_path / "map.sqlite").unlink()
    picture(tmp_path / "a.png").rename(tmp_path / "two\nlines.png")
    with pytest.raises(SourceError, match="1 names hold control characters or no text") as caught:
        list_pictures(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_odd_thing_in_a_folder_costs_itself_alone(tmp_path, caplog):
    folder = tmp_path / "pictures"
    for name in ("a.png", "deep/b.jfif", "at 4.42\u202fPM.png", "two\nlines.png", "c\udce9.png"):
        picture(folder / name.replace(".jfif", ".jpg")).rename(folder / name)
    for name in ("c.heic", "d.HEIC", "e.dng"):
        (folder / name).write_bytes(b"x")
    for name in ("gone.jpg", "drive2"):
        (folder / name).symlink_to("/nowhere")
    for name in ("@eaDir/a.png/thumb.png", "#recycle/old.png", "__MACOSX/x.png"):
        picture(folder / name)
    with remark_scope():
        assert [name for name, _ in list_pictures(folder)] == ["a.png", "at 4.42\u202fPM.png", "deep/b.jfif"]
    told = [text.partition(": ")[2] for text in caplog.messages]
    assert [text.partition(";")[0] for text in told] == [
        "1 .dng pictures are not read: convert them to JPEG or PNG",
        "2 .heic pictures are not read: pip install pillow-heif",
        "2 links lead nowhere and are left out",
        "2 names hold control characters or no text and are left out: rename the files",
        "folders of thumbnails and deleted files are passed over: #recycle, @eaDir, __MACOSX",
    ]
    assert all(text.isprintable() for text in caplog.messages)
    with remark_scope(strict=True), pytest.raises(SourceError, match="--strict stops here"):
        list_pictures(folder)


def test_a_folder_without_rights_costs_itself_alone(tmp_path, monkeypatch, caplog):
    picture(tmp_path / "drive1" / "a.png")
    (tmp_path / "lost+found").mkdir()
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert [name for name, _ in list_pictures(tmp_path)] == ["drive1/a.png"]
    assert "1 folders cannot be read and are left out: check their rights" in caplog.text
    with pytest.raises(SourceError, match="cannot be read"):
        list_pictures(tmp_path / "lost+found")


def test_video_file(tmp_path):
    path = write_clip(tmp_path / "at 12:30.mp4")  # FFmpeg would take "at 12" for a protocol
    with open_source(str(path)) as source:
        assert (source.live, source.single, source.length) == (False, False, 12)
        frames = list(source)
    assert [frame.name for frame in frames] == [f"at 12:30.mp4#{i:06d}" for i in range(12)]
    assert [frame.timestamp for frame in frames] == pytest.approx([i / RATE for i in range(12)])
    assert [grey(frame) for frame in frames] == pytest.approx([16 * i for i in range(12)], abs=6)
    assert {frame.picture.mode for frame in frames} == {"RGB"}
    assert all(frame.error is None and frame.decode_ms > 0 for frame in frames)


def test_relative_video_path_with_a_colon(tmp_path, monkeypatch):
    write_clip(tmp_path / "12:30.mp4", frames=2)
    monkeypatch.chdir(tmp_path)
    with open_source("12:30.mp4") as source:
        assert len(list(source)) == 2


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
    ],
)
def test_video_held_sideways_is_turned_upright(tmp_path, matrix, turn):
    path = write_clip(tmp_path / "clip.mp4", frames=2)
    with open_source(str(path)) as source:
        flat = next(iter(source)).picture
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    with open_source(str(path)) as source:
        turned = next(iter(source)).picture
    assert np.array_equal(np.asarray(turned), np.asarray(flat.transpose(turn)))


def test_damaged_packets_give_errors_and_the_run_goes_on(tmp_path):
    path = write_clip(tmp_path / "clip.avi", frames=12, codec="mjpeg")
    content = path.read_bytes()
    pieces = content.split(b"\xff\xd8\xff")
    pieces[5] = bytes(len(pieces[5]) - 16) + pieces[5][-16:]  # all of the fifth picture, not the next one's header
    path.write_bytes(b"\xff\xd8\xff".join(pieces))
    with open_source(str(path)) as source:
        frames = list(source)
    bad = [frame for frame in frames if frame.error]
    assert len(bad) == 1
    assert "cannot be decoded" in bad[0].error
    assert len(frames) == 12
    assert len({frame.name for frame in frames}) == 12


def test_files_that_are_no_video(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "clip.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(SourceError, match=r"clip\.mp4 cannot be opened \(Invalid data.*\): check"):
        open_source(str(tmp_path / "clip.mp4"))
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:200])
    with pytest.raises(SourceError, match=r"cut\.mp4 .*: check that it is a whole"):
        open_source(str(tmp_path / "cut.mp4"))


def test_text_is_neither_picture_nor_video(tmp_path):
    (tmp_path / "notes.txt").write_text("FFmpeg would play this as text art\n" * 20)
    with pytest.raises(SourceError, match=r"not a picture .*; a video needs one of \.264 "):
        open_source(str(tmp_path / "notes.txt"))


def test_sound_without_video(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(SourceError, match=r"sound\.mp4 holds no video: check"):
        open_source(str(path))


def test_frames_that_are_not_wanted_are_not_made(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    asked = []

    def wanted(*frame):
        asked.append(frame)
        return frame[0] == 1

    assert [frame.name for frame in open_source(str(tmp_path)).frames(wanted)] == ["2.png"]
    assert asked == [(0, "1.png", None), (1, "2.png", None), (2, "3.png", None)]
    asked.clear()
    with open_source(str(write_clip(tmp_path / "clip.mp4", frames=3))) as source:
        assert [frame.name for frame in source.frames(wanted)] == ["clip.mp4#000001"]
    assert [name for _, name, _ in asked] == [f"clip.mp4#{i:06d}" for i in range(3)]
    assert asked[2][2] == pytest.approx(0.2)


def test_http_video_is_finite_and_complete(tmp_path):
    write_clip(tmp_path / "clip.mp4")
    with serving(partial(QuietFiles, directory=str(tmp_path))) as host:
        with open_source(f"http://user:secret@{host}/clip.mp4") as source:
            assert isinstance(source, VideoSource)
            assert (source.live, source.single) == (False, False)
            frames = []
            for frame in source:
                frames.append(frame)
                time.sleep(0.02)
        assert [frame.name for frame in frames] == [f"http://{host}/clip.mp4#{i:06d}" for i in range(12)]
        assert frames[-1].timestamp == pytest.approx(1.1)
        with pytest.raises(SourceError, match=r"nope\.mp4 cannot be opened \(Server returned 404") as caught:
            open_source(f"http://user:secret@{host}/nope.mp4")
    assert "secret" not in str(caught.value)


def test_http_camera_is_live():
    pytest.importorskip("av")
    with serving(MotionJpeg) as host, open_source(f"http://{host}/video") as source:
        assert isinstance(source, LiveSource)
        assert (source.live, source.length) == (True, None)
        frames = []
        for frame in source:
            frames.append(frame)
            time.sleep(0.2)
    assert len(frames) >= 3
    assert source.dropped >= 3
    assert len(frames) + source.dropped == 30
    numbers = [int(frame.name.rpartition("#")[2]) for frame in frames]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 29  # the end of the stream does not swallow its last picture
    assert [grey(frame) for frame in frames] == pytest.approx([8 * number for number in numbers], abs=2)
    arrived = [frame.timestamp for frame in frames]
    assert arrived == sorted(arrived)
    assert arrived[0] == pytest.approx(time.time(), abs=60)


def test_rtsp_camera_that_is_cut_goes_on(impatient, caplog):
    """The camera closes every connection after 20 frames."""
    pytest.importorskip("av")
    server = serving(RtspCamera, socketserver.ThreadingTCPServer)
    frames = []
    with server as host, open_source(f"rtsp://user:secret@{host}/live") as source:
        assert source.live
        for frame in source:
            frames.append(frame)
            if frame.name >= f"rtsp://{host}/live#000045":
                break
    numbers = [int(frame.name.rpartition("#")[2]) for frame in frames]
    assert numbers == sorted(set(numbers))
    assert {frame.error for frame in frames} == {None}
    assert [grey(frame) for frame in frames] == pytest.approx([12 * (number % 20) for number in numbers], abs=6)
    assert {number // 20 for number in numbers} == {0, 1, 2}  # of all three connections
    assert caplog.text.count(f"{host}/live has ended; trying again in 0.1 s") >= 2
    assert f"{host}/live is connected" in caplog.text
    assert "secret" not in caplog.text


def test_live_source_keeps_only_the_newest():
    pytest.importorskip("av")
    with lavfi(TEST_PATTERN) as source:
        frames = []
        for frame in source:
            frames.append(frame)
            if len(frames) == 4:
                break
            time.sleep(0.35)
        thread = source._thread
        assert thread.is_alive()
    assert not thread.is_alive()
    assert frames[0].picture.size == (320, 240)
    assert frames[0].name.startswith("test#")
    assert source.dropped >= 3
    steps = np.diff([int(frame.name.partition("#")[2]) for frame in frames])
    assert (steps >= 2).all()
    source.close()
    assert list(source) == []


def test_live_source_ends_with_its_stream():
    pytest.importorskip("av")
    with lavfi(f"{TEST_PATTERN}:duration=0.5") as source:
        frames = list(source)
        assert len(frames) + source.dropped == 5
        assert frames[-1].name == "test#000004"
        assert list(source) == []


@pytest.mark.parametrize(
    ("silence", "reason"),
    [(0, "Input/output error|Invalid data.*"), (5, "no data in time")],
    ids=["cut", "hangs"],
)
def test_a_stream_that_is_cut_or_hangs_goes_on(monkeypatch, impatient, caplog, silence, reason):
    pytest.importorskip("av")
    monkeypatch.setattr("pairvpr.runtime.sources.READ_TIMEOUT", 1.5)
    released = threading.Event()

    class Breaking(MotionJpeg):
        chunked = False

        def finish_stream(self):
            released.wait(silence)

    with serving(Breaking) as host:
        numbers = []
        with open_source(f"http://{host}/video") as source:
            for frame in source:
                numbers.append(int(frame.name.rpartition("#")[2]))
                if numbers[-1] >= 33:
                    break
        released.set()
    assert 29 in numbers  # the last before the loss is not lost with it
    assert re.search(rf"ended with a fault \(({reason})\): check .*; trying again in 0\.1 s", caplog.text)


def test_a_camera_that_is_unplugged_and_plugged_in_again(impatient, caplog):
    pytest.importorskip("av")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), MotionJpeg)
    port = server.server_address[1]
    connections = []

    class Camera(MotionJpeg):
        chunked = False

        def do_GET(self):
            connections.append(self.connection)
            super().do_GET()

    server.RequestHandlerClass = Camera
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    with open_source(f"http://127.0.0.1:{port}/video") as source:
        frames = iter(source)
        before = [next(frames) for _ in range(3)]
        server.shutdown()
        server.server_close()
        connections[0].shutdown(socket.SHUT_RDWR)
        while "Connection refused" not in caplog.text:
            time.sleep(0.05)
        again = http.server.ThreadingHTTPServer(("127.0.0.1", port), Camera)
        threading.Thread(target=again.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        while "is connected" not in caplog.text:
            time.sleep(0.05)
        after = [next(frames) for _ in range(4)]
        again.shutdown()
        again.server_close()
        connections[-1].shutdown(socket.SHUT_RDWR)
    numbers = [int(frame.name.rpartition("#")[2]) for frame in before + after]
    assert numbers == sorted(set(numbers))
    assert {frame.error for frame in before + after} == {None}


class Flaky:
    """A feed of so many frames, that is lost then."""

    def __init__(self, frames):
        self._frames = frames
        self.closed = False

    def shots(self):
        for _ in range(self._frames):
            yield Flaky.Shot()
        raise SourceError("it is lost")

    def close(self):
        self.closed = True

    class Shot:
        def as_frame(self, name, timestamp):
            return Frame(name, timestamp, Image.new("RGB", (32, 32)), None, 0.0)


def test_waits_grow_to_a_bound_and_start_anew_with_a_frame(impatient, caplog):
    tries = iter([Flaky(1), None, None, None, None, Flaky(0), Flaky(1), None])
    opened = []

    def connect():
        feed = next(tries, None)
        if feed is None:
            raise SourceError("it is not there")
        opened.append(feed)
        return feed

    with LiveSource("test", connect) as source:
        while caplog.text.count("trying again") < 8:
            time.sleep(0.02)
        assert source._thread.is_alive()
    waits = re.findall(r"(it is [a-z ]+); trying again in ([\d.]+) s", caplog.text)
    assert [wait for _, wait in waits[:8]] == ["0.1", "0.2", "0.4", "0.4", "0.4", "0.4", "0.1", "0.2"]
    assert [loss for loss, _ in waits[:2]] == ["it is lost", "it is not there"]
    assert [feed.closed for feed in opened] == [True] * 3
    assert not source._thread.is_alive()


def test_closing_does_not_wait_for_a_lost_source(monkeypatch, caplog):
    monkeypatch.setattr(live, "FIRST_WAIT", 60)
    with LiveSource("test", lambda: Flaky(1)) as source:
        assert next(iter(source)).name == "test#000000"
        while "trying again" not in caplog.text:
            time.sleep(0.02)
    assert not source._thread.is_alive()
    assert "does not respond" not in caplog.text
    assert list(source) == []


def test_a_source_that_cannot_be_opened_is_an_error():
    def connect():
        raise SourceError("it is no camera")

    with pytest.raises(SourceError, match="it is no camera"):
        LiveSource("test", connect)

    with pytest.raises(SourceError, match="cannot be opened"):  # it may be a video, every frame of which counts
        open_source("http://127.0.0.1:1/" + "x" * 5000)


def test_a_camera_that_is_not_there_at_first_is_waited_for(impatient, caplog):
    tries = iter([None, None, Flaky(1)])

    def connect():
        if (feed := next(tries)) is None:
            raise NotThereError("it is not there")
        return feed

    with LiveSource("test", connect) as source:
        assert next(iter(source)).name == "test#000000"
    assert [text for text in caplog.messages if "not there" in text] == [
        "it is not there; trying again in 0.1 s",
        "it is not there; trying again in 0.2 s",
    ]
    assert "test is connected" in caplog.messages


def test_a_camera_that_never_comes_can_be_closed(impatient, caplog):
    pytest.importorskip("av")
    with open_source("rtsp://127.0.0.1:9/x") as source:
        while caplog.text.count("Connection refused") < 2:
            time.sleep(0.02)
    assert not source._thread.is_alive()
    assert list(source) == []


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs character devices")  # noqa: PTH110
def test_character_devices_are_cameras():
    pytest.importorskip("av")
    with pytest.raises(SourceError, match=r"null cannot be opened .Inappropriate ioctl.*: check that /dev/null is a"):
        open_source("/dev/null")


def test_missing_camera_lists_the_cameras_found(tmp_path, monkeypatch, impatient, caplog):
    pytest.importorskip("av")
    monkeypatch.setattr(sources, "DEVICES", tmp_path)
    for found in (r"none", r"\S+/video2, \S+/video10"):
        with open_source("cam3"):
            while "trying again" not in caplog.text:
                time.sleep(0.02)
        assert re.search(rf"no camera \S+/video3 .found: {found}.: connect it or name another; trying", caplog.text)
        caplog.clear()
        for name in ("video10", "video2"):
            (tmp_path / name).touch()


def test_an_existing_path_comes_before_a_camera(tmp_path, monkeypatch):
    picture(tmp_path / "cam0" / "1.png")
    monkeypatch.chdir(tmp_path)
    assert [frame.name for frame in open_source("cam0")] == ["1.png"]


@pytest.mark.parametrize("query", ["", "nowhere.jpg", "cam", "camera0", "ftp://host/x", "a\0b", "x" * 5000])
def test_nothing_there(query):
    with pytest.raises(SourceError, match="is not a file, folder, camera or stream: give a picture"):
        open_source(query)


def test_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither file, folder nor camera"):
        open_source(str(tmp_path / "pipe"))


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"any")
    for query in (str(tmp_path / "clip.mp4"), "/dev/null", "rtsp://127.0.0.1:1/x"):
        with pytest.raises(SourceError, match=r'needs PyAV .*: pip install "pairvpr\[video\]"$'):
            open_source(query)
    picture(tmp_path / "a.png")
    assert len(list(open_source(str(tmp_path / "a.png")))) == 1


def test_exif_orientation_holds_in_folders(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    (frame,) = open_source(str(tmp_path))
    assert frame.picture.size == (20, 30)
