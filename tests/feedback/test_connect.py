"""What a store's URL may be, and what happens to a database that holds something else."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.errors import MissingDependencyError, StoreError
from feedback.store import FeedbackStore
from feedback.tables import metadata, store_table


@pytest.mark.parametrize("bad", ["", "feedback.db", "sqlite//x"])
def test_a_bad_url_is_named_with_a_good_one(bad: str) -> None:
    with pytest.raises(StoreError, match=r"not a database URL.*sqlite:///feedback\.db"):
        FeedbackStore(bad)


def test_a_missing_driver_is_named() -> None:
    with pytest.raises(StoreError, match="not a database URL"):
        FeedbackStore("nodatabase://host/name")
    with pytest.raises(StoreError, match=r"mysql is not supported\. Fix: use SQLite or PostgreSQL"):
        FeedbackStore("mysql://host/name")
    with pytest.raises(MissingDependencyError, match="pip install pg8000"):
        FeedbackStore("postgresql+pg8000://host/name")


def test_a_missing_store_is_not_created_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        FeedbackStore(f"sqlite:///{tmp_path}/none.db", create=False)
    assert not (tmp_path / "none.db").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        FeedbackStore(f"sqlite:///{tmp_path}/file/feedback.db")
    with pytest.raises(StoreError, match="is a folder"):
        FeedbackStore(f"sqlite:///{tmp_path}")


def test_a_read_only_folder_is_named(locked: Path) -> None:
    with pytest.raises(StoreError, match=f"{locked}.*Permission denied"):
        FeedbackStore(f"sqlite:///{locked}/feedback.db")


def test_other_databases_and_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.db", tmp_path / "other.db"
    text.write_text("these are my notes, not a database\n" * 40)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    for path, message in ((text, "file is not a database"), (other, "not a feedback.*songs")):
        before = path.read_bytes()[100:]
        with pytest.raises(StoreError, match=message):
            FeedbackStore(f"sqlite:///{path}")
        assert path.read_bytes()[100:] == before


def test_other_tables_on_either_database_are_left_alone(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE songs (title TEXT)")
    with pytest.raises(StoreError, match=r"not a feedback store \(it holds songs"):
        FeedbackStore(url)
    assert sa.inspect(engine).get_table_names() == ["songs"]
    engine.dispose()


def test_a_newer_format_is_refused(url: str) -> None:
    engine = sa.create_engine(url)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(store_table).values(format="align-feedback", version=99))
    engine.dispose()
    with pytest.raises(StoreError, match="version 99"):
        FeedbackStore(url)


def test_a_reader_makes_no_tables(url: str) -> None:
    engine = sa.create_engine(url)
    engine.connect().close()  # SQLite makes its file now
    with pytest.raises(StoreError, match=r"it holds no tables|no such file"):
        FeedbackStore(url, create=False)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            "postgresql//ann:s3cret@host/name",
            r"postgresql//ann:\*\*\*@host/name' is not a database",
        ),
        ("postgresql://ann:s3cret@host:port/name", "is not a database URL"),
        ("postgresql//host/name?password=s3cret&x=1", "is not a database URL"),
        ("mysql://ann:s3cret@host/name", "mysql is not supported"),
        ("postgresql://ann:p@s3cret@host/name", "in a password, write it %40"),
        ("postgresql://ann:s3cret@127.0.0.1:1/name", "cannot be opened.*refused"),
        ("postgres://127.0.0.1:1/name?password=s3cret", "cannot be opened.*refused"),
    ],
)
def test_no_message_shows_a_password(bad: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        FeedbackStore(bad)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stores_url_hides_its_password(postgres_folder: Path) -> None:
    with pytest.raises(StoreError, match='database "nope" does not exist'):
        FeedbackStore(f"postgresql://align:s3cret@/nope?host={postgres_folder}")
    with FeedbackStore(f"postgresql://align:s3cret@/postgres?host={postgres_folder}") as store:
        assert store.url.startswith("postgresql+psycopg://align:***@/postgres")


def test_sqlite_runs_with_a_write_ahead_log(tmp_path: Path) -> None:
    FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}").close()
    with sqlite3.connect(tmp_path / "feedback.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
