"""The one place that reads the environment: every setting, its unit and its default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent
LONGEST_PAUSE_S = 366 * 86_400.0


class Settings(BaseSettings):
    """Settings of one process, read once at its entry point; variables are `HILUM_<NAME>` unless an alias is named."""

    model_config = SettingsConfigDict(env_prefix="HILUM_", extra="ignore", frozen=True, populate_by_name=True)

    home: Path = Field(Path(".hilum"), description="folder of the embedded database, blobs, broker and caches")
    database_url: str = Field(
        "",
        validation_alias=AliasChoices("DATABASE_URL", "HILUM_DATABASE_URL"),
        description="SQLAlchemy URL; empty: SQLite in home",
    )
    broker_url: str = Field(
        "",
        validation_alias=AliasChoices("REDIS_URL", "HILUM_BROKER_URL"),
        description="Celery broker; empty: `hilum up` starts a Redis of its own",
    )
    storage_url: str = Field("", description="file:///path or s3://bucket/prefix; empty: a folder in home")
    s3_endpoint: str = Field("", description="endpoint of an S3-compatible store; empty: AWS")
    s3_region: str = Field(
        "us-east-1", validation_alias=AliasChoices("AWS_REGION", "HILUM_S3_REGION"), description="region of the bucket"
    )
    s3_access_key: str = Field(
        "",
        validation_alias=AliasChoices("AWS_ACCESS_KEY_ID", "HILUM_S3_ACCESS_KEY"),
        description="who opens the bucket",
    )
    s3_secret_key: str = Field(
        "",
        validation_alias=AliasChoices("AWS_SECRET_ACCESS_KEY", "HILUM_S3_SECRET_KEY"),
        description="and with which secret",
    )

    host: str = Field("127.0.0.1", description="address the API binds")
    port: int = Field(
        8000,
        validation_alias=AliasChoices("PORT", "HILUM_PORT"),
        ge=0,
        le=65535,
        description="port the API binds",
    )
    legacy_open: bool = Field(False, description="answer /predict without a key")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug to error")
    no_color: str = Field("", validation_alias=AliasChoices("NO_COLOR"), description="any value: no colours")

    max_upload_bytes: int = Field(100 * 2**20, gt=0, description="larger uploads get 413")
    max_wait_s: float = Field(60.0, gt=0, le=60, description="longest wait of a waiting route")
    notifier_tick_s: float = Field(0.1, gt=0, description="how often one query looks for changes while someone waits")

    lease_s: float = Field(10.0, gt=0, description="a claimed row is free again after this, unless renewed")
    renew_s: float = Field(3.0, gt=0, description="how often a worker renews its lease")
    max_attempts: int = Field(3, ge=1, description="a job that lost this many workers fails")
    job_deadline_s: float = Field(180.0, gt=0, description="a worker that takes longer over one row ends itself")
    pulse_s: float = Field(5.0, gt=0, description="how often a worker says it lives and looks for unannounced work")
    claim_batch: int = Field(1, ge=1, description="rows one worker claims at a time")
    wait_limit_stat_s: float = Field(0.0, ge=0, description="a `stat` job is overdue after this")
    wait_limit_urgent_s: float = Field(300.0, ge=0, description="an `urgent` job is overdue after this")
    wait_limit_routine_s: float = Field(3600.0, ge=0, description="a `routine` job is overdue after this")
    sweep_every_s: float = Field(1.0, gt=0, description="pause between two rounds of `hilum sweep`")
    broker_timeout_s: float = Field(3.0, gt=0, description="a bell never blocks longer than this")

    idempotency_hours: float = Field(48.0, ge=24, description="the answer to an `Idempotency-Key` is kept this long")
    rate_per_minute: int = Field(0, ge=0, description="requests of one tenant per minute; 0: no limit")
    queued_cap: int = Field(0, ge=0, description="jobs of one tenant that may wait at a time; 0: no limit")
    retention_days: int = Field(0, ge=0, description="ended jobs are purged after this many days; 0: never")
    event_retention_days: int = Field(30, ge=1, description="events and delivery logs are kept this long")
    batch_files: int = Field(1000, ge=1, description="files in one batch")
    batch_bytes: int = Field(2 * 2**30, gt=0, description="bytes of one batch, unpacked")

    webhook_schedule_s: str = Field(
        "5,300,1800,7200,18000,36000,50400,72000,86400",
        description="pauses in seconds between the attempts to deliver one event",
    )
    webhook_timeout_s: float = Field(10.0, gt=0, description="a receiver that takes longer has failed")
    webhook_slots: int = Field(16, ge=4, description="deliveries one deliver process makes at a time")
    webhook_private: bool = Field(
        False, description="let webhooks go to private and loopback addresses, and to http://"
    )
    webhook_disable_hours: float = Field(120.0, gt=0, description="an endpoint that failed for this long is disabled")

    bundle: Path = Field(ROOT / "bundles" / "hilum-cxr" / "1.0.0", description="folder of the active bundle")
    runtime: Literal["auto", "openvino", "torch"] = Field("auto", description="auto: openvino on a CPU")
    precision: Literal["auto", "bf16", "f32"] = Field("auto", description="auto: bf16 where the CPU computes in it")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the networks run")
    threads: int = Field(0, ge=0, description="threads of one worker; 0: every core this process may use")

    max_pixels: int = Field(50_000_000, gt=0, description="images with more pixels are rejected unread")
    decode_memory_bytes: int = Field(3 * 2**30, gt=0, description="address space of one decoding child")
    decode_timeout_s: float = Field(20.0, gt=0, description="a decoding child is killed after this")

    @field_validator("webhook_schedule_s")
    @classmethod
    def _is_a_schedule(cls, schedule: str) -> str:
        """Said at the start of every process: the sweeper must not learn it while it frees what others held."""
        try:
            pauses = _seconds(schedule)
        except ValueError:
            pauses = [-1.0]
        if not all(0 <= pause <= LONGEST_PAUSE_S for pause in pauses):
            raise ValueError("seconds, separated by commas, each a year at most")
        return schedule

    @property
    def webhook_pauses_s(self) -> list[float]:
        """The pauses between the attempts to deliver one event, in seconds."""
        return _seconds(self.webhook_schedule_s)

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{(self.home / 'hilum.db').resolve()}"

    @property
    def storage(self) -> str:
        """The storage URL in force."""
        return self.storage_url or (self.home / "blobs").resolve().as_uri()

    @property
    def cache(self) -> Path:
        """The folder of compiled graphs."""
        return self.home / "cache"

    @property
    def waiting_limits_s(self) -> dict[str, float]:
        """Seconds that each priority may wait before it is overdue."""
        return {
            "stat": self.wait_limit_stat_s,
            "urgent": self.wait_limit_urgent_s,
            "routine": self.wait_limit_routine_s,
        }


def _seconds(schedule: str) -> list[float]:
    return [float(word) for word in schedule.split(",") if word.strip()]


def variable(name: str) -> str:
    """The environment variable that decides the setting `name`, before any other of its aliases."""
    alias = Settings.model_fields[name].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"HILUM_{name.upper()}"


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a child process: this one's, and every value of `settings` that is no default."""
    given = {variable(name): str(getattr(settings, name)) for name in settings.model_fields_set}
    return {**os.environ, **given}
