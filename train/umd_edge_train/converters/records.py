"""The manifest's records of a converted set."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .sample import SPLITS, Converter, Images, Sample, Split

__all__ = ["Records", "build_records", "count_records", "image_name", "sort_key"]

Records = Mapping[str, Sequence[Mapping[str, Any]]]
"""Split -> records."""


def sort_key(sample: Sample) -> tuple[tuple[str, ...], str]:
    """Puts samples in an order that is not the source's."""
    return sample.key, json.dumps(dict(sample.fields), sort_keys=True)


def image_name(path: Path, folder: Path, images: Images) -> str:
    """What a record calls a picture: a path below the manifest's folder.

    Args:
        path: The picture.
        folder: The source's folder, above it.
        images: How pictures are placed.
    """
    first = "source" if images == "reference" else "images"
    return f"{first}/{path.relative_to(folder).as_posix()}"


def _identities(converter: Converter, samples: Sequence[Sample]) -> list[str]:
    """An id of each record, made from its key alone; repeated records are numbered."""
    seen: Counter[str] = Counter()
    identities = []
    for sample in samples:
        digest = hashlib.sha256(json.dumps(sample.key).encode()).hexdigest()[:16]
        seen[digest] += 1
        number = f"-{seen[digest]}" if seen[digest] > 1 else ""
        identities.append(f"{converter.name}-{digest}{number}")
    return identities


def build_records(
    converter: Converter,
    samples: Sequence[Sample],
    groups: Sequence[str],
    splits: Sequence[Split],
    image_names: Mapping[Path, str],
) -> dict[str, list[dict[str, Any]]]:
    """The records of each split.

    Args:
        converter: Names the set and its patients.
        samples: In the order of `sort_key`.
        groups: Name of each sample's group.
        splits: Split of each sample.
        image_names: What records call the pictures.
    """
    records: dict[str, list[dict[str, Any]]] = defaultdict(list)
    family = converter.family or converter.name
    identities = _identities(converter, samples)
    for sample, identity, group, split in zip(samples, identities, groups, splits, strict=True):
        record = {
            "id": identity,
            "patient_id": f"{family}-{group}",
            "image": image_names[sample.image],
            "split": split,
            **sample.fields,
            "official_split": sample.official_split,
            "license": sample.license,
            "non_commercial": sample.non_commercial,
            "source_url": sample.source_url,
            "dataset": converter.name,
        }
        known = {key: value for key, value in record.items() if value not in (None, {}, [])}
        records[split].append(known)
    return dict(records)


def count_records(records: Records) -> tuple[dict[str, dict[str, int]], int]:
    """Records, pictures and patients of each split, and the patients of more than one split."""
    splits: list[str] = [split for split in SPLITS if split in records]
    patients = {split: {record["patient_id"] for record in records[split]} for split in splits}
    counts = {
        split: {
            "records": len(records[split]),
            "pictures": len({record["image"] for record in records[split]}),
            "patients": len(patients[split]),
        }
        for split in splits
    }
    uses = Counter(patient for found in patients.values() for patient in found)
    return counts, sum(count > 1 for count in uses.values())
