"""The index: classes, groups that never cross splits, and both layouts of a data set."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import Misconfigured
from training import index


def test_a_pack_with_a_manifest_keeps_its_splits(data: Path, tmp_path: Path) -> None:
    items = index.build(data)
    assert {item.split for item in items} == set(index.SPLITS)
    assert index.classes(items) == ["covid19", "lung_opacity", "normal", "viral_pneumonia"]
    assert all((data / item.image).is_file() and (data / item.mask).is_file() for item in items)
    index.write(items, tmp_path / "index.csv")
    assert index.read(tmp_path / "index.csv") == items


def test_folders_of_classes_are_split_by_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("COVID", "Viral Pneumonia"):
        (tmp_path / folder / "images").mkdir(parents=True)
        (tmp_path / folder / "masks").mkdir()
        for n in range(40):
            film = Image.fromarray(rng.integers(0, 255, (8, 8)).astype(np.uint8))
            film.save(tmp_path / folder / "images" / f"{folder}-{n}.png")
            film.save(tmp_path / folder / "images" / f"{folder}-{n}-copy.png")
    items = index.build(tmp_path)
    assert len(items) == 160
    splits = defaultdict(set)
    for item in items:
        splits[item.group].add(item.split)
    assert len(splits) == 80
    assert all(len(each) == 1 for each in splits.values())  # a copy is never in two splits
    assert index.classes(items) == ["covid19", "viral_pneumonia"]
    assert all(" " not in item.id for item in items)


def film(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8)).astype(np.uint8)).save(path)


def test_a_name_that_two_classes_use_is_two_images_and_a_mask_is_found_by_its_name(tmp_path: Path) -> None:
    for seed, folder in enumerate(("COVID", "Normal")):
        film(tmp_path / folder / "images" / "1.jpg", seed)
        film(tmp_path / folder / "images" / f"{folder} 2.png", 10 + seed)
        film(tmp_path / folder / "masks" / "1.png", 20)
        (tmp_path / folder / "images" / ".DS_Store").write_bytes(b"hidden")
    items = {item.id: item for item in index.build(tmp_path)}
    assert sorted(items) == ["COVID_1.jpg", "COVID_2", "Normal_1.jpg", "Normal_2"]
    assert items["Normal_1.jpg"].mask == "Normal/masks/1.png"
    assert items["Normal_2"].mask == ""


def test_folders_that_are_no_class_are_told(tmp_path: Path) -> None:
    film(tmp_path / "COVID" / "images" / "a.png", 0)
    film(tmp_path / "Covid" / "images" / "b.png", 1)
    (tmp_path / "Normal").mkdir()
    assert [item.id for item in index.build(tmp_path)] == ["a"]
    assert index.overlooked(tmp_path) == {"Covid": "unknown class, 1 images", "Normal": "no files in images/"}


def test_a_manifest_may_leave_split_patient_and_checksum_to_the_index(tmp_path: Path) -> None:
    rows = [f"p{n // 2}-{n},Normal,p{n // 2}," for n in range(200)] + ["lone,Normal,,", "given,Normal,,val"]
    (tmp_path / "manifest.csv").write_text("id,class,patient_id,split\n" + "\n".join(rows), encoding="utf-8")
    film(tmp_path / "images" / "Normal" / "lone.jpg", 0)
    film(tmp_path / "images" / "Normal" / "given.jpg", 1)
    *items, lone, given = index.build(tmp_path)
    assert all(one.split == other.split for one, other in zip(items[::2], items[1::2], strict=True))  # a patient
    shares = {split: sum(item.split == split for item in items) / 200 for split in index.SPLITS}
    assert 0.5 < shares["train"] < 0.75
    assert 0.1 < shares["test"] < 0.3
    assert lone.group == lone.sha256 == hashlib.sha256((tmp_path / lone.image).read_bytes()).hexdigest()
    assert (given.split, given.group) == ("val", "given")


def test_images_of_a_further_folder_are_for_training_only(data: Path, tmp_path: Path) -> None:
    for n in range(30):
        film(tmp_path / "more" / "COVID" / "images" / f"{n}.png", n)
    items = index.build(data, [tmp_path / "more"])
    added = items[len(index.build(data)) :]
    assert {item.split for item in added} == {"train", "stop"}
    assert all((data / item.image).is_file() and item.group != item.sha256 for item in added)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured):
        index.build(tmp_path)


def test_the_fingerprint_changes_with_a_label_and_not_with_the_order(data: Path) -> None:
    items = index.build(data)
    changed = [index.Item(**{**vars(items[0]), "label": "normal"}), *items[1:]]
    assert index.fingerprint(items[::-1]) == index.fingerprint(items) != index.fingerprint(changed)
