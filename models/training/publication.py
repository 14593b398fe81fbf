"""What a run leaves for the card of its model: data with their licences, device, duration, figures.

Knows nothing of what was trained, and writes nothing: `models.store.save_model` does.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

from models.card import DataSource
from models.errors import TrainingDataError, TrainingError
from models.training.images import Source
from models.training.loop import CHECKPOINT, read_history

_LICENCES: Final = (
    (r"cc0(?:[ -]1\.0)?", "CC0-1.0"),
    (r"cc[ -]by((?:[ -](?:sa|nc|nd))*)[ -](\d\.\d)", "CC-BY{}-{}"),
    (r"bsd[ -]?([23])(?:[ -]clause)?", "BSD-{}-Clause"),
    (r"mit", "MIT"),
    (r"apache[ -]?2(?:\.0)?", "Apache-2.0"),
    (r"pddl(?:[ -]1\.0)?", "PDDL-1.0"),
    (r"odc-by(?:[ -]1\.0)?", "ODC-By-1.0"),
    (r"odbl(?:[ -]1\.0)?", "ODbL-1.0"),
)
"""How licences that allow training are written, and their SPDX identifiers (https://spdx.org/licenses)."""

_REMARK: Final = re.compile(r"\(([^()]*)\)")
_MOST_CHARACTERS: Final = 2000


def spdx(licence: str) -> str | None:
    """The SPDX expression of a licence as people write it; None where a part of it is not known.

    Remarks in parentheses are left out; licences with commas between them hold together: `BSD-3 (head), BSD-2 (neck)`
    is `BSD-3-Clause AND BSD-2-Clause`. `LicenseRef-...`, SPDX's word for all others, is taken as it is.
    """
    parts = [part.strip() for part in re.split(r",|;|\band\b", _REMARK.sub("", licence), flags=re.IGNORECASE)]
    found = [_identifier(part) for part in parts]
    return " AND ".join(dict.fromkeys(name for name in found if name)) if parts and all(found) else None


def _identifier(licence: str) -> str | None:
    if re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", licence):
        return licence
    for pattern, name in _LICENCES:
        match = re.fullmatch(pattern, licence, re.IGNORECASE | re.ASCII)
        if match:
            return name.format(*(group.upper().replace(" ", "-") for group in match.groups()))
    return None


def data_sources(sources: Sequence[Source], licences: Mapping[str, str]) -> tuple[DataSource, ...]:
    """What a card says about the data that a model was trained on.

    Args:
        sources: as they were read for training.
        licences: SPDX expressions by the name of a source, before what the files say.

    Raises:
        TrainingDataError: a licence is not known, or one is given for data that are not there.
    """
    strange = sorted(licences.keys() - {source.name for source in sources})
    if strange:
        raise TrainingDataError(f"a licence is given for {', '.join(strange)}, but no data are called so")
    records: list[DataSource] = []
    for source in sources:
        licence = licences.get(source.name) or spdx(source.licence)
        if licence is None:
            said = f"says '{source.licence}'" if source.licence else "says nothing"
            raise TrainingDataError(f"{source.name}: no licence is known by its SPDX identifier; the file {said}")
        records.append(
            DataSource(
                name=f"{source.name}: {len(source.subjects)} subjects, {len(source.slices)} slices",
                licence=licence,
                source=address(source.origin)[:_MOST_CHARACTERS] or "not stated in the file",
                attribution=(source.attribution or "; ".join(_REMARK.findall(source.licence)))[:_MOST_CHARACTERS],
            )
        )
    return tuple(records)


def address(origin: str) -> str:
    """Where data come from, in one line.

    An origin of lines `source: ...` and `commit/version: ...` gives these two; any other is taken as it is.
    """
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in origin.splitlines())}
    where, version = fields.get("source", ""), fields.get("commit/version", "")
    if not where:
        return " ".join(origin.split())
    where = re.sub(r"^github:", "https://github.com/", where)
    return f"{where}, version {version}" if version else where


def device_name(device: str) -> str:
    """Kind of CPU or GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(torch.device(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named and named[0] else platform.processor() or platform.machine()


def code_version() -> str:
    """Version of this program."""
    return metadata.version("echotrain")


def final_figures(directory: Path, updates: int) -> dict[str, float]:
    """Figures of a run's last look, with the unit in each name as a card wants them.

    Raises:
        TrainingError: the history does not reach the last update.
    """
    history = read_history(directory)
    if not history or history[-1]["update"] != updates:
        raise TrainingError(f"the history in {directory} does not tell of update {updates}; its figures are not known")
    last = history[-1]
    psnr = {name: value for name, value in last.items() if name.startswith("psnr_db") or name in {"ssim", "covered_90"}}
    energies = {
        f"{name}_nats_per_pixel": value
        for name, value in last.items()
        if name.startswith("energy_") and name != "energy_difference"  # of one batch, to watch training by
    }
    return psnr | energies


def duration_s(directory: Path) -> tuple[float, bool]:
    """How long a run took, and whether that was measured.

    Runs begun before times were recorded are told of by their files: from the first picture to the last checkpoint,
    which is less than all.

    Raises:
        TrainingError: there is no run.
    """
    history = read_history(directory)
    if history and "seconds" in history[-1]:
        return history[-1]["seconds"], True
    checkpoint = directory / CHECKPOINT
    if not checkpoint.is_file():
        raise TrainingError(f"{directory} holds no run")
    times = [path.stat().st_mtime for path in (*directory.glob("*.png"), checkpoint)]
    return max(0.0, checkpoint.stat().st_mtime - min(times)), False
