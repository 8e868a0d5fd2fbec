"""The site that `make docs` builds: every page in it, every link and every docstring in order."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build(source: pathlib.Path, out: pathlib.Path) -> subprocess.CompletedProcess[str]:
    lacking = [
        name
        for name in ("sphinx", "furo", "myst_parser", "sphinx_copybutton")
        if importlib.util.find_spec(name) is None
    ]
    if lacking:
        print(f"skipped: {lacking} not installed: pip install 'commpress[docs]'")
        pytest.skip(f"{lacking} not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150)


def test_the_site_has_no_warnings(tmp_path: pathlib.Path) -> None:
    done = build(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / f"{page.stem}.html").stat().st_size > 1000, page
    api = (tmp_path / "api.html").read_text()
    for name in (
        "commpress.register",
        "commpress.HookState",
        "commpress.all_reduce",
        "commpress.information.fisher_limit",
    ):
        assert f'id="{name}"' in api, name
    assert 'href="quickstart.html"' in (tmp_path / "index.html").read_text()
    assert "../docs/" not in (tmp_path / "readme.html").read_text()


@pytest.mark.parametrize(("text", "named"), [("[there](nowhere.md)", "nowhere.md"), ("[there](#nothing)", "nothing")])
def test_a_broken_link_is_an_error(text: str, named: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "conf.py").write_text((ROOT / "docs" / "conf.py").read_text())
    (tmp_path / "index.md").write_text(f"# Title\n\n{text}\n")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    assert named in done.stderr
