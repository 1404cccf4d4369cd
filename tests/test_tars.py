"""`prepare images` on tar files: read in place, nested ones too, and damage costs what it must."""

import io
import json
import tarfile

import media
import pytest

from jepa_jax import data, prepare
from jepa_jax.data import tars, video


def _run(source, output, *more):
    return prepare.main(["images", str(source), "--output", str(output), "--workers", "0", *more])


def _numbers(folder):
    source = data.ShardSource([str(folder)])
    return {
        source[index].source_id: media.read_number(video.decode_image(source[index].data))
        for index in range(len(source))
    }


def _skips(folder):
    skips = json.loads((folder / "images-report.json").read_text())["skips"]
    return {skip["path"]: skip["reason"] for skip in skips}


def _picture(number, folder):
    with open(media.write_image(folder / f"{number}.png", number=number), "rb") as file:
        return file.read()


def _tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "made").mkdir()
    return [_picture(number, tmp_path / "made") for number in range(6)]


def test_members_are_read_in_place_and_tars_in_tars_too(pictures, tmp_path):
    inner = _tar(tmp_path / "inner.bin", {"x.png": pictures[3], "below/y.PNG": pictures[4]}).read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    members = {
        "ä b.png": pictures[1],
        "notes.txt": b"no picture",
        "._x.png": b"mac",
        "n01.tar": inner,
        "z.png": pictures[5],
    }
    path = _tar(folder / "all.tar", members)
    media.write_image(folder / "plain.png", number=9)
    assert _run(folder, tmp_path / "out") == 0
    assert _numbers(tmp_path / "out") == {
        f"{path}!ä b.png": 1, f"{path}!n01.tar!x.png": 3, f"{path}!n01.tar!below/y.PNG": 4, f"{path}!z.png": 5,
        f"{folder}/plain.png": 9,
    }  # fmt: skip


def test_unreadable_members_are_counted(pictures, tmp_path):
    path = _tar(
        tmp_path / "a.tar", {"good.png": pictures[2], "bad.png": b"nothing", "empty.png": b"", "last.png": pictures[3]}
    )
    assert _run(path, tmp_path / "out", "--max-skip-fraction", "0.9") == 0
    assert _skips(tmp_path / "out") == {f"{path}!bad.png": "not an image", f"{path}!empty.png": "empty file"}
    assert sorted(_numbers(tmp_path / "out").values()) == [2, 3]


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_rest_of_a_damaged_tar_is_lost_and_said_so(damage, pictures, tmp_path):
    path = _tar(tmp_path / "a.tar", {f"{number}.png": content for number, content in enumerate(pictures)})
    with tarfile.open(path) as tar:
        third = tar.getmember("3.png")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: third.offset_data + 40])
    else:
        media.flip_byte(path, third.offset + 3)
    assert _run(path, tmp_path / "out", "--max-skip-fraction", "0.9") == 0
    assert sorted(_numbers(tmp_path / "out").values()) == [0, 1, 2]
    assert set(_skips(tmp_path / "out").values()) == {"unreadable tar member"}


def test_tar_that_changed_since_it_was_listed(pictures, tmp_path):
    path = _tar(tmp_path / "a.tar", {"a.png": pictures[2]})
    (member,) = tars.list_images([str(path)])
    path.write_bytes(path.read_bytes()[: member.offset + 10])
    with pytest.raises(data.DataError, match="ends after 10 of its"):
        tars.read_member(member)
    path.unlink()
    with pytest.raises(data.DataError, match="no such file"):
        tars.read_member(member)


def test_what_is_no_usable_tar_is_refused(tmp_path, capsys):
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    assert _run(tmp_path / "a.tar.gz", tmp_path / "out") == 2
    assert "is compressed" in capsys.readouterr().err
    _tar(tmp_path / "b.tar", {"notes.txt": b"x"})
    assert _run(tmp_path / "b.tar", tmp_path / "out") == 2
    assert "b.tar holds no file ending in .jpg" in capsys.readouterr().err
    (tmp_path / "c.tar").write_bytes(b"not a tar" * 200)
    assert _run(tmp_path / "c.tar", tmp_path / "out") == 1
    assert _skips(tmp_path / "out") == {f"{tmp_path}/c.tar": "unreadable tar member"}


def test_unusable_tars_in_a_folder_are_counted(pictures, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    _tar(folder / "good.tar", {"a.png": pictures[2]})
    _tar(folder / "text.tar", {"notes.txt": b"x"})
    (folder / "b.tar.gz").write_bytes(b"\x1f\x8b")
    assert _run(folder, tmp_path / "out", "--max-skip-fraction", "1") == 0
    assert _numbers(tmp_path / "out") == {f"{folder}/good.tar!a.png": 2}
    assert _skips(tmp_path / "out") == {
        f"{folder}/text.tar": "tar without images", f"{folder}/b.tar.gz": "compressed tar",
    }  # fmt: skip
