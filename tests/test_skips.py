"""When bad records stop a run: judged over all processes and restarts, by source, and never by chance."""

import logging

import av
import media
import numpy as np
import pytest
from jepa_jax import data
from jepa_jax.data import skips
from jepa_jax.data.skips import Skip, SkipCounter

CORRUPT = Skip("video/k710", "a.array_record#3", "x.mp4", "corrupt record")


def _counters(count, limit=0.05):
    """Make counters of so many processes, each of which adds up what all of them hold."""
    counters = []

    def own(counter):
        names = sorted(counter.clips)
        skipped = [sum(n for (source, _), n in counter.counts.items() if source == name) for name in names]
        return np.array([[counter.clips[name] for name in names], skipped])

    def add_up(counts):
        total = sum(map(own, counters))
        assert total.shape == counts.shape
        return total

    counters += [SkipCounter(limit, add_up) for _ in range(count)]
    return counters


def _fed(good, bad, limit=0.05, source="video/k710"):
    counter = SkipCounter(limit)
    counter.update({source: good}, [CORRUPT._replace(source=source)] * bad)
    return counter


@pytest.mark.parametrize("rate, stops", [(0.03, False), (0.05, False), (0.09, True)])
def test_only_a_source_worse_than_the_limit_stops_a_run(rate, stops):
    """Of 64 processes with 8 clips each, judged at every step."""
    stopped = []
    for seed in range(20):
        rng, counter = np.random.default_rng(seed), SkipCounter(0.05)
        for _ in range(200):
            # Replaced draws come before each good one.
            counter.update({"video/k710": 512}, [CORRUPT] * int(rng.negative_binomial(512, 1 - rate)))
            if counter.totals().excess():
                stopped.append(seed)
                break
    assert len(stopped) == (20 if stops else 0)


def test_few_draws_say_nothing():
    assert not _fed(20, 70).totals().excess()
    assert "70 of 110 draws" in _fed(40, 70).totals().excess()


def test_message_names_sources_limit_and_what_to_do():
    counter = _fed(9000, 0, source="video/ssv2")
    counter.update({"video/k710": 200}, [CORRUPT] * 100)
    text = counter.totals().excess()
    # One per cent of all draws is no reason; a third of one source is.
    assert "video/k710: 100 of 300 draws (33.3%)" in text and "ssv2" not in text and "all sources" not in text
    assert "allowed fraction 0.05 (data.max_bad_fraction)" in text and "raise the limit" in text


def test_processes_are_judged_together():
    one, other = _counters(2)
    one.update({"video/k710": 150}, [CORRUPT] * 30)
    other.update({"video/k710": 1850}, [])
    assert not one.totals().excess() and not other.totals().excess()
    other.update({"video/k710": 0}, [CORRUPT] * 130)
    assert one.totals().excess() == other.totals().excess() and "160 of 2160" in one.totals().excess()


def test_counts_survive_a_restart_with_other_processes():
    before = _counters(2)
    before[0].update({"video/k710": 60, "image/imagenet": 40}, [CORRUPT] * 10)
    before[1].update({"video/k710": 40, "image/imagenet": 60}, [])
    record = before[1].totals().record(forgiven=False)
    for counter in (after := _counters(3)):
        counter.restore(record)
        counter.update({"video/k710": 10, "image/imagenet": 0}, [CORRUPT])
    metrics = after[2].totals().metrics()
    assert metrics["data/share/video/k710"] == 130 / 230 and metrics["data/skipped/video/k710"] == 13
    assert "mixture of 230 clips: image/imagenet 100 (43.5%), video/k710 130 (56.5%, 13 replaced)" in after[0].totals().mixture()
    # Sources that are gone or new do not matter.
    moved = SkipCounter(0.05)
    moved.restore(record)
    moved.update({"video/yt1b": 5}, [])
    assert moved.totals().metrics()["data/share/video/yt1b"] == 5 / 205


def test_run_that_stopped_is_judged_anew_when_it_is_started_again():
    """Otherwise nobody could go on after repairing the records."""
    stopped = _fed(100, 40)
    again = SkipCounter(0.05)
    again.restore(stopped.totals().record(forgiven=True))
    again.update({"video/k710": 200}, [])
    totals = again.totals()
    assert not totals.excess() and totals.metrics()["data/skipped"] == 40
    again.update({"video/k710": 0}, [CORRUPT] * 40)
    assert "40 of 240" in again.totals().excess()


def test_first_skip_of_a_reason_is_logged(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        counter = SkipCounter(0.5)
        for _ in range(3):
            counter.update({"video/k710": 1}, [CORRUPT, CORRUPT._replace(reason="truncated")])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "video/k710" in lines[0] and "(corrupt record)" in lines[0]
    assert "a.array_record#3 (x.mp4)" in lines[0] and "(truncated)" in lines[1]


@pytest.mark.parametrize("limit", [-0.1, 1.5, float("nan")])
def test_limit_is_a_fraction(limit):
    for refuse in (SkipCounter, skips.max_tries):
        with pytest.raises(ValueError, match="max_bad_fraction is .* between 0 and 1"):
            refuse(limit)


def test_tries_follow_from_the_limit():
    assert [skips.max_tries(limit) for limit in (0.0, 0.05, 0.5, 1.0)] == [10, 12, 50, 1000]
    assert all(limit ** skips.max_tries(limit) < 1e-15 for limit in (0.05, 0.3, 0.5, 0.9))


def test_small_source_that_is_half_bad_feeds_a_run_that_allows_it(tmp_path):
    """Ten bad records in a row happen once in a thousand rows then."""
    av.logging.set_level(av.logging.PANIC)
    good = data.ClipRecord("image", open(media.write_image(tmp_path / "a.png"), "rb").read(), 0.0, 1, 64, 96, "a")
    media.write_shard(tmp_path / "a.array_record", [good, *[good._replace(data=b"bad")] * 3])
    group = data.GroupSpec("still", "image", 1, 4.0, 100, (data.SourceSpec((str(tmp_path),), 1.0),))

    def feed(limit):
        pipeline = data.ClipPipeline(
            [group], data.CropSpec(8, (1.0, 1.0), (1.0, 1.0), 0.0), {"still": media.mask_sampler()}, seed=0,
            max_bad_fraction=limit,
        )
        return sum(len(pipeline.batch_at(step)[1].skips) for step in range(10))

    assert feed(0.75) > 2000
    with pytest.raises(data.DataError, match=r"12 records in a row of .*allowed fraction 0\.05[^#]*a\.array_record#[123]"):
        feed(0.05)
