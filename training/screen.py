"""What must not stay in an index: images that cannot be read or are named twice, patients and copies across splits."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shared.errors import Rejected
from training import duplicates, index
from training.index import OTHER, SPLITS, Item
from worker.pipeline import decode

RANK = {split: rank for rank, split in enumerate(SPLITS)}  # of two copies the one in the lower split leaves
EMPTY = np.zeros((0, duplicates.SIDE, duplicates.SIDE), np.uint8)


@dataclass(frozen=True)
class Finding:
    """One image and what is wrong with it; `other` is the image that it repeats, `left_out` whether it leaves."""

    id: str
    reason: str
    other: str = ""
    detail: str = ""
    left_out: bool = True


def screen(items: Sequence[Item], root: Path, cache: Path) -> tuple[list[Item], list[Finding]]:
    """The items that may stay, in their order, and what was found about the others; thumbnails are kept in `cache`.

    Of a film that is in two splits the copy in the lower one (train, stop, val, test in this order) leaves, so that no
    film of a test was trained on. Copies with contradictory labels leave training altogether. Where no patients are
    known, copies become one group and its split is drawn anew.
    """
    items, found = _named_once(items)
    items, thumbnails, unreadable = _readable(items, root, cache)
    items, astray = _patients_in_one_split(items)
    kept = {item.id for item in items}
    pairs = duplicates.find(np.stack([thumbnails[item.id] for item in items]) if items else EMPTY)
    items = _drawn_together(items, pairs)
    copies = list(_copies(items, pairs))
    gone = {finding.id for finding in copies if finding.left_out}
    return [item for item in items if item.id in kept - gone], [*found, *unreadable, *astray, *copies]


def write(findings: Iterable[Finding], path: Path) -> None:
    """Write the findings as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Finding)])
        writer.writeheader()
        writer.writerows(asdict(finding) for finding in findings)


def _named_once(items: Sequence[Item]) -> tuple[list[Item], list[Finding]]:
    """The first image of each id, in a split that exists."""
    kept: dict[str, Item] = {}
    found = []
    for item in items:
        if item.split not in SPLITS:
            found.append(Finding(item.id, "unknown split", detail=item.split))
        elif item.id in kept:
            found.append(Finding(item.id, "id named twice", detail=item.image))
        else:
            kept[item.id] = item
    return list(kept.values()), found


def _readable(items: list[Item], root: Path, cache: Path) -> tuple[list[Item], dict[str, np.ndarray], list[Finding]]:
    """The images that the worker's own decoder reads, and their thumbnails by id; known ones come from the cache."""
    known = _cached(cache)
    thumbnails, kept, found = {}, [], []
    for item in tqdm(items, "reading", mininterval=10):
        try:
            path = root / item.image
            key = f"{item.id}:{item.sha256}:{path.stat().st_size}"
            if key not in known:
                known[key] = duplicates.thumbnail(decode.decode(path.read_bytes()).pixels)
        except FileNotFoundError:
            found.append(Finding(item.id, "missing file", detail=item.image))
        except Rejected as error:
            found.append(Finding(item.id, "unreadable", detail=error.code))
        else:
            thumbnails[item.id] = known[key]
            kept.append(item)
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(cache, keys=np.array(list(known)), thumbnails=np.stack(list(known.values())) if known else EMPTY)
    return kept, thumbnails, found


def _cached(cache: Path) -> dict[str, np.ndarray]:
    if not cache.is_file():
        return {}
    with np.load(cache) as stored:
        return dict(zip(stored["keys"].tolist(), stored["thumbnails"], strict=True))


def _patients_in_one_split(items: list[Item]) -> tuple[list[Item], list[Finding]]:
    """Of a patient in two splits the images outside the highest leave."""
    highest: dict[str, str] = {}
    for item in items:
        highest[item.group] = max(highest.get(item.group, item.split), item.split, key=RANK.__getitem__)
    found = [
        Finding(item.id, "patient in two splits", detail=f"{item.group} is in {highest[item.group]} too")
        for item in items
        if item.split != highest[item.group]
    ]
    gone = {finding.id for finding in found}
    return [item for item in items if item.id not in gone], found


