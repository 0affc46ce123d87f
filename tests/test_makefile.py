"""`make setup`: what it says before it works, and which build of torch it takes. Nothing is run."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.support.sources import ROOT

pytestmark = [
    pytest.mark.process,
    pytest.mark.fault("N 5"),
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """`make`, as if nothing were installed yet."""
    return subprocess.run(
        ["make", "-C", str(ROOT), "-B", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("target", ["setup", "demo"])
@pytest.mark.parametrize("words", [(), ("TORCH=cpu",)])
def test_the_build_of_torch(target: str, words: tuple[str, ...]) -> None:
    """Five gigabytes for a demo on a laptop, and minutes of silence while they come."""
    done = make("-n", target, *words)
    assert done.returncode == 0, done.stderr
    size = done.stdout.index("2.3 GB, 1 to 4 minutes" if words else "5.1 GB on Linux (2.3 GB with")
    installs = [m.start() for m in re.finditer("pip install", done.stdout)]
    cpu = [
        at for at in installs if "download.pytorch.org/whl/cpu" in done.stdout[at:].split("\n")[0]
    ]
    assert cpu == (installs[:1] if words else []) and len(installs) == 1 + len(cpu)
    assert size < installs[0] and "--quiet" not in done.stdout
    assert "-c constraints.txt -e '.[dev]'" in done.stdout[installs[-1] :]


def test_the_cpu_build_is_of_the_tested_version() -> None:
    """The CPU build of another version than the one that the suite was run with."""
    [command] = [line for line in make("-n", "setup", "TORCH=cpu").stdout.splitlines()
                 if "whl/cpu" in line]  # fmt: skip
    [inner] = re.findall(r"\$\((.*?)\)", command)
    pinned = subprocess.run(["bash", "-c", inner], cwd=ROOT, capture_output=True, text=True)
    assert re.fullmatch(r"torch==[\d.]+\n", pinned.stdout)


def test_another_build_is_refused() -> None:
    """A word that is not known installs the large build without a remark."""
    done = make("setup", "TORCH=gpu")
    assert done.returncode != 0 and "use TORCH=cpu, or leave it out" in done.stderr
