"""The audit: each part on arrays of which the answer is known, the whole on drawn films and tiny networks."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.bundles import Bundle, Preprocessing
from shared.errors import Misconfigured
from tests.tiny import CLASSES, tiny_bundle
from training import (
    audit,
    audit_cam,
    audit_card,
    audit_figures,
    audit_leave_one_out,
    audit_look,
    audit_parts,
    audit_probe,
    audit_shifts,
    audit_thumbnails,
    audit_words,
    index,
    train,
)
from training.audit_look import Looks
from training.index import Item
from worker.pipeline.analyze import Clock, Prepared
from worker.pipeline.decode import Radiograph
from worker.pipeline.lungs import Lungs, tensor
from worker.pipeline.predictor import Outputs
from worker.runtimes.torch import TorchPredictor

RNG = np.random.default_rng(0)
HOW = Preprocessing.model_validate({})
SIZES = audit.Sizes(parts=6, probe=40, forest=40, shifts=4)


def item(name: str, label: str = "normal", source: str = "one", split: str = "test", population: str = "adult") -> Item:
    return Item(name, label, source, name, split, "none", "", "", "", population)


# ---------------------------------------------------------------- figures


def test_films_of_one_patient_do_not_narrow_an_interval() -> None:
    films = [item(f"p{i}") for i in range(60)]
    labels, said = RNG.integers(0, 4, 60), RNG.integers(0, 4, 60)
    once = audit_figures.scores(labels, said, films, CLASSES)
    copies = audit_figures.scores(
        np.repeat(labels, 9), np.repeat(said, 9), [f for f in films for _ in range(9)], CLASSES
    )
    assert once["accuracy"] == copies["accuracy"] == pytest.approx((labels == said).mean())
    assert copies["intervals"] == once["intervals"]
    low, high = once["intervals"]["accuracy"]
    assert low < once["accuracy"] < high
    assert sum(once["said"].values()) == pytest.approx(1)


def test_means_are_over_the_classes_that_are_there() -> None:
    labels, said = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    found = audit_figures.scores(labels, said, [item(str(i)) for i in range(4)], CLASSES)
    assert found["recall"] == {"covid19": 0.5, "lung_opacity": 1.0}
    assert found["balanced_accuracy"] == 0.75
    assert audit_figures.rounded({"a": [float("nan"), 1 / 3]}) == {"a": [None, 0.3333]}


# ---------------------------------------------------------------- parts of a film


def film(inside: float, outside: float) -> Prepared:
    """Noise around one level inside two lungs and around another outside."""
    rng = np.random.default_rng(1)
    mask = np.zeros((200, 200), dtype=bool)
    mask[60:150, 40:90] = mask[60:150, 110:160] = True
    noise = rng.normal(0, 0.05, (2, 200, 200))
    pixels = np.where(mask, inside + inside * noise[0], outside + outside * noise[1]).astype(np.float32)
    found = Lungs(mask, (30, 35, 170, 175))
    return Prepared(Radiograph(pixels, 0.0, 8, "png"), found, {}, tensor(pixels, found, HOW), Clock(lambda stage: None))


def test_parts_hold_what_they_say_and_nothing_else() -> None:
    typical = RNG.normal(size=(224, 224)).astype(np.float32)
    one, other = film(0.4, 0.7), film(0.2, 0.7)
    parts = audit_parts.parts(one, typical, HOW)
    assert tuple(parts) == audit_parts.PARTS
    seen, lungs = one.tensor != 0, audit_parts.lungs_in_crop(one, 224) >= 0.5
    rim = parts["lungs_removed"]
    assert lungs.sum() < seen.sum()
    assert not rim[lungs].any()
    assert np.array_equal(rim[~lungs], one.tensor[~lungs])
    back = parts["background_only"]
    assert not back[seen].any()
    assert back[~seen].mean() == pytest.approx(0, abs=0.05)
    assert back[~seen].std() == pytest.approx(1, abs=0.1)
    outline = parts["silhouette_only"]
    assert not outline[~seen].any()
    assert outline[seen].std() == pytest.approx(1, abs=0.1)
    darker = audit_parts.parts(other, typical, HOW)
    assert np.array_equal(darker["silhouette_only"], outline)  # other lungs, the same outline
    far = np.abs(np.indices((224, 224)) - 112).max(axis=0) > 105  # far from the seam, which resizing blurs
    assert np.abs(darker["background_only"] - back)[far].max() < 0.1
    assert np.abs(darker["lungs_removed"] - rim).max() > 0.1


def test_the_typical_lung_is_the_mean_where_there_is_lung() -> None:
    tensors = np.zeros((3, 4, 4), dtype=np.int8)
    tensors[:2, 1, 1] = (20, 40)
    typical = audit_parts.typical_lungs(tensors, clip=3.0)
    assert typical[1, 1] == pytest.approx(30 * 3 / 127)
    assert not np.delete(typical.ravel(), 5).any()


def test_a_background_thumbnail_has_no_lung_in_it() -> None:
    pixels = np.full((64, 64), 0.5, dtype=np.float32)
    pixels[:, 48:] = 1.0
    silhouette = np.zeros((32, 32), dtype=np.uint8)
    silhouette[8:24, 8:20] = 3  # a hundredth of a cell is lung
    one = audit_thumbnails.background_of(pixels, silhouette, 3.0)
    pixels[16:48, 16:40] = 0.0
    assert np.array_equal(audit_thumbnails.background_of(pixels, np.where(silhouette, 255, 0), 3.0) != 0, one != 0)
    assert not one[silhouette > 0].any()
    assert one[0].std() > 0.5


# ---------------------------------------------------------------- class maps


def looks_of(maps: np.ndarray, masks: np.ndarray, labels: np.ndarray | None = None) -> Looks:
    n, m = maps.shape[:2]
    labels = np.zeros(n, dtype=np.int64) if labels is None else labels
    logits = np.repeat(np.eye(4)[labels][:, None] * 5, m, axis=1)
    films = [item(f"f{i}", CLASSES[k]) for i, k in enumerate(labels)]
    return Looks(films, labels, logits, maps, [], masks, np.arange(n), {}, {}, logits[0], {})


def test_heat_inside_the_lungs_has_the_ceiling_for_a_lift(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    masks = np.zeros((8, 56, 56), dtype=np.float32)
    masks[::2, :, :24] = masks[1::2, :, 32:] = 1  # one lung, on the left and on the right in turn
    inside, even = np.full((2, 8, 3, 4, 7, 7), -1.0, dtype=np.float16)
    inside[::2, :, 0, :, :1] = inside[1::2, :, 0, :, 6:] = 2
    even[:, :, 0] = 1
    hot = audit_cam.cam(looks_of(inside, masks), bundle)
    assert hot["lungs_area_share"] == pytest.approx(24 / 56)
    assert hot["of"]["ensemble"]["all"]["lift"] == pytest.approx(hot["ceiling"]) == pytest.approx(56 / 24)
    assert hot["of"]["ensemble"]["all"]["peak_inside"] == 1
    shown = hot["of"]["densenet121"]
    assert set(shown) == {"all", "covid19"}
    flat = audit_cam.cam(looks_of(even, masks), bundle)["of"]["ensemble"]["all"]
    assert flat["lift"] == pytest.approx(1)
    assert flat["quartiles"] == pytest.approx([1, 1, 1])
    cold = audit_cam.cam(looks_of(np.full_like(even, -1), masks), bundle)["of"]["ensemble"]["all"]
    assert cold == {"images": 8, "without_heat": 8}


def test_heat_that_follows_the_film_lies_worse_over_other_films() -> None:
    masks = np.zeros((3, 56, 56), dtype=np.float32)
    for i in range(3):
        masks[i, :, 8 + 16 * i : 16 + 16 * i] = 1
    found = audit_cam._lifts(masks, masks, np.zeros(3, dtype=int), CLASSES)["all"]
    assert found["lift"] == pytest.approx(7)
    assert found["shuffled_lift"] == pytest.approx(0)
    masks[2] = 1
    even = audit_cam._lifts(np.ones_like(masks), masks, np.zeros(3, dtype=int), CLASSES)["all"]
    assert even["lift"] == even["shuffled_lift"] == pytest.approx(1)


# ---------------------------------------------------------------- probe


def test_a_probe_finds_the_hospital_where_the_features_hold_it() -> None:
    sources, labels = RNG.integers(0, 3, 900), RNG.integers(0, 4, 900)
    films = [item(f"f{i}", CLASSES[k], "abc"[s]) for i, (s, k) in enumerate(zip(sources, labels, strict=True))]
    telling = np.eye(3)[sources] + RNG.normal(0, 0.3, (900, 3))
    noise = RNG.normal(size=(900, 20))
    looks = replace(looks_of(np.zeros((300, 2, 4, 7, 7)), np.ones((300, 56, 56)), labels[600:]), items=films[600:])
    looks = replace(looks, features=[telling[600:], noise[600:]])
    found = audit_probe.probe(films[:600], [telling[:600], noise[:600]], looks, ["first", "second"])
    for question in ("source", "source_of_normals", "source_of_adult_normals"):
        probes = found[question]["probes"]
        assert min(probes["first"]["balanced_accuracy"], probes["together"]["balanced_accuracy"]) > 0.8
        assert probes["second"]["balanced_accuracy"] < 0.55
        assert found[question]["majority"]["balanced_accuracy"] == pytest.approx(1 / 3)
    assert found["source"]["knowing_the_class"]["accuracy"] < 0.5  # here class and source are independent
    assert found["class"]["probes"]["together"]["balanced_accuracy"] < 0.4
    assert found["source_of_normals"]["images"] == int((labels[600:] == 2).sum())
    alone = [replace(film, source="a") for film in films]
    looks = replace(looks, items=alone[600:], features=[telling[600:]])
    lone = audit_probe.probe(alone[:600], [telling[:600]], looks, ["only"])
    assert "not_evaluable" in lone["source"]
    assert set(lone["class"]["probes"]) == {"together"}


# ---------------------------------------------------------------- populations


def test_a_population_is_judged_by_its_common_classes_and_its_own_guess(tmp_path: Path) -> None:
    labels = np.array([3] * 60 + [0] + [2] * 40)
    looks = looks_of(np.zeros((101, 2, 4, 7, 7)), np.ones((101, 56, 56)), labels)
    people = ["child"] * 61 + ["adult"] * 40
    films = [replace(f, population=p, source="one") for f, p in zip(looks.items, people, strict=True)]
    train = [replace(f, id=f"t{f.id}", split="train") for f in films]
    found = audit.populations(replace(looks, items=films), tiny_bundle(tmp_path), [*films, *train])
    assert found["child"]["ensemble"]["images"] == 60  # one film of 61 is not a class of children
    assert set(found["child"]["ensemble"]["recall"]) == {"viral_pneumonia"}
    # Of all films of the source viral pneumonia is the most frequent; of its adults it is not.
    assert found["adult"]["source_majority"]["accuracy"] == 1


# ---------------------------------------------------------------- the same film in another file


def test_changes_change_the_file_and_keep_the_chest() -> None:
    film = Image.fromarray(np.tile(np.arange(0, 200, 2, dtype=np.uint8), (80, 1)))
    changed = {name: _opened(change(film)) for name, change in audit_shifts.CHANGES.items()}
    plain = np.asarray(film, dtype=float)
    assert np.array_equal(_opened(audit_shifts.png(film)), plain)
    assert changed["half_size"].shape == (40, 50)
    assert changed["cropped_4_percent"].shape == (74, 92)
    assert changed["black_frame_6_percent"].shape == (92, 112)
    assert np.array_equal(changed["black_frame_6_percent"][6:-6, 6:-6], plain)
    assert changed["brighter"].mean() > plain.mean() > changed["darker"].mean()
    assert np.ptp(changed["less_contrast"]) == pytest.approx(np.ptp(plain) * 2 / 3, abs=2)
    assert 0 < np.abs(changed["jpeg_quality_50"] - plain).mean() < 5


def _opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=float)


def test_changed_answers_are_counted_where_both_films_were_answered() -> None:
    a, b = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.1, 0.7, 0.1, 0.1])
    films = [item(str(i), "covid19") for i in range(5)]
    found = audit_shifts._compared([a, a, a, a, None], [a, b, a, None, a], films, CLASSES)
    assert found["pairs"] == 3
    assert found["refused"] == 0.25
    assert found["changed"] == pytest.approx(1 / 3)
    assert found["moved"] == pytest.approx(0.6 / 3)
    assert (found["accuracy_before"], found["accuracy_after"]) == (1, pytest.approx(2 / 3))
    assert found["turned"] == {"covid19 -> lung_opacity": 1}
    low, high = found["changed_interval"]
    assert low < 1 / 3 < high


# ---------------------------------------------------------------- leave one source out


def test_a_class_of_one_source_is_not_evaluable() -> None:
    items = [
        item("a", "normal", "one", "train"), item("b", "normal", "two", "train"), item("c", "covid19", "two", "train"),
        item("d", "normal", "one"), item("e", "normal", "two"), item("f", "covid19", "two"), item("g", "other", "two"),
    ]  # fmt: skip
    plan = audit_leave_one_out.plan(items, CLASSES)
    assert plan["one"] == {"evaluable": ["normal"], "not_evaluable": []}
    assert plan["two"] == {"evaluable": ["normal"], "not_evaluable": ["covid19"]}


def test_sources_are_left_out_once_and_taken_up_again(
    runs: Path, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = index.read(runs / "index.csv")
    original, calls = train.train, []

    def spy(items: list[Item], prepared: Path, config: Path, classes: list[str], out: Path, **how: Any) -> Path:
        calls.append((how["leave_out"], classes))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(items, prepared, config, classes, out, **how)

    monkeypatch.setattr(train, "train", spy)
    given = (items, runs / "prepared", configs / "first.toml", CLASSES, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        audit_leave_one_out.leave_one_out(*given, minutes=0.05)
    assert audit_leave_one_out.collect(items, CLASSES, tmp_path)["sources"]["two"]["without"] is None
    found = audit_leave_one_out.leave_one_out(*given, minutes=0.05)
    assert [name for name, _ in calls] == ["one", "two", "two", ""]  # three has no class that others have
    again = audit_leave_one_out.leave_one_out(*given, minutes=0.05)
    assert again == found
    assert len(calls) == 4
    audit_leave_one_out.leave_one_out(*given, minutes=0.06, sources=["one"])
    assert len(calls) == 5  # other minutes are another training
    assert found["sources"]["three"] == {
        "evaluable": [], "not_evaluable": ["normal", "viral_pneumonia"], "without": None, "with": None,
    }  # fmt: skip
    for name in ("one", "two"):
        for figures in (found["sources"][name]["without"], found["sources"][name]["with"]):
            assert set(figures["recall"]) == {"covid19", "lung_opacity"}
            assert figures["mean"] == pytest.approx(np.mean(list(figures["recall"].values())))
    other = [replace(each, label="normal") if each.id == items[0].id else each for each in items]
    assert audit_leave_one_out.collect(other, CLASSES, tmp_path)["sources"]["one"]["without"] is None


def test_classes_that_only_the_source_has_are_not_asked_of_a_network_without_it(
    runs: Path, configs: Path, tmp_path: Path
) -> None:
    items = [replace(i, source="four") if i.label == "normal" else i for i in index.read(runs / "index.csv")]
    items = [replace(i, source="five") if i.id == "normal_3" else i for i in items]
    given = (items, runs / "prepared", configs / "first.toml", CLASSES, tmp_path)
    found = audit_leave_one_out.leave_one_out(*given, minutes=0.02, sources=["four"])["sources"]
    assert found["four"]["without"]["recall"].keys() == {"normal"}
    only = [replace(i, source="four") if i.label == "covid19" else i for i in items]
    given = (only, *given[1:4], tmp_path / "only")
    found = audit_leave_one_out.leave_one_out(*given, minutes=0.02, sources=["four"])["sources"]
    assert found["four"]["not_evaluable"] == ["covid19"]
    assert "covid19" not in found["four"]["without"]["said"]


@pytest.mark.parametrize("line", ['start = "bundle:bundles/hilum-cxr/1.0.0"', 'teacher = "second"'])
def test_what_knows_the_left_out_source_may_not_help(runs: Path, configs: Path, tmp_path: Path, line: str) -> None:
    text = (configs / "first.toml").read_text(encoding="utf-8")
    kept = [old for old in text.splitlines() if not old.startswith(line.split(" =")[0] + " =")]
    (tmp_path / "helped.toml").write_text("\n".join([line, *kept]), encoding="utf-8")
    items = index.read(runs / "index.csv")
    with pytest.raises(Misconfigured, match="has seen the sources"):
        audit_leave_one_out.leave_one_out(items, runs / "prepared", tmp_path / "helped.toml", CLASSES, tmp_path)


def test_the_shipped_configuration_is_innocent_and_complete() -> None:
    configs = Path(audit.__file__).parent / "configs"
    ours, theirs = (tomllib.loads((configs / f"{n}.toml").read_text()) for n in ("leave-one-out", "efficientnet_b0"))
    audit_leave_one_out._must_be_innocent(configs / "leave-one-out.toml")
    assert ours.keys() == theirs.keys()
    assert ours["augment"].keys() == theirs["augment"].keys()
    assert ours["architecture"] == "efficientnet_b0"
    assert [phase["size"] for phase in ours["phases"]] == [160]


def test_a_source_that_is_not_there_is_an_error(runs: Path, configs: Path, tmp_path: Path) -> None:
    given = (index.read(runs / "index.csv"), runs / "prepared", configs / "first.toml", CLASSES, tmp_path)
    with pytest.raises(Misconfigured, match="nowhere"):
        audit_leave_one_out.leave_one_out(*given, sources=["nowhere"])


# ---------------------------------------------------------------- the whole


class Strange:
    """A predictor whose second film of each call is like nothing it knows."""

    def classify(self, tensors: np.ndarray) -> Outputs:
        n = len(tensors)
        scores = np.arange(n, dtype=float)
        return Outputs(np.zeros((1, n, 4)), np.zeros((1, n, 4, 7, 7)), (np.zeros((n, 2)),), scores)


def test_films_with_strange_features_are_refused_as_in_service(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path)
    strict = made.manifest.model_copy(update={"quality": {"max_ood_score": 0.5}})
    bundle = Bundle(root=made.root, manifest=strict, sha256=made.sha256)
    said = audit_look.classify(bundle, Strange(), np.zeros((2, 224, 224), np.float32))  # type: ignore[arg-type]
    assert said.codes == ["", "out_of_distribution"]
    assert audit_look.classify(made, Strange(), np.zeros((2, 224, 224), np.float32)).codes == ["", ""]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def audited(runs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, Any]]:
    """The audit of random networks on the drawn films; called again it goes on with what is kept."""
    folder = tmp_path_factory.mktemp("audited")
    bundle = tiny_bundle(folder / "bundle")
    people = ("adult", "child")
    items = [replace(x, population=people[i % 2]) for i, x in enumerate(index.read(runs / "index.csv"))]

    def run() -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(audit_probe, "LEAST", 3)  # there are five films of each class
            return audit.audit(bundle, TorchPredictor(bundle), items, data, runs / "prepared", folder, SIZES)

    return run


def test_the_audit_asks_everything_and_keeps_it(
    audited: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = audited()
    assert found["films"]["answered"] + sum(found["films"]["refused"].values()) == 8
    shown = found["parts"]["shown"]
    assert list(shown) == ["lungs", *audit_parts.PARTS, "nothing"]
    assert shown["lungs"]["same"] == 1
    assert sorted(shown["nothing"]["said"].values()) == [0, 0, 0, 1]  # one answer for all
    assert set(found["cam"]["of"]) == {"ensemble", "resnet50", "densenet121", "efficientnet_b0"}
    assert set(found["probe"]["class"]["probes"]) == {"together", "resnet50", "densenet121", "efficientnet_b0"}
    assert found["thumbnails"]["fitted_on"] == 20
    assert set(found["shifts"]["changes"]) == set(audit_shifts.CHANGES)
    both = found["populations"]
    assert both["adult"]["ensemble"]["images"] + both["child"]["ensemble"]["images"] == found["films"]["answered"]
    assert found["leave_one_source_out"]["sources"]["one"]["without"] is None
    assert found["weights"].keys() == {
        "lungs.safetensors",
        *(f"{n}.safetensors" for n in found["cam"]["of"] if n != "ensemble"),
    }

    def never(*_: object) -> None:
        raise AssertionError("asked again")

    for name in ("classify", "segment"):
        monkeypatch.setattr(TorchPredictor, name, never)
    assert audited() == found


def test_the_audit_goes_on_where_it_was_interrupted(
    runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, items = tiny_bundle(tmp_path / "bundle"), index.read(runs / "index.csv")
    monkeypatch.setattr(audit_look, "FILMS_PER_FILE", 3)
    original, calls = audit_look._serve, []

    def serve(*given: Any) -> Any:
        calls.append(given[2].name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(audit_look, "_serve", serve)
    given = (bundle, TorchPredictor(bundle), items, data, runs / "prepared", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        audit_look.look(*given, parts=4)
    looks = audit_look.look(*given, parts=4)
    assert len(calls) == 5 + 5  # the first three films were kept
    whole = audit_look.look(*given[:-1], tmp_path / "whole", parts=4)
    assert [i.id for i in looks.items] == [i.id for i in whole.items]
    for name in ("logits", "maps", "masks", "sampled", "nothing"):
        np.testing.assert_allclose(getattr(looks, name), getattr(whole, name), atol=1e-3)
    assert len(looks.sampled) == 4


def test_answers_to_parts_stand_beside_those_to_their_films(
    runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, items = tiny_bundle(tmp_path / "bundle"), index.read(runs / "index.csv")
    monkeypatch.setattr(audit_look, "FILMS_PER_FILE", 3)
    monkeypatch.setattr(audit_parts, "parts", lambda film, *_: dict.fromkeys(audit_parts.PARTS, film.tensor))
    looks = audit_look.look(bundle, TorchPredictor(bundle), items, data, runs / "prepared", tmp_path / "out", parts=5)
    assert len(set(looks.sampled.tolist())) == 5
    for part in looks.parts.values():
        np.testing.assert_allclose(part, looks.logits[looks.sampled], atol=1e-3)


def test_tensors_of_another_index_are_not_audited(runs: Path, data: Path, tmp_path: Path) -> None:
    bundle, items = tiny_bundle(tmp_path), index.read(runs / "index.csv")
    with pytest.raises(Misconfigured, match="other images"):
        audit.audit(bundle, TorchPredictor(bundle), items[:-1], data, runs / "prepared", tmp_path, SIZES)


def test_the_card_shows_the_figures_and_says_what_they_mean(audited: Callable[[], dict[str, Any]]) -> None:
    found = audited()
    card = audit_card.sections(found)
    shown = found["parts"]["shown"]["lungs_removed"]
    assert f"| {shown['accuracy']:.3f} (" in card
    assert card.startswith("## Does it read lungs?")
    assert "not evaluable" in card
    assert "No training without a source has been made" in card
    assert all(sentence in card for sentence in found["explained"].values())
    for line in card.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_bad_news_is_said(audited: Callable[[], dict[str, Any]]) -> None:
    found = json.loads(json.dumps(audited()))
    for name, accuracy in (("background", 0.8), ("lungs", 0.6), ("silhouette", 0.5)):
        found["thumbnails"][name]["accuracy"] = accuracy
    found["parts"]["shown"]["lungs"]["accuracy"] = 0.7
    found["parts"]["source_majority"]["accuracy"] = 0.71
    outline = found["parts"]["shown"]["silhouette_only"]
    outline["balanced_accuracy"], outline["intervals"]["balanced_accuracy"] = 0.5, [0.4, 0.6]
    for each in found["leave_one_source_out"]["sources"].values():
        if each["evaluable"]:
            each["without"] = {"mean": 0.3, "recall": {"covid19": 0.3}, "intervals": {"covid19": [0.1, 0.5]}}
            each["with"] = {"mean": 0.8, "recall": {"covid19": 0.8}}
    said = audit_words.explained(found)
    assert "no less than on the lungs" in said["thumbnails"]
    assert "10.0 points below the first and 20.0 points above the second" in said["thumbnails"]
    assert "right more often (0.710) than the lungs" in said["parts"]
    assert "The outline says something" in said["parts"]
    assert "knowing its source" in said["leave_one_source_out"]
    for each in found["leave_one_source_out"]["sources"].values():
        if each["evaluable"]:
            each["without"]["mean"] = 0.78
    found["thumbnails"]["background"]["accuracy"] = 0.3
    said = audit_words.explained(found)
    assert "knowing its source" not in said["leave_one_source_out"]
    assert ", less than on the lungs" in said["thumbnails"]
