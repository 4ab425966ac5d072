"""`python -m tests.sbom CYCLONEDX_PY`: write docs/sbom.cdx.json, the software bill of materials of what serves.

cyclonedx-py describes all that is installed beside this interpreter. Of that only what EXTRAS of pyproject.toml need is
kept, however deep, and nothing that differs from one run to the next. `make sbom` fetches the tool and calls this.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shared.settings import ROOT

FILE = ROOT / "docs" / "sbom.cdx.json"
EXTRAS = ("worker", "torch", "embedded")  # what `hilum up` runs with; `train` and `dev` serve nobody
KEPT = ("bom-ref", "type", "name", "version", "description", "licenses", "purl")
# Where the metadata of a wheel name no licence that the tool can read: what the LICENSE file in that wheel is.
LICENCES = {"torchvision": "BSD-3-Clause"}

Needs = dict[str, set[str]]  # canonical name of a distribution -> those that it needs itself


def asked() -> list[str]:
    """What pyproject.toml asks for at run time, on any platform: its dependencies and those of EXTRAS."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [*project["dependencies"], *(need for extra in EXTRAS for need in project["optional-dependencies"][extra])]


def direct() -> list[Requirement]:
    """What is asked for on this platform."""
    return [need for need in map(Requirement, asked()) if need.marker is None or need.marker.evaluate()]


def closure(wanted: Iterable[Requirement]) -> Needs:
    """Everything that `wanted` needs, markers and extras obeyed; PackageNotFoundError where one is not installed."""
    found: Needs = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(wanted)
    while waiting:
        need = waiting.pop()
        name, extras = canonicalize_name(need.name), frozenset(need.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        further = _needs_of(name, extras)
        found.setdefault(name, set()).update(canonicalize_name(one.name) for one in further)
        waiting += further
    return found


def reduced(document: dict[str, Any], needs: Needs, roots: Iterable[str]) -> dict[str, Any]:
    """The tool's `document` with the components of `needs` alone, without addresses, in an order that stays."""
    components = [_component(one) for one in document["components"] if canonicalize_name(one["name"]) in needs]
    ref: dict[str, str] = {canonicalize_name(one["name"]): one["bom-ref"] for one in components}
    if missing := set(needs) - set(ref):
        raise ValueError(f"the tool did not see {sorted(missing)}")
    root = {key: value for key, value in document["metadata"]["component"].items() if key in KEPT}
    edges = {ref[name]: sorted(ref[other] for other in others) for name, others in needs.items()}
    edges[root["bom-ref"]] = sorted(ref[name] for name in roots)
    return {
        **{key: document[key] for key in ("$schema", "bomFormat", "specVersion", "version")},
        "metadata": {"component": root, "tools": _tools(document), "properties": _properties()},
        "components": sorted(components, key=lambda one: one["bom-ref"].lower()),
        "dependencies": [{"ref": one, "dependsOn": edges[one]} for one in sorted(edges, key=str.lower)],
    }


def text(document: dict[str, Any]) -> str:
    """A document as FILE holds it."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(tool: str = "cyclonedx-py") -> int:
    """Write FILE with the cyclonedx-py at `tool`."""
    wanted = direct()
    options = ["--pyproject", str(ROOT / "pyproject.toml"), "--short-PURLs", "--output-reproducible"]
    done = subprocess.run([tool, "environment", *options, sys.executable], stdout=subprocess.PIPE, check=True)
    document = reduced(json.loads(done.stdout), closure(wanted), {canonicalize_name(need.name) for need in wanted})
    FILE.write_text(text(document), encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)}: {len(document['components'])} components")
    return 0


def _needs_of(name: str, extras: frozenset[str]) -> list[Requirement]:
    """What one installed distribution needs itself, with these extras of it."""
    chosen = [{"extra": extra} for extra in sorted(extras) or [""]]
    return [
        need
        for need in map(Requirement, requires(name) or [])
        if need.marker is None or any(need.marker.evaluate(one) for one in chosen)
    ]


def _component(raw: dict[str, Any]) -> dict[str, Any]:
    kept = {key: raw[key] for key in KEPT if key in raw}
    licence = LICENCES.get(canonicalize_name(raw["name"]))
    if licence and not kept.get("licenses"):
        kept["licenses"] = [{"license": {"id": licence, "acknowledgement": "concluded"}}]
    return kept


def _tools(document: dict[str, Any]) -> dict[str, Any]:
    return {
        "components": [{k: tool[k] for k in KEPT if k in tool} for tool in document["metadata"]["tools"]["components"]]
    }


def _properties() -> list[dict[str, str]]:
    """Where it was made: another platform, another Python or a CUDA build of torch has other components."""
    python = ".".join(map(str, sys.version_info[:2]))
    facts = {"extras": ",".join(EXTRAS), "platform": sysconfig.get_platform(), "python": python}
    return [{"name": f"hilum:{key}", "value": value} for key, value in facts.items()]


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
