"""Processor, memory and disks."""

import os
import shutil
import tempfile
from pathlib import Path

from dtl.base.system import (
    SYSTEM,
    available_memory,
    container_limit,
    installed_memory,
    processor_features,
    processor_name,
    usable_cores,
)
from dtl.base.units import in_gb, in_gib
from dtl.diagnostics.findings import Finding

# The features by which torch chooses its kernels; asimd is ARM's flag for NEON.
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
DISPLAY_NAMES = {"asimd": "neon"}
LITTLE_MEMORY = 2 * 2**30  # model=qa: 57 M weights with gradients and Adam's moments take 0.9 GiB, torch 0.5
LITTLE_DISK = 4e9  # what a run of model=qa keeps: five checkpoints of 0.7 GB
NO_DISK = 1e9  # less than two of them: a new one is complete before the old one is deleted


# --- processor and memory -----------------------------------------------------------------------------------------


def look_at_processor(root: Path = SYSTEM) -> Finding:
    """Return the row of the processor: model, usable cores, features that matter to torch."""
    flags = processor_features(root)
    features = [DISPLAY_NAMES.get(feature, feature) for feature in FEATURES if feature in flags]
    total, usable = os.cpu_count() or 1, usable_cores(root)
    cores = f"{total} cores" if usable >= total else f"{usable} of {total} cores usable"
    return Finding([("processor", f"{processor_name(root)}, {cores}; {', '.join(features) or 'features unknown'}")])


def look_at_memory(root: Path = SYSTEM) -> Finding:
    """Return the row of memory: total, free, and the limit of the container."""
    total, available, limit = installed_memory(root), available_memory(root), container_limit(root)
    words = in_gib(total) if total else "size unknown"
    if available is not None:
        words += f", {in_gib(available)} free"
    if limit is not None and (total is None or limit < total):
        words += f", at most {in_gib(limit)} in this container"
    finding = Finding([("memory", words)])
    free = min((n_bytes for n_bytes in (available, limit) if n_bytes is not None), default=LITTLE_MEMORY)
    if free < LITTLE_MEMORY:
        finding.warnings.append(
            f"only {in_gib(free)} of memory are free. Close other programs, or use a small model: model=small "
            "tokenizer=bpe trainer.micro_batch_size=1."
        )
    return finding


# --- disks --------------------------------------------------------------------------------------------------------


def look_at_disk(outputs: Path, cache: Path) -> Finding:
    """Check free space and write access at `outputs`, and free space at the download cache if on another disk."""
    place = _nearest(outputs)
    free = shutil.disk_usage(place).free
    finding = Finding([("disk", f"{in_gb(free)} free at {outputs}/")])
    if error := _write_error(outputs, place):
        finding.problems.append(
            f"{outputs}/: runs cannot be written there ({error}). Fix its permissions, or work in another folder."
        )
    if free < NO_DISK:
        finding.problems.append(
            f"{outputs}/: only {in_gb(free)} are free, and one checkpoint of model=qa takes 0.7 GB. Free some "
            "space: delete old runs."
        )
    elif free < LITTLE_DISK:
        finding.warnings.append(
            f"only {in_gb(free)} are free at {outputs}/; a run of model=qa keeps up to {LITTLE_DISK / 1e9:.0f} "
            "GB of checkpoints. Free some space, or lower trainer.keep."
        )
    cache_place = _nearest(cache)
    if os.stat(cache_place).st_dev != os.stat(place).st_dev:
        room = shutil.disk_usage(cache_place).free
        finding.rows = [("disk", f"{in_gb(free)} free at {outputs}/, {in_gb(room)} at {cache}")]
        if room < LITTLE_DISK:
            finding.warnings.append(
                f"only {in_gb(room)} are free at {cache}, where downloads are stored. Free some space, or set HF_HOME."
            )
    return finding


def _nearest(folder: Path) -> Path:
    """Return the folder itself, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _write_error(folder: Path, place: Path) -> str:
    """Return why `folder`, whose nearest existing parent is `place`, is not writable; empty when it is."""
    if not place.is_dir():
        return f"{place} is a file"
    if folder.is_symlink() and not folder.exists():
        return "a link to nowhere"
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""
