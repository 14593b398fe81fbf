"""`echotrain view`: a picture of images in a file, beside a reference when there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from pipelines.extra_series import is_extra
from pipelines.mrd import Image
from pipelines.preview import is_preview
from server.errors import FileError
from server.gallery import Pair, is_deviation, key_of, pair_images, write_gallery
from server.image_file import read_images


def main(
    file: Annotated[Path, typer.Argument(help="Images of `send` or of the Gadgetron client.", metavar="FILE.h5")],
    output: Annotated[
        Path | None, typer.Option(help="The picture; by default beside the file.", metavar="FILE.png")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Images of the same slices to compare with.", metavar="FILE.h5")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Group of the images, where the file has several.")] = None,
    title: Annotated[str, typer.Option(help="First line of the picture.")] = "",
) -> None:
    r"""Make a picture: magnitude, uncertainty, and the absolute difference to a reference.

    The images are scaled to the reference by one factor before they are compared; figures of merit are printed.

    \b
    Example:
        echotrain view images.h5 --reference truth.h5 --output images.png

    \b
    Exit statuses: 0 written, 1 a file cannot be read or the reference does not fit, 2 wrong arguments.
    """
    images = [image for series in read_images(file, group).values() for image in series]
    target = _reference_of(reference) if reference is not None else None
    picture = output or file.with_suffix(".png")
    comparison = write_gallery(picture, title or file.stem, _of_one_size(images), target)
    if comparison is not None:
        agreement = comparison.agreement
        typer.echo(f"PSNR {agreement.psnr_db:.2f} dB, SSIM {agreement.ssim:.4f}, NRMSE {100 * agreement.nrmse:.2f} %")
        if comparison.within is not None:
            typer.echo(f"{100 * comparison.within:.1f} % of the object within 1.96 standard deviations (95 % expected)")
    typer.echo(picture)


def _reference_of(path: Path) -> dict[tuple[int, ...], NDArray[np.floating]]:
    images = [image for series in read_images(path).values() for image in series]
    originals = [i for i in images if not (is_deviation(i) or is_extra(i) or is_preview(i))]
    return {key_of(image): np.abs(image.pixels[0]).astype(np.float32) for image in originals}


def _of_one_size(images: Sequence[Image]) -> list[Pair]:
    """Magnitude images of the size of the first; others cannot share its scale."""
    pairs = pair_images(images)
    if not pairs:
        raise FileError("the file holds no magnitude images")
    return [pair for pair in pairs if pair.magnitude.pixels.shape == pairs[0].magnitude.pixels.shape]
