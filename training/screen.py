"""What must not stay in an index: images that cannot be read or are named twice, patients and copies across splits."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from shared.errors import Rejected
from training import duplicates, index
from training.index import OTHER, SPLITS, Item
from worker.pipeline import decode

RANK = {split: rank for rank, split in enumerate(SPLITS)}  # of two copies the one in the lower split leaves
FITTED = ("train", "stop")
LEFT_OUT = "left-out.csv"
SQUASHED = 0.03  # two aspect ratios that differ by more are not those of one film
EMPTY = np.zeros((0, duplicates.SIDE, duplicates.SIDE), np.uint8)


@dataclass(frozen=True)
class Finding:
    """One image and what is wrong with it; `other` is the image that it repeats, `left_out` whether it leaves."""

    id: str
    reason: str
    other: str = ""
    detail: str = ""
    left_out: bool = True


@dataclass(frozen=True)
class Seen:
    """What is kept of a picture that was read: its thumbnail uint8 [64, 64] and its width over its height."""

    thumbnail: np.ndarray
    aspect: float


Known = dict[str, Seen]


def screen(items: Sequence[Item], root: Path, cache: Path) -> tuple[list[Item], list[Finding]]:
    """The items that may stay, in their order, and what was found about the others; thumbnails are kept in `cache`.

    Of a film that is in two splits the copy in the lower one (train, stop, val, test in this order) leaves, so that no
    film of a test was trained on. Copies with contradictory labels leave training altogether. Where no patients are
    known, copies become one group and its split is drawn anew. Copies within a split stay, as one group; a mask that
    cannot be used leaves its image without one.
    """
    known = _cached(cache)
    items, found = _named_once(items)
    items, seen, unreadable = _readable(items, root, known)
    items, maskless = _masked(items, root, seen, known)
    _keep(known, cache)
    items, astray = _patients_in_one_split(items)
    pairs = duplicates.find(np.stack([seen[item.id].thumbnail for item in items]) if items else EMPTY)
    items = _drawn_together(items, pairs)
    copies = list(_copies(items, pairs))
    gone = {finding.id for finding in copies if finding.left_out}
    items = [item for item in _grouped(items, pairs, gone) if item.id not in gone]
    return items, [*_renamed(items), *found, *unreadable, *maskless, *astray, *copies]


def overlooked(folders: Iterable[Path]) -> list[Finding]:
    """The subfolders of these data sets whose images are not in the index at all."""
    named = [(name, why) for folder in folders for name, why in index.overlooked(folder).items()]
    return [Finding(name, "folder left alone", detail=why) for name, why in named]


def _renamed(items: Iterable[Item]) -> list[Finding]:
    """The classes that became `other`: by intention, or because a manifest spells one of the four differently."""
    names = Counter(Path(item.image).parent.name for item in items if item.label == OTHER)
    return [Finding(name, "class indexed as other", "", f"{n} images", False) for name, n in sorted(names.items())]


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


def _readable(items: list[Item], root: Path, known: Known) -> tuple[list[Item], dict[str, Seen], list[Finding]]:
    """The images that the worker's own decoder reads, and what they look like by id; the known are not read again."""
    seen, kept, found = {}, [], []
    for item in tqdm(items, "reading", mininterval=10):
        try:
            seen[item.id] = _seen(root / item.image, f"{item.id}:{item.sha256}", known)
        except FileNotFoundError:
            found.append(Finding(item.id, "missing file", detail=item.image))
        except Rejected as error:
            found.append(Finding(item.id, "unreadable", detail=error.code))
        else:
            kept.append(item)
    return kept, seen, found


def _masked(items: list[Item], root: Path, seen: dict[str, Seen], known: Known) -> tuple[list[Item], list[Finding]]:
    """The items without the masks that would teach the lungs network nothing, or something wrong."""
    kept, found = [], []
    for item in tqdm(items, "reading masks", mininterval=10):
        problem = _problem(item, root, seen[item.id], known)
        if problem:
            found.append(Finding(item.id, problem, detail=item.mask or item.mask_kind, left_out=False))
            item = replace(item, mask="", mask_kind="none")
        kept.append(item)
    return kept, found


