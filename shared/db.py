"""Engine and sessions: short transactions that commit first and ring their bells after."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from sqlalchemy import CursorResult, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from shared.errors import HilumError, Misconfigured, StorageFull, Unavailable
from shared.settings import Settings

T = TypeVar("T")

BELLS = "bells"
FULL = {"53100", "SQLITE_FULL"}  # of PostgreSQL and of SQLite: no room on the disk
NOW = "now"  # in the info of a session that several acts share: their time, asked for once
BUSY_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 3
SILENT_S = 10  # a server whose machine is gone is given up after this, and not after hours
POOL_TIMEOUT_S = 5
IDLE_S = 30  # no transaction of ours waits for anything but the database: one that does is a frozen process


def _silent(bell: str) -> None:
    """The ringer of a process that wakes nobody, such as a migration or a test."""


@dataclass(eq=False)
class _Act:
    """What one thread wants done in a shared transaction, and what came of it."""

    act: Callable[[Session], Any]
    value: Any = None
    error: Exception | None = None
    ended: bool = False


@dataclass(frozen=True)
class Database:
    """One database as one process sees it; `ring` is called with each bell of a transaction after its commit.

    `turn` is held while a transaction writes. SQLite has one writer at a time, and lets the others sleep up to 0.1 s
    between two looks at its lock: threads that queue here instead begin the moment the one before has committed.
    `sharing` is held by the thread that commits for all whose `acts` wait.
    """

    engine: Engine
    writes: sessionmaker[Session]
    reads: sessionmaker[Session]
    ring: Callable[[str], None] = _silent
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)
    sharing: threading.Lock = field(default_factory=threading.Lock)
    acts: deque[_Act] = field(default_factory=deque)


def open_database(settings: Settings, ring: Callable[[str], None] | None = None) -> Database:
    """The database that the settings name; connects at the first use."""
    engine = create_engine(url_of(settings), **_options(url_of(settings)))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        event.listen(engine, "connect", _prepare_postgres)
    writing = engine.execution_options(hilum_write=True)
    turn = threading.RLock() if engine.dialect.name == "sqlite" else nullcontext()
    # On PostgreSQL each statement of a reading session sees what is committed then, with or without a transaction
    # around it; without one, the round trips that begin and end it are saved.
    own = {"isolation_level": "AUTOCOMMIT"} if engine.dialect.name == "postgresql" else {}
    return Database(
        engine,
        sessionmaker(writing, expire_on_commit=False),
        sessionmaker(engine.execution_options(**own), expire_on_commit=False),
        ring or _silent,
        turn,
    )


def url_of(settings: Settings) -> URL:
    """The SQLAlchemy URL in force; platforms hand out `postgres://`, which means psycopg here."""
    url = make_url(settings.database)
    if url.drivername in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("postgresql", "sqlite"):
        raise Misconfigured(f"DATABASE_URL names {url.drivername}; Hilum speaks PostgreSQL and SQLite")
    return url


@contextmanager
def transaction(database: Database) -> Iterator[Session]:
    """A session that may write: commits at the end, then rings the bells left in it; an error rolls all back."""
    with database.turn, database.writes.begin() as session:
        yield session
    for bell in sorted(session.info.pop(BELLS, ())):
        database.ring(bell)


def together(database: Database, act: Callable[[Session], T], *, waits: bool = False) -> T:
    """Call `act` in a transaction and return, after the commit, what it returned; its own error is raised.

    Calls that come while another commits share the next transaction, one flush to the disk and one ring of a bell.
    `act` may be called twice, because after an error each is tried alone, unless the database is away. One that `waits`
    for rows that others may hold shares on SQLite only, where there are none: elsewhere, all would wait with it.
    Unavailable, StorageFull: nothing was written. Whatever else the database raises comes from the commit itself, whose
    outcome is not known then.
    """
    mine = _Act(act)
    if waits and database.engine.dialect.name != "sqlite":
        bells = _committed(database, [mine])
    else:
        bells = _shared(database, mine)
    for bell in sorted(bells):
        database.ring(bell)
    if mine.error is not None:
        raise mine.error
    return mine.value


@contextmanager
def reading(database: Database) -> Iterator[Session]:
    """A session that only reads; what it holds is given back at the end."""
    with database.reads() as session:
        yield session


@contextmanager
def asking(database: Database) -> Iterator[Connection]:
    """A connection for one small question that is asked often, for which a session costs as much as the answer."""
    with database.reads.kw["bind"].connect() as connection:
        yield connection


def clock(session: Session) -> datetime:
    """The time by which leases are judged: the database server's, for workers' clocks differ."""
    if NOW in session.info:
        return cast(datetime, session.info[NOW])
    if session.get_bind().dialect.name == "postgresql":
        return session.scalars(select(func.clock_timestamp())).one().astimezone(UTC)
    return datetime.now(UTC)


def written(session: Session, statement: Any) -> int:
    """Execute an INSERT or UPDATE and say how many rows it wrote."""
    return cast("CursorResult[Any]", session.execute(statement)).rowcount


def is_away(error: BaseException) -> bool:
    """Whether an error means that the database does not answer now, so that waiting may mend it."""
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return lost or isinstance(error, OperationalError | InterfaceError | PoolTimeout)


def _shared(database: Database, mine: _Act) -> set[str]:
    """Wait until `mine` is committed, or commit it with all that wait by then; the bells to ring for them."""
    database.acts.append(mine)
    with _taking_turns(database, mine), database.turn:
        if mine.ended:
            return set()
        acts = [database.acts.popleft() for _ in range(len(database.acts))]
        if mine not in acts:  # who had taken it was interrupted before it ended
            acts.append(mine)
        return _committed(database, acts)


@contextmanager
def _taking_turns(database: Database, mine: _Act) -> Iterator[None]:
    """Hold `sharing`. Unavailable when another holds it for too long, unless that one has `mine` in its hands.

    A server that hangs in a commit must not take every thread of the process with it.
    """
    patience_s = BUSY_TIMEOUT_S if database.engine.dialect.name == "sqlite" else POOL_TIMEOUT_S
    if not database.sharing.acquire(timeout=patience_s):
        if mine in database.acts:
            database.acts.remove(mine)
            raise Unavailable("The database does not answer.", code="database_unavailable")
        database.sharing.acquire()
    try:
        yield
    finally:
        database.sharing.release()


def _committed(database: Database, acts: Sequence[_Act]) -> set[str]:
    """Commit all acts at once, or else each alone; the bells that they left."""
    with database.writes() as session:
        try:
            _call(acts, session)
        except Exception as error:
            session.rollback()
            if len(acts) > 1 and not isinstance(error, Unavailable):
                return set().union(*(_committed(database, [one]) for one in acts))
            return _ended(acts, error)
        bells: set[str] = session.info.get(BELLS, set())
        try:
            session.commit()
        except Exception as error:
            # The outcome is not known: what is there already, if it is, must not be made again.
            return _ended(acts, error)
    _ended(acts)
    return bells


def _call(acts: Sequence[_Act], session: Session) -> None:
    """Call each act, and send to the database all that they wrote, table by table; Unavailable, StorageFull."""
    try:
        session.info[NOW] = clock(session)
        for one in acts:
            one.value = one.act(session)
        session.flush()
    except SQLAlchemyError as error:
        meant = told(error)
        if meant is error:
            raise
        raise meant from error


def told(error: SQLAlchemyError) -> HilumError | SQLAlchemyError:
    """What an error of the database means to a client: StorageFull, Unavailable, or else a fault of ours."""
    original = getattr(error, "orig", None)
    if FULL & {getattr(original, "sqlstate", None), getattr(original, "sqlite_errorname", None)}:
        return StorageFull()
    if is_away(error):
        return Unavailable("The database does not answer.", code="database_unavailable")
    return error


def _ended(acts: Sequence[_Act], error: Exception | None = None) -> set[str]:
    """Let each act end so; no bell is rung."""
    for one in acts:
        one.error, one.ended = error, True
    return set()


def _options(url: URL) -> dict[str, object]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}, "pool_size": 20, "max_overflow": 40}
    alive = {"keepalives_idle": SILENT_S // 2, "keepalives_interval": 1, "keepalives_count": SILENT_S // 2}
    unheard = {"tcp_user_timeout": SILENT_S * 1000}
    return {
        "connect_args": {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "hilum", **alive, **unheard},
        "pool_size": 10,
        "max_overflow": 20,
        "pool_timeout": POOL_TIMEOUT_S,
        "pool_pre_ping": True,
    }


def _prepare_sqlite(connection: object, _: object) -> None:
    """An accepted job survives a power cut: write-ahead log, and every commit reaches the disk."""
    connection.isolation_level = None  # type: ignore[attr-defined]  # transactions begin where _begin_sqlite says
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _prepare_postgres(connection: object, _: object) -> None:
    """A process that froze in a transaction loses it, and with it the locks that others wait for."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_S}s'")
    cursor.close()
    connection.commit()  # type: ignore[attr-defined]


def _begin_sqlite(connection: Connection) -> None:
    """Writers take the lock at once: a read that turns into a write could not wait for it, it would fail."""
    immediate = connection.get_execution_options().get("hilum_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
