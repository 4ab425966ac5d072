"""The model card of a bundle: a page made from its manifest, its figures and its audit; no figure is typed by hand."""

from __future__ import annotations

from typing import Any

from shared.bundles import Manifest
from training import audit_card, biases, report

NOT_AUDITED = (
    "## Does it read lungs?\n\nThis bundle was not audited: whether its answers come from the lungs is not known."
)


def card(manifest: Manifest, figures: dict[str, Any], audit: dict[str, Any] | None = None) -> str:
    """The model card in Markdown, of the figures of metrics.json and, where there is one, the audit of audit.json."""
    named = {"ensemble": figures["ensemble"], **figures["networks"]}
    named |= {f"baseline: {name.replace('_', ' ')}": value for name, value in figures["baselines"].items()}
    return report.template("model-card.md.j2").render(
        manifest=manifest,
        figures=figures,
        systems=named,
        all_sources=sorted({source for counts in figures["shortcuts"]["sources"].values() for source in counts}),
        biases=biases.sentences(figures),
        audit=audit_card.sections(audit) if audit else NOT_AUDITED,
    )
