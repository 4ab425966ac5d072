"""The index after its screening: nothing unreadable, no patient and no copy in two splits, everything told."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders import chest
from training import index, screen
from training.index import Item


def film(seed: int) -> np.ndarray:
    """A film uint8 [160, 150] of one person."""
    grain = np.random.default_rng(seed).normal(size=(20, 19))
    coarse = np.asarray(Image.fromarray(grain.astype(np.float32)).resize((150, 160), Image.Resampling.BICUBIC))
    return np.clip(chest(seed, (160, 150)) + 25 * coarse, 0, 255).astype(np.uint8)


@pytest.fixture
def pack(tmp_path: Path) -> tuple[Path, list[Item]]:
    """Twelve films of twelve patients: six for training, two to stop, two for validation, two for the test."""
    splits = ["train"] * 6 + ["stop"] * 2 + ["val"] * 2 + ["test"] * 2
    items = []
    for n, split in enumerate(splits):
        Image.fromarray(film(n)).save(tmp_path / f"{n}.png")
        label = ("normal", "covid19")[n % 2]
        items.append(Item(f"f{n}", label, "one", f"patient-{n}", split, "none", f"{n}.png", "", f"{n:064x}"))
    return tmp_path, items


def again(root: Path, n: int, name: str) -> str:
    """The same film smaller and recompressed, as another collection would hand it on."""
    Image.fromarray(film(n)).resize((120, 128)).save(root / name, quality=60)
    return name


def test_a_clean_set_stays_whole(pack: tuple[Path, list[Item]]) -> None:
    root, items = pack
    assert screen.screen(items, root, root / "cache.npz") == (items, [])


@pytest.mark.parametrize(("of", "split", "leaves"), [(10, "train", "copy"), (0, "test", "f0"), (8, "stop", "copy")])
def test_of_a_copy_across_splits_the_lower_one_leaves(
    pack: tuple[Path, list[Item]], of: int, split: str, leaves: str
) -> None:
    root, items = pack
    copy = replace(
        items[of], id="copy", group="someone", split=split, image=again(root, of, "copy.jpg"), sha256="e" * 64
    )
    kept, found = screen.screen([*items, copy], root, root / "cache.npz")
    assert [f.id for f in found] == [leaves]
    assert found[0].reason == "copy across splits"
    assert {i.id for i in [*items, copy]} - {i.id for i in kept} == {leaves}


def test_copies_with_contradictory_labels_leave_training_and_are_told(pack: tuple[Path, list[Item]]) -> None:
    root, items = pack
    wrong = {"label": "lung_opacity", "group": "someone", "sha256": "e" * 64}
    copies = [
        replace(items[0], id="in-train", image=again(root, 0, "a.jpg"), **wrong),
        replace(items[11], id="of-test", split="train", image=again(root, 11, "b.jpg"), **wrong),
    ]
    kept, found = screen.screen([*items, *copies], root, root / "cache.npz")
    assert {i.id for i in [*items, *copies]} - {i.id for i in kept} == {"f0", "in-train", "of-test"}
    assert {f.reason for f in found} == {"copies with contradictory labels"}


def test_contradictory_labels_in_the_test_are_told_and_stay(pack: tuple[Path, list[Item]]) -> None:
    root, items = pack
    wrong = replace(items[10], id="wrong", label="lung_opacity", group="someone", image=again(root, 10, "copy.jpg"))
    kept, found = screen.screen([*items, wrong], root, root / "cache.npz")
    assert len(kept) == 13
    assert {(f.id, f.reason, f.left_out) for f in found} == {
        (name, "copies with contradictory labels", False) for name in ("f10", "wrong")
    }


def test_a_copy_within_a_split_stays_is_told_and_shares_the_group(pack: tuple[Path, list[Item]]) -> None:
    root, items = pack
    copy = replace(items[1], id="copy", group="someone", image=again(root, 1, "copy.jpg"))
    also = replace(items[2], id="also", group="someone")  # another film of the patient whose film was copied
    Image.fromarray(film(60)).save(root / "also.png")
    kept, found = screen.screen([*items, copy, replace(also, image="also.png")], root, root / "cache.npz")
    groups = {item.id: item.group for item in kept}
    assert len(kept) == 14
    assert groups["f1"] == groups["copy"] == groups["also"] == "patient-1"
    assert len(set(groups.values())) == 12
    assert [(f.reason, f.left_out) for f in found] == [("copy within a split", False)]


def test_a_mask_that_cannot_be_used_is_taken_away_and_told(pack: tuple[Path, list[Item]]) -> None:
    root, items = pack
    masks = {"good": (300, 320), "empty": (150, 160), "squashed": (200, 160)}  # a good one of twice the film's size
    for name, (width, height) in masks.items():
        Image.new("L", (width, height), 0 if name == "empty" else 255).save(root / f"{name}.png")
    (root / "broken.png").write_bytes(b"\x89PNG no more")
    for n, name in enumerate(("good", "empty", "squashed", "broken", "")):
        items[n] = replace(items[n], mask=name and f"{name}.png", mask_kind="drawn")
    kept, found = screen.screen(items, root, root / "cache.npz")
    assert [(item.mask, item.mask_kind) for item in kept if item.mask] == [("good.png", "drawn")]
    assert [(f.id, f.reason) for f in found if not f.left_out] == [
        ("f1", "mask empty"),
        ("f2", "mask of another shape"),
        ("f3", "mask unreadable"),
        ("f4", "mask missing"),
    ]
    assert len(kept) == 12


def test_what_cannot_be_used_leaves_with_its_reason(pack: tuple[Path, list[Item]]) -> None:
    root, items = pack
    (root / "3.png").write_bytes((root / "3.png").read_bytes()[:300])
    (root / "4.png").unlink()
    bad = [
        replace(items[5], image="5.png"),
        replace(items[5], id="lost", split="holdout"),
        replace(items[6], id="twice-a-patient", split="test", image=again(root, 20, "x.jpg")),
    ]
    kept, found = screen.screen([*items, *bad], root, root / "cache.npz")
    reasons = {(f.id, f.reason) for f in found}
    assert reasons == {
        ("f3", "unreadable"),
        ("f4", "missing file"),
        ("f5", "id named twice"),
        ("lost", "unknown split"),
        ("f6", "patient in two splits"),
    }
    assert {i.id for i in kept} == {"f0", "f1", "f2", "f5", *(f"f{n}" for n in range(7, 12)), "twice-a-patient"}
    page = screen.report(kept, found)
    assert "| unreadable | 1 | left out |" in page
    assert "one source" not in page


def test_a_class_that_is_none_of_the_four_is_told(pack: tuple[Path, list[Item]]) -> None:
    root, items = pack
    (root / "Covid").mkdir()
    (root / "0.png").rename(root / "Covid" / "0.png")
    items[0] = replace(items[0], label=index.OTHER, image="Covid/0.png")
    kept, found = screen.screen(items, root, root / "cache.npz")
    assert kept == items
    assert [(f.id, f.reason, f.detail, f.left_out) for f in found] == [
        ("Covid", "class indexed as other", "1 images", False)
    ]


def test_thumbnails_come_from_the_cache(pack: tuple[Path, list[Item]], monkeypatch: pytest.MonkeyPatch) -> None:
    root, items = pack
    first = screen.screen(items, root, root / "cache.npz")
    monkeypatch.setattr(screen.decode, "decode", lambda data: pytest.fail("decoded again"))
    assert screen.screen(items, root, root / "cache.npz") == first


def test_folders_without_patients_get_one_group_for_copies(tmp_path: Path, hilum_train: Callable[..., str]) -> None:
    root, runs = tmp_path / "COVID-19_Radiography_Dataset", tmp_path / "runs"
    for folder in ("COVID", "Normal"):
        (root / folder / "images").mkdir(parents=True)
        (root / folder / "masks").mkdir()
        for n in range(12):
            name = f"{folder}-{n}.png"
            Image.fromarray(film(n + 50 * (folder == "Normal"))).save(root / folder / "images" / name)
            Image.fromarray(np.full((64, 64), 255, np.uint8)).save(root / folder / "masks" / name)
    for n in range(8):
        source = Image.open(root / "COVID" / "images" / f"COVID-{n}.png")
        source.resize((141, 150)).save(root / "COVID" / "images" / f"COVID-again-{n}.png")
    (root / "Normal" / "images" / "broken.png").write_bytes(b"no image")
    (root / "Tuberculosis" / "images").mkdir(parents=True)
    said = hilum_train("index", "--data", root, "--runs", runs)
    assert "left out: 1 (unreadable)" in said
    assert "left out: 1 (folder left alone)" in said
    items = {item.id: item for item in index.read(runs / "index.csv")}
    assert len(items) == 32
    for n in range(8):
        one, other = items[f"COVID-{n}"], items[f"COVID-again-{n}"]
        assert (one.group, one.split) == (other.group, other.split)
    with (runs / "left-out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["id"] for r in rows if r["left_out"] == "True"] == ["Tuberculosis", "broken"]
    assert sum(r["reason"] == "copy within a split" for r in rows) == 8
    assert "- Every image of covid19 is from covid19-radiography-database." in (runs / "index-report.md").read_text()
    shutil.rmtree(root)
