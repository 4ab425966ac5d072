"""What is known to be wrong with the training images, as sentences; their figures are those of metrics.json."""

from __future__ import annotations

from collections import Counter
from typing import Any

from training.report import figure, percent

CHILDREN = "kermany-guangzhou-paediatric"
DATABASE = ("covid19-radiography-db", "covid19-radiography-db-rsna", "covid19-radiography-database")
COVID = ("covid19-radiography-db", "covid-cxnet", "cohen-covid-chestxray", "covid19-radiography-database")

# Sentences that hold where any of the named sources is among the images.
KNOWN: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (*COVID, CHILDREN),
        "**Burned-in marks.** Letters, arrows, captions and the names of devices differ by source: many COVID-19 "
        'films carry "D", "DCHA" or "PORTATIL", panel letters or the day of the illness, the children\'s films an '
        '"R". The networks see the lungs only, but a mark can lie within the lungs\' crop.',
    ),
    (
        COVID,
        "**COVID-19 means a positive PCR, not a visible disease.** Many of these films look normal or nearly so, "
        "and no reader could name the class from them.",
    ),
    (
        (CHILDREN, "nih-chestxray8-subset", "covid-qu-ex-subset"),
        "**Lung opacity is a mixture**: bacterial pneumonia of children graded by physicians, adult labels that a "
        "program found in reports and that are often wrong, and other adult pneumonia, some of it effusion, old "
        "tuberculosis or tubes and wires rather than pneumonia.",
    ),
    (
        (CHILDREN,),
        "**Virus against bacteria in children is a weak distinction** on a radiograph. Viral pneumonia and lung "
        "opacity must be expected to be mistaken for each other.",
    ),
    (
        (*DATABASE, CHILDREN, "covid-qu-ex-subset"),
        "**Squashed copies.** Some copies were squeezed into a square upstream, so that their proportions are "
        "lost; how many are differs by source.",
    ),
    (
        (*COVID, "nih-chestxray8-subset", *DATABASE),
        "**Views.** Portable films of lying patients (AP) are mostly of the sick, standing films (PA) mostly of "
        "the healthy; the view, which shows in heart and shoulders, goes with the class.",
    ),
    (
        ("shenzhen-nlm", CHILDREN),
        "**Lungs drawn by two conventions**, tied to the source: with the lung behind the heart (children, "
        "COVID-19) and without it (Shenzhen). Masks of children were matched to films by their outline, which "
        "favours films with clear edges.",
    ),
    (
        ("nih-chestxray8-subset", "covid19-radiography-db-rsna"),
        "**One hospital under two names.** RSNA and NIH films come from the same hospital and the RSNA copies "
        "name no patient: a patient may be in both, and in two splits.",
    ),
    (
        ("covid19-radiography-db", "covid-cxnet"),
        "**Patients that are only guessed.** Some COVID-19 collections name no patient; blocks of neighbouring "
        "numbers were kept in one split instead, and a patient at the edge of a block may be in two.",
    ),
    (
        ("covid19-radiography-database",),
        "**No patients are named.** Exact copies of a file were kept in one split, but two films of one person "
        "may be in training and in test: the figures flatter.",
    ),
)


def sentences(figures: dict[str, Any]) -> list[str]:
    """Every known bias of the images that the figures are of, in Markdown, the most important first."""
    short = figures["shortcuts"]
    present = {source for counts in short["sources"].values() for source in counts}
    known = [text for needed, text in KNOWN if present & set(needed)]
    found = [_sources(short["sources"], figures), *_ages(short["populations"]), _size(short["image_size"], figures)]
    return [*found, *known, _test()]


def _sources(by_class: dict[str, dict[str, int]], figures: dict[str, Any]) -> str:
    guess = figures["baselines"]["source_majority"]
    parts = []
    for name, counts in by_class.items():
        source, count = Counter(counts).most_common(1)[0]
        where = "one source alone" if len(counts) == 1 else f"{len(counts)} sources"
        parts.append(f"{name} from {where} ({percent(count / sum(counts.values()))} {source})")
    return (
        "**Class and source are confounded.** The classes come from different collections: "
        f"{'; '.join(parts)}. A model that recognises the hospital, the scanner or the age does well here. Naming each "
        f"source's most frequent class, without a look at the film, is right in {percent(guess['accuracy'])} (macro-F1 "
        f"{figure(guess['macro_f1'])})."
    )


def _ages(by_class: dict[str, dict[str, int]]) -> list[str]:
    if not any("child" in counts for counts in by_class.values()):
        return []
    shares = []
    for name, counts in by_class.items():
        children, count = counts.get("child", 0), sum(counts.values())
        shares.append(f"{name} {children} of {count} ({percent(children / count)})")
    return [f"**Class and age go together.** Films of children by class: {', '.join(shares)}."]


def _size(found: dict[str, Any], figures: dict[str, Any]) -> str:
    largest = figures["baselines"]["majority"]["accuracy"]
    return (
        "**Size and compression of a file follow its source.** A table of widths and heights, without any pixel, names "
        f"the class of {percent(found['accuracy'])} of the test films (the most frequent class alone: "
        f"{percent(largest)}). All lungs are cut out and brought to one size, but how sharp they are still tells the "
        "size of the file."
    )


def _test() -> str:
    return (
        "**The test is from the same collections.** No test film's group is in training, but every test film's source "
        "is. The figures are not those of another hospital, and not clinical performance."
    )
