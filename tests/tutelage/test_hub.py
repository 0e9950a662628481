from pathlib import Path

import pytest

from tutelage.hub import means_local_path


@pytest.mark.parametrize("name", ["./x", "../x/y", "/x", "~/x", "a/b/c", "rows.jsonl", "owner/rows.parquet", "a b"])
def test_local(name: str) -> None:
    assert means_local_path(name, (".jsonl", ".parquet"))


@pytest.mark.parametrize("name", ["gsm8k", "owner/name", "owner/name-1.5_x"])
def test_hub(name: str) -> None:
    assert not means_local_path(name, (".jsonl",))


def test_what_exists_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    assert not means_local_path("owner/name")
    monkeypatch.chdir(tmp_path)
    assert means_local_path("owner")
    assert means_local_path("owner/name")  # missing, but its directory is here
