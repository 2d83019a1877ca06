import pytest

from unipic_core.files import replaced_folder


def test_a_folder_that_cannot_be_finished_leaves_the_old_one_and_nothing_else(tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(OSError, match="full"), replaced_folder(out) as partial:
        partial.mkdir()
        (partial / "new").touch()
        raise OSError("the disk is full")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/old"]
