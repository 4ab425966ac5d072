"""The index: classes, groups that never cross splits, and both layouts of a data set."""

from __future__ import annotations

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


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured):
        index.build(tmp_path)


def test_the_fingerprint_changes_with_a_label_and_not_with_the_order(data: Path) -> None:
    items = index.build(data)
    changed = [index.Item(**{**vars(items[0]), "label": "normal"}), *items[1:]]
    assert index.fingerprint(items[::-1]) == index.fingerprint(items) != index.fingerprint(changed)
