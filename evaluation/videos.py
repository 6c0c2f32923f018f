"""The segmentation of a video as videos, and as files of each frame."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from projects.SegFormer.dataset.video_files import VideoFile
from projects.SegFormer.evaluation.pictures import VideoWriter
from projects.SegFormer.evaluation.result_files import make_folder
from projects.SegFormer.evaluation.segmenter import OPACITY, RESULTS, Segmenter
from projects.SegFormer.modeling.errors import printable

FILMS = ("colors", "overlay")  # results that are videos; the others are a file a frame


def segment_video(
    segmenter: Segmenter,
    file: str | os.PathLike,
    target: str | os.PathLike,
    kinds: Sequence[str] = RESULTS,
    opacity: float = OPACITY,
    classes: Sequence[str] | None = None,
) -> None:
    """Write TARGET_colors.mp4 and TARGET_overlay.mp4, of the video's size and frame rate, without
    legend and sound; of other kinds files, as TARGET_labels/000000_labels.png.

    One frame after the other is decoded, segmented and written.

    Args:
        target: path of the results, without the suffix.
        kinds, opacity, classes: see `Segmentation.save`.
    Raises InputError: the file is no video, or ends before its last frame: then what could be
        decoded is written; or the results cannot be written: then no video is.
    """
    video, target = VideoFile(file), Path(target)
    make_folder(target.parent)
    bar = dict(total=video.length, unit="frame", leave=False, disable=None, file=sys.stderr)
    with ExitStack() as stack:
        films = {
            kind: stack.enter_context(
                VideoWriter(f"{target}_{kind}.mp4", video.size, video.frame_rate)
            )
            for kind in FILMS
            if kind in kinds
        }
        frames = tqdm(video, desc=printable(target.name), **bar)
        for index, result in enumerate(segmenter(frames)):
            for kind in kinds:
                if kind in films:
                    films[kind].write(result.picture(kind, opacity, classes, legend=False))
                else:
                    result.save(f"{target}_{kind}", f"{index:06d}", [kind], classes=classes)
    video.check_whole()
