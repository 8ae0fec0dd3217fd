import logging
import os
import threading
from pathlib import Path

import pytest

from brainuad.files import Cache


def entry(letter: str) -> str:
    """The name of an entry."""
    return f"{letter * 32}.npy"


def put(cache: Cache, letter: str, text: bytes = b"1234567890") -> None:
    cache.write(entry(letter), len(text), lambda handle: handle.write(text))


def got(cache: Cache, letter: str) -> bytes | None:
    return cache.read(entry(letter), lambda handle: handle.read())


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 30, "")
    (tmp_path / "cache" / "folder").mkdir(parents=True)
    (tmp_path / "cache" / "scan.npy").write_bytes(b"somebody's")
    for age, name in enumerate("cba"):
        put(cache, name)
        os.utime(tmp_path / "cache" / entry(name), (age, age))
    assert got(cache, "c") == b"1234567890"  # and so has been used
    put(cache, "d")
    assert [got(cache, name) is not None for name in "abcd"] == [True, False, True, True]
    assert (tmp_path / "cache" / "folder").is_dir()
    assert (tmp_path / "cache" / "scan.npy").exists()


def test_a_new_process_counts_what_is_there(tmp_path: Path) -> None:
    put(Cache(tmp_path, 15, ""), "a")
    cache = Cache(tmp_path, 15, "")
    put(cache, "b")
    assert got(cache, "a") is None
    assert got(cache, "b") is not None


def test_processes_that_write_together_stay_near_the_bound(tmp_path: Path) -> None:
    sharers = [Cache(tmp_path, 640, "") for _ in range(4)]
    for number in range(200):
        name = f"{number:032x}.npy"
        sharers[number % 4].write(name, 10, lambda handle: handle.write(b"1234567890"))
    assert 480 <= sum(path.stat().st_size for path in tmp_path.iterdir()) <= 640 + 3 * 40


def test_what_cannot_be_read_is_absent(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100, "")
    assert got(cache, "nothing") is None
    put(cache, "a")

    def refuse(handle: object) -> None:
        raise ValueError("damaged")

    assert cache.read(entry("a"), refuse) is None


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache", 100, "Nothing is kept")
    threads = [threading.Thread(target=put, args=(cache, str(number))) for number in range(8)]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caplog.text.count("Nothing is kept") == 1
    assert got(cache, "1") is None


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100, "")

    def stop(handle: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.write(entry("a"), 10, stop)
    assert list(tmp_path.iterdir()) == []
