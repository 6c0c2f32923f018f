"""Videos in and out: against OpenCV's frames, segmented one by one, and files of all that is none.

The films are made here with other codecs than the project writes, so that both ends are seen.
"""

import os
import resource
import shutil
import signal
import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_prediction import ODD, huggingface, photo

from data_files import raises_line
from projects.SegFormer.dataset.video_files import VideoFile
from projects.SegFormer.engine import command_line
from projects.SegFormer.evaluation.picture_inputs import BATCH
from projects.SegFormer.evaluation.pictures import VideoWriter
from projects.SegFormer.evaluation.segmenter import Segmenter
from projects.SegFormer.evaluation.videos import segment_video
from projects.SegFormer.modeling.bounds import IMAGE_PIXELS_SETTING
from projects.SegFormer.tools import predict
from projects.SegFormer.tools.predict import find_images

FRAMES, HEIGHT, WIDTH, RATE = 10, 64, 96, 12.5


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "weights"
    huggingface(folder, 5, dict(do_resize=False, **ODD))
    return folder


@pytest.fixture(scope="module")
def segmenter(weights) -> Segmenter:
    return Segmenter(weights)


def film(path: Path, codec: str = "MJPG") -> Path:
    """A square that moves over a smooth picture."""
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), RATE, (WIDTH, HEIGHT)
    )
    ground = np.indices((HEIGHT, WIDTH)).sum(0).astype(np.uint8)
    for index in range(FRAMES):
        frame = np.stack([ground, 200 - ground, 2 * ground // 3], axis=-1)
        frame[10:40, 8 * index : 8 * index + 20] = (20, 60, 240)
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture(scope="module")
def avi(tmp_path_factory) -> Path:
    return film(tmp_path_factory.mktemp("films") / "film.avi")


def frames_of(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(found[1][..., ::-1])
    return frames


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_results_are_those_of_the_frames(segmenter, avi, tmp_path):
    kinds = ("labels", "overlay", "colors", "polygons")
    segment_video(segmenter, avi, tmp_path / "out" / "my.film", kinds, opacity=0.4)
    frames = [np.ascontiguousarray(frame) for frame in frames_of(avi)]
    expected = [segmenter(frame) for frame in frames]
    assert len(frames) == FRAMES
    assert names_in(tmp_path / "out") == {
        *("my.film_overlay.mp4", "my.film_colors.mp4"),
        *(f"my.film_labels/{index:06d}_labels.png" for index in range(FRAMES)),
        *(f"my.film_polygons/{index:06d}.geojson" for index in range(FRAMES)),
        *(f"my.film_polygons/{index:06d}_rle.json" for index in range(FRAMES)),
    }
    for index, result in enumerate(expected):
        file = tmp_path / "out" / "my.film_labels" / f"{index:06d}_labels.png"
        assert (cv2.imread(str(file), cv2.IMREAD_UNCHANGED) != result.labels).mean() < 1e-3
    for kind in ("overlay", "colors"):
        file = tmp_path / "out" / f"my.film_{kind}.mp4"
        assert cv2.VideoCapture(str(file)).get(cv2.CAP_PROP_FPS) == RATE
        for frame, result in zip(frames_of(file), expected, strict=True):
            picture = result.picture(kind, opacity=0.4, legend=False)
            assert frame.shape == picture.shape == (HEIGHT, WIDTH, 3)
            assert np.abs(frame.astype(int) - picture).mean() < 12  # what the codec loses
    assert np.ptp([result.labels.sum() for result in expected]) > 0  # the frames differ


def test_a_film_is_never_held(segmenter, avi):
    video = VideoFile(avi)
    results = segmenter(video)
    next(results)
    assert video.frames_read <= BATCH + 1 < FRAMES
    assert video.length == FRAMES and video.frame_rate == RATE and video.size == (HEIGHT, WIDTH)


def test_films_of_telephones_are_turned(tmp_path):
    """The header says so: here a quarter to the right."""
    plain = film(tmp_path / "plain.mp4", "mp4v")
    data = bytearray(plain.read_bytes())
    matrix = data.index(b"tkhd") + 44
    turned = struct.pack(">9i", 0, 2**16, 0, -(2**16), 0, 0, 0, 0, 2**30)
    data[matrix : matrix + 36] = turned
    (tmp_path / "turned.mp4").write_bytes(data)
    video = VideoFile(tmp_path / "turned.mp4")
    assert video.size == (WIDTH, HEIGHT)
    for frame, upright in zip(video, frames_of(plain), strict=True):
        np.testing.assert_array_equal(frame, np.rot90(upright, -1))


@pytest.mark.parametrize("name", ["%d.avi", "http:x.avi", os.fsdecode(b"caf\xe9.AVI"), "a b.ts"])
def test_names_are_those_of_files(avi, tmp_path, name):
    shutil.copy(avi, tmp_path / name)
    video = VideoFile(tmp_path / name)
    assert len(list(video)) == FRAMES
    video.check_whole()


def cut_short(avi: Path, path: Path) -> Path:
    path.write_bytes(avi.read_bytes()[: avi.stat().st_size * 2 // 3])
    return path


def test_what_is_there_of_a_cut_film_is_whole(segmenter, avi, tmp_path):
    cut = cut_short(avi, tmp_path / "cut.avi")
    with raises_line(rf"{cut}: damaged or cut short: \d of {FRAMES} frames can be decoded"):
        segment_video(segmenter, cut, tmp_path / "out" / "cut", ("overlay",))
    assert names_in(tmp_path / "out") == {"cut_overlay.mp4"}
    count = len(frames_of(tmp_path / "out" / "cut_overlay.mp4"))
    assert count == len(frames_of(cut)) and 0 < count < FRAMES


def empty(path: Path, avi: Path) -> None:
    path.touch()


def text(path: Path, avi: Path) -> None:
    path.write_text("no film\n")


def picture(path: Path, avi: Path) -> None:
    photo(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)


def start_of_one(path: Path, avi: Path) -> None:
    path.write_bytes(film(path.with_name("whole.mp4"), "mp4v").read_bytes()[:500])


def playlist(path: Path, avi: Path) -> None:
    """FFmpeg would read the file that it names, or ask another machine for it."""
    other = film(path.with_name("other.ts"), "MPG2")
    assert len(frames_of(other)) > 1
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{other}\n#EXT-X-ENDLIST\n")


def list_of_parts(path: Path, avi: Path) -> None:
    shutil.copy(avi, path.with_name("other.avi"))
    path.write_text("ffconcat version 1.0\nfile other.avi\n")


@pytest.mark.parametrize("make", [empty, text, picture, start_of_one, playlist, list_of_parts])
def test_what_is_no_film_is_told(segmenter, avi, tmp_path, make):
    make(tmp_path / "film.mp4", avi)
    with raises_line(f"{tmp_path}/film.mp4: damaged, cut short or not a video"):
        segment_video(segmenter, tmp_path / "film.mp4", tmp_path / "out" / "film")
    assert not (tmp_path / "out").exists()


def test_what_is_no_file_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, words in (("pipe.mp4", "is no regular file"), ("gone.mp4", "No such file")):
        with raises_line(f"{tmp_path}/{name}.*{words}"):
            VideoFile(tmp_path / name)


def test_large_frames_are_told(avi, monkeypatch):
    monkeypatch.setenv(IMAGE_PIXELS_SETTING, str(HEIGHT * WIDTH))
    VideoFile(avi)
    monkeypatch.setenv(IMAGE_PIXELS_SETTING, str(HEIGHT * WIDTH - 1))
    with raises_line(f"film.avi has more pixels a frame than the .*{IMAGE_PIXELS_SETTING}"):
        VideoFile(avi)


@pytest.mark.parametrize("kind", ["larger", "smaller"])
def test_frames_of_another_size_end_a_film(avi, kind):
    """OpenCV says of some that it has no room for them."""

    class Capture:
        def read(self):
            if kind == "larger":
                raise cv2.error("Assertion failed")
            return True, np.zeros((HEIGHT - 2, WIDTH, 3), np.uint8)

    video = VideoFile(avi)
    frames = iter(video)
    for _ in range(FRAMES):
        next(frames)
    video._capture = Capture()
    assert next(frames, None) is None
    with raises_line(f"damaged or cut short: {FRAMES} of {FRAMES} frames"):
        video.check_whole()


@pytest.mark.parametrize("rate", [0.5, 23.976, 29.97, 119.88, 240.0031, 1000])
def test_odd_sides_and_rates(tmp_path, rate):
    rows, columns = np.indices((33, 51))
    frame = np.stack([5 * rows, 4 * columns, rows + columns], axis=-1).astype(np.uint8)
    with VideoWriter(tmp_path / os.fsdecode(b"\xff.mp4"), (33, 51), rate) as video:
        for _ in range(3):
            video.write(frame)
    os.rename(tmp_path / os.fsdecode(b"\xff.mp4"), tmp_path / "film.mp4")
    found = frames_of(tmp_path / "film.mp4")
    capture = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    assert len(found) == 3 and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=1e-4)
    padded = np.pad(frame, ((0, 1), (0, 1), (0, 0)), mode="edge").astype(int)
    assert found[0].shape == padded.shape and np.abs(found[0] - padded).max() < 20
    assert os.listdir(tmp_path) == ["film.mp4"]


@pytest.mark.parametrize("size", [(8, 64), (64, 8191)])
def test_sizes_that_the_codec_does_not_take(tmp_path, size):
    with raises_line("cannot write .*MPEG-4 takes sides of 16 to 8190"):
        VideoWriter(tmp_path / "film.mp4", size, 25)
    assert not os.listdir(tmp_path)


def test_a_video_is_written_whole_or_not_at_all(tmp_path):
    path, noise = tmp_path / "film.mp4", np.random.default_rng(0)
    path.write_bytes(b"before")

    def write(error: type | None = None) -> None:
        with VideoWriter(path, (64, 64), 25) as video:
            for _ in range(5):
                video.write(noise.integers(0, 256, (64, 64, 3)).astype(np.uint8))
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with raises_line("cannot write .*film.mp4: the disk is full"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with VideoWriter(path, (64, 64), 25):
        pass  # no frame
    with raises_line("cannot write .*gone/film.mp4: No such file"):
        VideoWriter(tmp_path / "gone" / "film.mp4", (64, 64), 25)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["film.mp4"]
    write()
    assert len(frames_of(path)) == 5


def test_ctrl_c_leaves_nothing_half_written(segmenter, avi, tmp_path):
    def interrupted(frames):
        yield segmenter(next(iter(frames)))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with pytest.raises(SystemExit) as end:
        command_line.run(
            lambda _: segment_video(interrupted, avi, tmp_path / "out" / "film", ["overlay"])
        )
    assert end.value.code == 130 and not names_in(tmp_path / "out")


def test_the_tool_takes_films_folders_and_photos(weights, avi, tmp_path, capsys):
    folder, output = tmp_path / "frames", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    photo(folder / "deep" / "0001.png")
    photo(tmp_path / "film.png")  # beside the film of this name
    shutil.copy(avi, folder / "other.avi")
    cut = cut_short(avi, tmp_path / "cut.avi")
    code = predict.main(
        ["--weights", str(weights), "--output", str(output), "--save", "overlay"]
        + [str(path) for path in (avi, cut, tmp_path / "film.png", folder)]
    )
    printed = capsys.readouterr()
    assert code == 1 and "4 of 5 files segmented: see " in printed.out
    assert printed.err.count("videos are written without sound") == 1
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(cut) in errors[0]
    assert names_in(output) == {
        *("film_overlay.mp4", "film_overlay.png", "cut_overlay.mp4"),
        *("other_overlay.mp4", "deep/0001_overlay.png"),
    }


def test_results_of_an_earlier_prediction_are_left_out(tmp_path, capsys):
    inputs = ("film.MOV", "photo.jpg", "sky_labels.png", "deep/frame.png")
    results = (
        *("film_overlay.mp4", "film_labels/000000_labels.png", "photo_probabilities.png"),
        *("deep/frame_colors.png", "gone_labels.png", "gone_overlay.png"),
    )
    for name in (*inputs, *results):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path], str(tmp_path))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in found.values()) == sorted(
        inputs
    )
    assert set(found) == {"film.mp4", "photo", "sky_labels", "deep/frame"}
    assert "note: 6 results of an earlier prediction are left out" in capsys.readouterr().err


def test_two_films_of_one_name(tmp_path):
    for name in ("a.mp4", "a.avi", "a.png"):
        (tmp_path / name).touch()
    with raises_line("a.avi and .*a.mp4 would both be written as a.mp4"):
        find_images([tmp_path])