def _drawn_together(items: list[Item], pairs: Sequence[duplicates.Pair]) -> list[Item]:
    """Copies of images without a known patient (their group is their own checksum) as one group in one split."""
    parent = list(range(len(items)))

    def top(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for pair in pairs:
        if all(items[i].group == items[i].sha256 for i in (pair.first, pair.second)):
            one, other = sorted((top(pair.first), top(pair.second)))
            parent[other] = one
    groups = [items[top(i)].group for i in range(len(items))]
    return [
        item if item.group == group else replace(item, group=group, split=index.drawn(group))
        for item, group in zip(items, groups, strict=True)
    ]


def _copies(items: list[Item], pairs: Sequence[duplicates.Pair]) -> Iterable[Finding]:
    """What to do about each pair of copies; one line per image that leaves, or per pair that may stay."""
    for pair in pairs:
        low, high = sorted((items[pair.first], items[pair.second]), key=lambda item: RANK[item.split])
        alike = f"likeness {pair.likeness:.3f}"
        if OTHER not in (low.label, high.label) and low.label != high.label:
            detail = f"{low.label} in {low.split}, {high.label} in {high.split}, {alike}"
            yield Finding(low.id, "copies with contradictory labels", high.id, detail)
            if RANK[high.split] <= RANK["stop"]:
                yield Finding(high.id, "copies with contradictory labels", low.id, detail)
        elif low.split != high.split:
            yield Finding(low.id, "copy across splits", high.id, f"{low.split}, {high.split}, {alike}")
        else:
            yield Finding(low.id, "copy within a split", high.id, f"{low.split}, {alike}", left_out=False)


def report(items: Sequence[Item], findings: Sequence[Finding]) -> str:
    """The index in Markdown: what is in it, what was left out and why, and where class and source go together."""
    classes = index.classes(list(items))
    lines = ["# The index", "", f"{len(items)} images, fingerprint `{index.fingerprint(list(items))[:12]}`.", ""]
    names = [*classes, OTHER]
    for title, key in (("split", "split"), ("source", "source"), ("population", "population"), ("masks", "mask_kind")):
        lines += [f"## By {title}", "", *_counts(items, key, names), ""]
    lines += ["## Left out, and flagged", "", *_reasons(findings), "", "## Class and source", "", *_confounded(items)]
    return "\n".join(lines) + "\n"


def _counts(items: Sequence[Item], key: str, names: list[str]) -> list[str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        counts[getattr(item, key)][item.label] += 1
    rows = [f"| {value} | " + " | ".join(str(each[n]) for n in names) + " |" for value, each in sorted(counts.items())]
    return [f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names), *rows]


def _reasons(findings: Sequence[Finding]) -> list[str]:
    counts = Counter((f.reason, f.left_out) for f in findings)
    if not counts:
        return ["Nothing."]
    rows = [f"| {reason} | {n} | {'left out' if out else 'kept'} |" for (reason, out), n in sorted(counts.items())]
    return ["| reason | images | |", "| --- | --- | --- |", *rows, "", "Each of them: `left-out.csv`."]


def _confounded(items: Sequence[Item]) -> list[str]:
    """Warnings: a class from one source, a source with one class. A network can learn the hospital instead."""
    sources, labels = defaultdict(set), defaultdict(set)
    for item in items:
        if item.label != OTHER:
            sources[item.label].add(item.source)
            labels[item.source].add(item.label)
    said = [f"- Every image of {c} is from {next(iter(s))}." for c, s in sorted(sources.items()) if len(s) == 1]
    said += [f"- {s} has no other class than {next(iter(c))}." for s, c in sorted(labels.items()) if len(c) == 1]
    return said or ["No class has one source alone, and no source one class alone."]
