"""`ground doctor` says what is wrong, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundcontrol.programs import doctor

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /srv rw - nfs4 server:/srv rw
31 30 8:2 / /srv/local\\040disk rw - xfs /dev/sdb1 rw
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "ground.yaml"
    path.write_text(f"data: {tmp_path / 'data'}\nlisten: 127.0.0.1:0\n", encoding="utf-8")
    return path


def test_a_good_installation_is_well(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--config", str(config)]) == 0
    assert "all is well" in capsys.readouterr().out


def test_what_is_wrong_comes_with_a_remedy(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = config.parent / "data"
    data.mkdir(mode=0o777)
    data.chmod(0o777)
    (data / "ground.db").write_bytes(b"not a database, and long enough to be looked at" * 100)
    assert doctor.main(["--config", str(config)]) == 1
    said = capsys.readouterr().out
    assert f"chmod 0711 {data}" in said
    assert "restore a backup" in said


def test_settings_that_cannot_be_read_are_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ground.yaml").write_text("lissten: 1\n", encoding="utf-8")
    assert doctor.main(["--config", str(tmp_path / "ground.yaml")]) == 1
    assert "lissten" in capsys.readouterr().out


def test_a_data_directory_on_a_network_file_system_is_wrong(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS, encoding="utf-8")
    kinds = {
        "/srv/data": "nfs4",
        "/srv": "nfs4",
        "/srvother/data": "ext4",
        "/srv/local disk/data": "xfs",
        "/var/lib": "ext4",
    }
    assert {place: doctor._file_system(Path(place), mounts) for place in kinds} == kinds
    assert doctor._file_system(Path("/"), tmp_path / "none") == ""
    monkeypatch.setattr(doctor, "_file_system", lambda _: "nfs4")
    assert doctor.main(["--config", str(config)]) == 1
    assert "local disk" in capsys.readouterr().out
