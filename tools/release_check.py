"""Builds what would be published, tries it where nothing else is: ``python tools/release_check.py WORK TORCH INDEX``.

1. Builds the sdist, and the wheel from it; checks metadata, contents and that all places name the same version.
2. Installs the wheel alone into an empty environment, with the newest of its dependencies and a CPU build of torch.
3. There, outside of the repository: ``ptprune run``, ``ptprune verify``, README's snippet, and one request to
   ``ptprune app`` where there is that command.
4. Uninstalls it, and checks that nothing is left.

Arguments: a folder for all this, which is emptied first; torch as pip takes it, and the index that has its CPU builds.
"""

from __future__ import annotations

import email
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SDIST = ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml")
SDIST += ("tests/conftest.py", "examples/scene.png", "examples/notebook.ipynb", "tools/release_check.py")
MAX_MEGABYTES = 30
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def main(work: Path, torch: str, index: str) -> None:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    wheel = build(work)
    check_versions(wheel)
    python = environment(work / "empty")
    install(python, wheel, torch, index)
    away = work / "away"
    away.mkdir()
    shutil.copytree(ROOT / "examples", away / "examples")
    try_it(python, away)
    app(python, wheel, away)
    remove(python)
    print(f"ready to publish: {', '.join(path.name for path in sorted((work / 'dist').iterdir()))}")


def run(*command: object, cwd: Path | None = None) -> str:
    """Standard output of a command. Ends everything, with what it said, where it fails."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"release check: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def require(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"release check: {what}")


def environment(directory: Path) -> Path:
    """The Python of a new environment."""
    venv.create(directory, with_pip=True)
    return directory / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def build(work: Path) -> Path:
    """Build both, look into them, and return the wheel."""
    python = environment(work / "tools")
    run(python, *PIP, "install", "build", "twine")
    run(python, "-m", "build", "--outdir", work / "dist", ROOT)
    run(python, "-m", "twine", "check", "--strict", *(work / "dist").iterdir())
    [wheel], [sdist] = (work / "dist").glob("*.whl"), (work / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    sources = {path.relative_to(ROOT / "src") for path in (ROOT / "src/ptprune").rglob("*") if path.is_file()}
    wanted = {path.as_posix() for path in sources if "__pycache__" not in path.parts}
    require(wanted <= inside, f"missing in the wheel: {sorted(wanted - inside)}")
    extra = {name for name in inside - wanted if ".dist-info/" not in name}
    require(not extra, f"not to be in the wheel: {sorted(extra)}")
    require(any(name.endswith("licenses/LICENSE") for name in inside), "no license in the wheel")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    require(set(SDIST) <= packed, f"missing in the sdist: {sorted(set(SDIST) - packed)}")
    for path in (wheel, sdist):
        megabytes = path.stat().st_size / 1e6
        print(f"{path.name}: {megabytes:.1f} MB")
        require(megabytes < MAX_MEGABYTES, f"{path.name}: more than {MAX_MEGABYTES} MB")
    return wheel


def check_versions(wheel: Path) -> None:
    """The wheel, the changelog and the citation name one version; the metadata says what a reader needs."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    version = metadata["Version"]
    for field in ("Name", "Summary", "Requires-Python", "License-Expression", "Description-Content-Type"):
        require(bool(metadata[field]), f"no {field} in the metadata")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    require(f"## [{version}]" in changelog, f"no entry for {version} in CHANGELOG.md")
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    require(cited is not None and cited[1] == version, f"CITATION.cff does not say version: {version}")
    print(f"version {version} everywhere")


def install(python: Path, wheel: Path, torch: str, index: str) -> None:
    """torch first, where its CPU build is; then the wheel, with the newest of everything else."""
    reachable = [*PIP, "install", "--no-deps", "--retries", "0", "--timeout", "10", "--index-url", index, torch]
    if subprocess.run([python, *reachable], capture_output=True, check=False).returncode:
        run(python, *PIP, "install", torch)
    run(python, *PIP, "install", wheel)
    print("installed:", ", ".join(run(python, *PIP, "freeze").split()))


def try_it(python: Path, away: Path) -> None:
    command = python.with_name("ptprune")
    print(run(command, "--version", cwd=away).strip())
    asked = ("examples/scene.png", "-q", "which digit is blue?", "--overlay", "overlay.png", "--json")
    answer = json.loads(run(command, "run", *asked, cwd=away))
    require(answer["visual_tokens"] == {"before": 208, "after": 104}, f"ptprune run kept {answer['visual_tokens']}")
    require((away / "overlay.png").stat().st_size > 1000, "ptprune run drew nothing")
    print(f"ptprune run: {answer['answer']}")
    print(run(command, "verify", cwd=away).strip().splitlines()[-1])
    snippet = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert snippet is not None
    print("README's snippet:", " / ".join(run(python, "-c", snippet[1], cwd=away).split("\n")[:2]))


def app(python: Path, wheel: Path, away: Path) -> None:
    """One request to the page, where this version has one."""
    command = python.with_name("ptprune")
    if not re.search(r"^\W*app\b", run(command, "--help"), re.MULTILINE):
        print("ptprune app: not in this version")
        return
    run(python, *PIP, "install", f"{wheel}[web]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = subprocess.Popen([command, "app", "--port", str(port)], cwd=away)
    try:
        for _ in range(120):
            require(serving.poll() is None, "ptprune app ended by itself")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                    require(b"<html" in answer.read(), "ptprune app answers something else than a page")
                print(f"ptprune app: status {answer.status}")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(1)
        sys.exit("release check: ptprune app does not answer within two minutes")
    finally:
        serving.terminate()
        serving.wait(20)


def remove(python: Path) -> None:
    run(python, *PIP, "uninstall", "--yes", "ptprune")
    gone = run(python, "-c", "import importlib.util as u; print(u.find_spec('ptprune') is None)").strip() == "True"
    left = [path for path in python.parents[1].rglob("*ptprune*") if "__pycache__" not in path.parts]
    require(gone and not left, f"left behind: {left}")
    print("removed without a trace")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3])
