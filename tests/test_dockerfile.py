"""What Dockerfile.cron does, as far as no Docker engine is needed to see it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile.cron").read_text()


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_image_has_the_same_modes_whatever_the_builders_umask(
    umask: int, tmp_path: Path
) -> None:
    find = re.search(r"^RUN (find \. .*?644 \{\} \+) \\$", DOCKERFILE, re.M | re.S)
    assert find
    previous = os.umask(umask)
    try:
        (tmp_path / "starview").mkdir()
        for name in ("manage.py", "starview/a file.py"):
            (tmp_path / name).touch()
        (tmp_path / "entrypoint.sh").touch(0o777)
    finally:
        os.umask(previous)

    subprocess.run(["/bin/sh", "-c", find[1]], cwd=tmp_path, check=True)

    modes = {
        path.name: oct(path.stat().st_mode & 0o7777)
        for path in (tmp_path, *tmp_path.rglob("*"))
    }
    assert modes == {
        tmp_path.name: "0o755",
        "starview": "0o755",
        "entrypoint.sh": "0o755",
        "manage.py": "0o644",
        "a file.py": "0o644",
    }


def test_what_was_copied_from_the_checkout_is_in_one_layer_of_the_image() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]

    copied = re.findall(r"^COPY (.*)$", last, re.M)

    assert [line for line in copied if not line.startswith("--from=")] == []