def _problem(item: Item, root: Path, film: Seen, known: Known) -> str:
    """What is wrong with the mask of an item; another size than its film's is fine, another shape is not."""
    if not item.mask:
        return "" if item.mask_kind == "none" else "mask missing"
    try:
        mask = _seen(root / item.mask, item.mask, known)
    except (FileNotFoundError, Rejected):
        return "mask unreadable"
    if not mask.thumbnail.any():
        return "mask empty"
    return "" if abs(mask.aspect / film.aspect - 1) < SQUASHED else "mask of another shape"


def _seen(path: Path, name: str, known: Known) -> Seen:
    key = f"{name}:{path.stat().st_size}"
    if key not in known:
        pixels = decode.decode(path.read_bytes()).pixels
        known[key] = Seen(duplicates.thumbnail(pixels), pixels.shape[1] / pixels.shape[0])
    return known[key]


def _cached(cache: Path) -> Known:
    if not cache.is_file():
        return {}
    with np.load(cache) as stored:
        if "aspects" not in stored:
            return {}
        rows = zip(stored["keys"].tolist(), stored["thumbnails"], stored["aspects"].tolist(), strict=True)
        return {key: Seen(thumbnail, aspect) for key, thumbnail, aspect in rows}


def _keep(known: Known, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    thumbnails = np.stack([seen.thumbnail for seen in known.values()]) if known else EMPTY
    np.savez(cache, keys=np.array(list(known)), thumbnails=thumbnails, aspects=[s.aspect for s in known.values()])


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
    unknown = {item.group for item in items if item.group == item.sha256}
    names = _joined(items, [p for p in pairs if {items[p.first].group, items[p.second].group} <= unknown])
    moved = {old: new for old, new in names.items() if old != new}
    return [
        replace(item, group=moved[item.group], split=index.drawn(moved[item.group])) if item.group in moved else item
        for item in items
    ]


def _grouped(items: list[Item], pairs: Sequence[duplicates.Pair], gone: set[str]) -> list[Item]:
    """The patients of copies that stay as one group, so that they stay together in folds and resamples too."""
    names = _joined(items, [p for p in pairs if not {items[p.first].id, items[p.second].id} & gone])
    return [replace(item, group=names.get(item.group, item.group)) for item in items]


def _joined(items: list[Item], pairs: Sequence[duplicates.Pair]) -> dict[str, str]:
    """One name for all groups that pairs connect, the first in the alphabet, by each of them."""
    groups = sorted({items[i].group for pair in pairs for i in (pair.first, pair.second)})
    place = {group: n for n, group in enumerate(groups)}
    edges = np.array([[place[items[p.first].group], place[items[p.second].group]] for p in pairs], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(groups), len(groups)))
    parts = connected_components(graph, directed=False)[1] if groups else []
    first = {part: group for part, group in reversed(list(zip(parts, groups, strict=True)))}
    return {group: first[part] for group, part in zip(groups, parts, strict=True)}


def _copies(items: list[Item], pairs: Sequence[duplicates.Pair]) -> Iterable[Finding]:
    """What to do about each pair of copies; one line per image that leaves, or per pair that may stay."""
    for pair in pairs:
        low, high = sorted((items[pair.first], items[pair.second]), key=lambda item: RANK[item.split])
        alike = f"likeness {pair.likeness:.3f}"
        if OTHER not in (low.label, high.label) and low.label != high.label:
            detail = f"{low.label} in {low.split}, {high.label} in {high.split}, {alike}"
            for one, other in ((low, high), (high, low)):
                leaves = one.split != "test" and (one.split in FITTED or RANK[one.split] <= RANK[other.split])
                yield Finding(one.id, "copies with contradictory labels", other.id, detail, leaves)
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
    return ["| reason | images | |", "| --- | --- | --- |", *rows, "", f"Each of them: `{LEFT_OUT}`."]


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
