"""What crosses a process border: the result of an analysis, the view of a job, an event, a problem."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

DISCLAIMER = (
    "Decision support for research and triage. Not a medical device; not a diagnosis. "
    "A qualified person must read the image."
)

Priority = Literal["stat", "urgent", "routine"]
Mode = Literal["live", "test"]
Method = Literal["gradcam"]
EventType = Literal[
    "job.succeeded",
    "job.failed",
    "job.rejected",
    "job.canceled",
    "explanation.succeeded",
    "explanation.failed",
    "batch.finished",
    "webhook.disabled",
    "webhook.test",
]


class Status(StrEnum):
    """The life of a job; explanations use the same words without `rejected`."""

    QUEUED = "queued"  # accepted and durable, waiting for a worker
    RUNNING = "running"  # a worker holds the lease
    SUCCEEDED = "succeeded"  # the diagnosis is durable
    FAILED = "failed"  # ours: a stable error code says what
    REJECTED = "rejected"  # an answer: the image cannot honestly be judged
    CANCELED = "canceled"  # asked for, before the end

    @property
    def terminal(self) -> bool:
        """Whether the state never changes again."""
        return self not in (Status.QUEUED, Status.RUNNING)


TERMINAL = tuple(status for status in Status if status.terminal)


class Frozen(BaseModel):
    """A value: compared by content, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(Frozen):
    """One step of the pipeline and when it began, in seconds since the analysis began."""

    name: str
    started_s: float


class LungsView(Frozen):
    """What the lungs network found: fractions of the image's area, the box in pixels of the input."""

    area_fraction: float = Field(description="share of the image that is lung, 0..1")
    left_fraction: float = Field(description="share of the image that is lung in its left half, 0..1")
    right_fraction: float = Field(description="share of the image that is lung in its right half, 0..1")
    box: tuple[int, int, int, int] = Field(description="left, top, right, bottom in pixels of the input")
    mask: str = Field("lungs.png", description="name of the mask artefact")


class RuntimeView(Frozen):
    """Where and how the networks ran."""

    name: str
    device: str
    precision: str
    threads: int


class Analysis(Frozen):
    """The diagnosis: the result fields of a succeeded job."""

    top_class: str
    confidence: float = Field(description="calibrated probability of the top class, 0..1")
    margin_top2: float = Field(description="difference between the two highest probabilities, 0..1")
    model_disagreement: float = Field(description="1 - share of networks that vote for the top class")
    uncertain: bool
    uncertain_because: list[str] = Field(default_factory=list)
    prediction_set: list[str] = Field(description="classes that cannot be excluded at the stated coverage")
    coverage: float = Field(description="stated coverage of the prediction set, 0..1")
    ensemble: dict[str, float]
    per_model: dict[str, dict[str, float]]
    quality: dict[str, float]
    lungs: LungsView
    classes: list[str]
    bundle: str = Field(description="name@version#sha256 of the manifest")
    runtime: RuntimeView
    stages: list[Stage]
    disclaimer: str = DISCLAIMER


class Reason(Frozen):
    """Why an image was rejected: a stable code, and what was measured against which limit."""

    code: str
    detail: str
    value: float | None = None
    threshold: float | None = None


class Failure(Frozen):
    """What went wrong on our side: a stable code and a sentence."""

    code: str
    detail: str


class ExplanationView(Frozen):
    """One explanation of one job, a resource of its own."""

    method: Method
    status: Status
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    result: dict[str, Any] | None = None
    error: Failure | None = None
    artifacts: list[str] = Field(default_factory=list)


class JobView(Frozen):
    """A job as its owner sees it."""

    id: str
    status: Status
    stage: str | None = None
    priority: Priority
    created_at: datetime
    due_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queue_position: int | Literal["1000+"] | None = Field(
        None, description="queued jobs that are served before this one; null: it does not wait, or it was not asked"
    )
    eta_s: float | None = Field(None, description="seconds until it has probably ended; null: not known")
    attempt: int = 0
    bundle: str | None = None
    batch: str | None = Field(None, description="the batch it was submitted in")
    external_id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    input: dict[str, Any] = Field(description="media_type, bytes and sha256 of the upload")
    result: Analysis | None = None
    reason: Reason | None = None
    error: Failure | None = None
    explanations: dict[str, ExplanationView] = Field(default_factory=dict)
    artifacts: dict[str, str] = Field(default_factory=dict, description="name -> path under this server")
    test: bool = Field(False, description="made with a test key: no film was read")
    disclaimer: str = DISCLAIMER


class JobPage(Frozen):
    """One page of jobs, newest first; `next_cursor` is null on the last page."""

    jobs: list[JobView]
    next_cursor: str | None = None


class EventView(Frozen):
    """Something that happened, as streams, polls and webhooks tell it: ids and codes, never patient data."""

    id: str
    # Any text: a process of an older version passes on what a newer one wrote.
    type: str = Field(json_schema_extra={"enum": list(get_args(EventType))})
    created_at: datetime
    data: dict[str, Any] = Field(description="`job`, `batch` or `webhook`: the id of what it happened to; and codes")
    test: bool = Field(False, description="made with a test key: no film was read")


class EventPage(Frozen):
    """Events in their order; ask for those after `next_after` next."""

    events: list[EventView]
    next_after: str
    ended: bool = Field(False, description="of one job: nothing more will happen to it or to its explanations")


class Problem(BaseModel):
    """An error as RFC 9457 describes it, with a stable `code`."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str | None = None
