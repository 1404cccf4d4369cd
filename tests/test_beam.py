"""`prepare ... --beam` writes what `prepare` writes. Skipped without --torch, which installs Apache Beam too."""

import json
import os
import sys

import media
import peers
import pytest
import robots

from jepa_jax import prepare

_BEAM = ("--beam", "--beam-options=--runner=BundleBasedDirectRunner")


def _files(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder)) if name.endswith("array_record")}


def _report(folder, name):
    return json.loads((folder / f"{name}-report.json").read_text())


@pytest.fixture
def _installed():
    peers.need("apache_beam")


@pytest.mark.beam
@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("kind", ["videos", "droid"])
def test_shards_are_the_same(kind, tmp_path):
    for number in range(4):
        if kind == "droid":
            robots.write_droid(tmp_path / "in" / f"ü {number}", 12, views=("left",), seed=number)
        else:
            (tmp_path / "in").mkdir(exist_ok=True)
            media.write_video(tmp_path / "in" / f"{number}.mp4", frames=12 + number)
    (tmp_path / "in" / "bad.mp4").write_bytes(b"nothing")
    arguments = [kind, str(tmp_path / "in"), "--per-shard", "2", "--max-skip-fraction", "0.5"]
    assert prepare.main([*arguments, "--output", str(tmp_path / "plain"), "--workers", "0"]) == 0
    assert prepare.main([*arguments, "--output", str(tmp_path / "beam"), *_BEAM]) == 0
    name = "droid" if kind == "droid" else "clips"
    assert _files(tmp_path / "plain") == _files(tmp_path / "beam") and _files(tmp_path / "beam")
    assert _report(tmp_path / "plain", name) == _report(tmp_path / "beam", name)
    # A run that lost a shard is finished by the next, with Beam or without.
    lost = sorted(_files(tmp_path / "beam"))[0]
    (tmp_path / "beam" / lost).unlink()
    assert prepare.main([*arguments, "--output", str(tmp_path / "beam"), *_BEAM]) == 0
    assert _files(tmp_path / "plain") == _files(tmp_path / "beam")


def test_beam_that_is_not_installed_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    media.write_video(tmp_path / "a.mp4", frames=12)
    assert prepare.main(["videos", str(tmp_path), "--output", str(tmp_path / "out"), "--beam"]) == 2
    assert "bash launch/setup.sh beam" in capsys.readouterr().err
