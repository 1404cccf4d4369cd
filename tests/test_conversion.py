"""Items become records in processes: in order, with bounded memory, and whatever one of them does to its process."""

import os
import time
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import cv2
import pytest

from jepa_jax.data import conversion
from jepa_jax.data.conversion import Split, convert_all
from jepa_jax.data.errors import DataError


class _Task(NamedTuple):
    """What the worker does: waits, and then returns bytes, raises, ends its process or divides itself."""

    number: int
    seconds: float = 0.0
    size: int = 1
    act: str = ""

    @property
    def name(self):
        return f"item {self.number}"


@dataclass(frozen=True)
class _Spec:
    kind: ClassVar[str] = "video"
    log: str = ""

    def convert(self, item):
        time.sleep(item.seconds)
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"{item.number}\n")
        if item.act == "die":
            os._exit(9)
        if item.act == "split":
            return Split(tuple(_Task(10 * item.number + part, item.seconds) for part in range(1, 4)))
        if item.act:
            raise {"overflow": OverflowError, "cv2": cv2.error, "bad": _Bad}[item.act]("what happened")
        return bytes(item.size)


class _Bad(DataError):
    pass


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_parts_after_what_was_split(workers):
    tasks = [_Task(number, act="split" if number in (2, 4) else "") for number in range(6)]
    found = [item.number for item, _ in convert_all(tasks, _Spec(), workers)]
    assert found == [0, 1, 2, 21, 22, 23, 3, 4, 41, 42, 43, 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_that_nobody_foresaw_cost_one_item(workers):
    tasks = [_Task(0), _Task(1, act="overflow"), _Task(2, act="cv2"), _Task(3)]
    results = [result for _, result in convert_all(tasks, _Spec(), workers)]
    assert [isinstance(result, bytes) for result in results] == [True, False, False, True]
    assert results[1].reason == results[2].reason == "unexpected error"
    assert str(results[1]) == "item 1: OverflowError: what happened"


def test_processes_that_end_cost_one_item_each():
    tasks = [_Task(number, act="die" if number in (1, 5) else "split" if number == 3 else "") for number in range(9)]
    results = list(convert_all(tasks, _Spec(), 2))
    assert [item.number for item, _ in results] == [0, 1, 2, 3, 31, 32, 33, 4, 5, 6, 7, 8]
    crashed = [item.number for item, result in results if isinstance(result, DataError)]
    assert crashed == [1, 5] and results[1][1].reason == "crashed the decoder"


def _done_before_a_long_one(tmp_path, size, count=60):
    log = tmp_path / "log"
    tasks = [_Task(0, seconds=3.0)] + [_Task(number, size=size) for number in range(1, count)]
    results = convert_all(tasks, _Spec(str(log)), 2)
    assert next(results)[0].number == 0
    done = len(log.read_text().splitlines())
    assert [item.number for item, _ in results] == list(range(1, count))
    return done


def test_a_long_item_does_not_hold_up_the_others(tmp_path):
    assert _done_before_a_long_one(tmp_path, 1) == 60


def test_what_waits_for_a_long_item_is_bounded_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_MAX_WAITING", 20_000)
    # 8 by number, more until 20 kB wait, and then those that were under way.
    assert 20 <= _done_before_a_long_one(tmp_path, 1000) <= 20 + 2 * conversion.AHEAD
