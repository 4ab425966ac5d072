"""The index of a data set: one row per image with its class, its patient or group, its split and its files."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from shared.errors import Misconfigured

CLASSES = {
    "COVID": "covid19",
    "Lung_Opacity": "lung_opacity",
    "Normal": "normal",
    "Viral_Pneumonia": "viral_pneumonia",
    "Viral Pneumonia": "viral_pneumonia",
}
OTHER = "other"
SPLITS = ("train", "stop", "val", "test")
FOLDS = 2


@dataclass(frozen=True)
class Item:
    """One image: `split` is train, stop (early stopping, drawn from train), val or test.

    The paths are relative to the data set's folder; `population` is adult, child or unknown.
    """

    id: str
    label: str
    source: str
    group: str
    split: str
    mask_kind: str
    image: str
    mask: str
    sha256: str
    population: str = "unknown"
    licence: str = ""


def build(root: Path, more: Sequence[Path] = ()) -> list[Item]:
    """Index `root`: a folder with manifest.csv, or CLASS/images + CLASS/masks (COVID-19 Radiography Database).

    The images of the folders `more` follow, all of them for training.
    """
    items = _from_folder(root)
    for folder in more:
        items += [_moved(item, Path(os.path.relpath(folder, root))) for item in _from_folder(folder)]
    return items


def _from_folder(root: Path) -> list[Item]:
    if (root / "manifest.csv").is_file():
        return _from_manifest(root)
    if any((root / name / "images").is_dir() for name in CLASSES):
        return _from_folders(root)
    raise Misconfigured(f"{root} holds neither manifest.csv nor folders CLASS/images")


def _moved(item: Item, folder: Path) -> Item:
    """An image of another folder, for training: a tenth of its groups stop there too, as everywhere."""
    paths = {"image": str(folder / item.image), "mask": str(folder / item.mask) if item.mask else ""}
    group = item.id if item.group == item.sha256 else item.group  # no split is drawn for it, with whatever copies
    return replace(item, group=group, split=_stopped("train", group), **paths)


def overlooked(root: Path) -> dict[str, str]:
    """The folders of a data set without manifest.csv that `build` leaves alone, and why: never silently."""
    if (root / "manifest.csv").is_file():
        return {}
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if folder.name not in CLASSES:
            found[folder.name] = f"unknown class, {len(_files(folder / 'images'))} images"
        elif not _files(folder / "images"):
            found[folder.name] = "no files in images/"
    return found


def write(items: list[Item], path: Path) -> None:
    """Write the index as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Item)])
        writer.writeheader()
        writer.writerows(asdict(item) for item in items)


def read(path: Path) -> list[Item]:
    """Read an index written by `write`."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Item(**row) for row in csv.DictReader(file)]


def classes(items: list[Item]) -> list[str]:
    """The classes of an index in the order that training uses and the manifest then records."""
    return sorted({item.label for item in items} - {OTHER})


def fold(item: Item) -> int:
    """Which of the FOLDS of the lungs network's training images this one is in: whole groups, by their hash."""
    return int(_share("lungs", item.group) * FOLDS)


def fingerprint(items: list[Item]) -> str:
    """One sha256 over the ids, splits, labels and image checksums: which data a model was made from."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda i: i.id):
        digest.update(f"{item.id},{item.label},{item.split},{item.sha256}\n".encode())
    return digest.hexdigest()


def _from_manifest(root: Path) -> list[Item]:
    populations = _populations(root / "provenance.csv")
    with (root / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return [_item(root, row, populations.get(row["id"], "")) for row in csv.DictReader(file)]


def _populations(path: Path) -> dict[str, str]:
    """What provenance.csv, where there is one, says about the patient of each image."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row["population"] for row in csv.DictReader(file)}


def _population(said: str) -> str:
    """Free text as adult, child or unknown; "adult or unknown" counts as adult, as the pack's README does."""
    return next((word for key, word in (("adult", "adult"), ("paediatric", "child")) if key in said), "unknown")


def _item(root: Path, row: dict[str, str], population: str) -> Item:
    """Where the manifest names no split, the patient decides it; unknown too, the file, whose checksum is the group."""
    image, mask = (f"{kind}/{row['class']}/{row['id']}{end}" for kind, end in (("images", ".jpg"), ("masks", ".png")))
    digest, split = row.get("sha256") or _checksum(root / image), row.get("split") or ""
    group = row.get("patient_id") or (row["id"] if split else digest)
    return Item(
        id=row["id"],
        label=CLASSES.get(row["class"], OTHER),
        source=row.get("source") or "unknown",
        group=group,
        split=_stopped(split, group) if split else drawn(group),
        mask_kind=row.get("mask_kind") or "none",
        image=image,
        mask=mask if (root / mask).is_file() else "",
        sha256=digest,
        population=_population(population),
        licence=row.get("licence", ""),
    )


def _from_folders(root: Path) -> list[Item]:
    """No patients are known there: exact copies form a group, and the split is drawn by the group's hash, 70/10/20."""
    found = [(label, path) for name, label in CLASSES.items() for path in _files(root / name / "images")]
    named = Counter(path.stem for _, path in found)
    masks = {path.with_suffix(""): path for name in CLASSES for path in _files(root / name / "masks")}
    return [_film(root, label, path, masks.get(path.parents[1] / "masks" / path.stem), named) for label, path in found]


def _film(root: Path, label: str, path: Path, mask: Path | None, named: Counter[str]) -> Item:
    """A name that several classes use, such as 1.png, is told apart by its class."""
    digest = _checksum(path)
    name = path.stem if named[path.stem] == 1 else f"{path.parents[1].name}_{path.name}"
    return Item(
        id=name.replace(" ", "_"),
        label=label,
        source="covid19-radiography-database",
        group=digest,
        split=drawn(digest),
        mask_kind="database",
        image=path.relative_to(root).as_posix(),
        mask=mask.relative_to(root).as_posix() if mask else "",
        sha256=digest,
    )


def _files(folder: Path) -> list[Path]:
    """The files of a folder by name; what an operating system hides there is none of the data set."""
    return [path for path in sorted(folder.glob("*")) if path.is_file() and not path.name.startswith(".")]


def _checksum(path: Path) -> str:
    """The sha256 of a file; empty where there is none, which `screen` then tells."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def drawn(group: str) -> str:
    """The split of a group where the data set names none: train, stop, val or test by its hash, 63/7/10/20."""
    return _stopped(_drawn(group), group)


def _drawn(group: str) -> str:
    share = _share("split", group)
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


def _stopped(split: str, group: str) -> str:
    """A tenth of the training groups decides when to stop, and nothing else is learned from it."""
    return "stop" if split == "train" and _share("stop", group) < 0.1 else split


def _share(salt: str, group: str) -> float:
    return int(hashlib.sha256(f"{salt}:{group}".encode()).hexdigest()[:8], 16) / 0x100000000
