"""The images and videos that a prediction is asked for."""

import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from projects.SegFormer.dataset.folders import walk
from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES
from projects.SegFormer.dataset.video_files import VIDEO_SUFFIXES
from projects.SegFormer.evaluation.segmenter import KINDS
from projects.SegFormer.modeling.errors import InputError

SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


def is_video(path: str | Path) -> bool:
    return str(path).lower().endswith(VIDEO_SUFFIXES)


def find_images(paths: Sequence[Path], output: str = "") -> dict[str, Path]:
    """Image and video files by the name that their results get; that of a video ends with .mp4.

    Of a folder without results of an earlier prediction: those in a folder `output` within it, and
    those that `_results` tells. Raises InputError if there is nothing to do.
    """
    found, left_out = {}, 0
    own = os.path.realpath(output) + os.sep
    for path in paths:
        is_folder = os.path.isdir(path)
        files = [path]
        if is_folder:
            all_here = sorted(map(Path, walk(path, SUFFIXES)))
            results, root = _results(all_here), os.path.realpath(path) + os.sep
            if output and own != root and own.startswith(root):
                results |= {it for it in all_here if os.path.realpath(it).startswith(own)}
            files = [file for file in all_here if file not in results]
            left_out += len(all_here) - len(files)
            if all_here and not files:
                raise InputError(
                    f"no images in {path}: there are only results of an earlier prediction; give "
                    "the folder of the images"
                )
            if not files:
                raise InputError(f"no images in {path}: expected {', '.join(SUFFIXES)}")
        for file in files:
            name = file.relative_to(path) if is_folder else Path(file.name)
            name = str(name.with_suffix(".mp4" if is_video(file) else ""))
            if name in found:
                raise InputError(
                    f"{found[name]} and {file} would both be written as {name}: "
                    "give them in two runs with another --output"
                )
            found[name] = file
    if not found:
        raise InputError("no image was given: expected images, videos or folders of them")
    if left_out:
        print(f"note: {left_out} results of an earlier prediction are left out", file=sys.stderr)
    return found


def _results(files: Sequence[Path]) -> set[Path]:
    """Those of some files that a prediction has written: named for a kind of result, and beside
    another kind, beside what they are of, or in the folder of a video's frames."""
    there, of_one, results = {file.with_suffix("") for file in files}, defaultdict(list), set()
    for file in files:
        name, _, kind = file.stem.rpartition("_")
        if name and kind in KINDS and file.suffix in (".png", ".mp4"):
            of_one[file.with_name(name)].append(file)
            if file.parent.name.endswith(f"_{kind}"):
                results.add(file)
    for image, its_files in of_one.items():
        if len(its_files) > 1 or image in there:
            results.update(its_files)
    return results
