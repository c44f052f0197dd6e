"""The documentation site: it builds without a warning, and its generated parts say what the classes do."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sb3_erl import ALGOS, ERL, TD7, VEBRL

# One worker runs all of them, on pages that are built once.
pytestmark = pytest.mark.xdist_group("site")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as ``make docs`` builds them."""
    pytest.importorskip("sphinx", reason="needs the extra 'docs'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "trees")]
    command += [str(ROOT / "docs"), str(folder / "html")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("algorithm_pages", ROOT / "docs" / "extensions" / "algorithm_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_pages_of_algorithms_have_a_picture_a_table_and_parameters(site: Path) -> None:
    for key in ALGOS:
        page = (site / "algorithms" / f"{key}.html").read_text()
        assert f"_images/{key}.svg" in page and (site / "_images" / f"{key}.svg").stat().st_size > 5_000
        assert "<dt" in page and ("MultiDiscrete" in page or key == "pbt"), "members of any class decide what PBT takes"


@pytest.mark.slow
def test_links_within_the_site_work(site: Path) -> None:
    broken = []
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if "://" not in link and not link.startswith(("mailto:", "data:")) and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []


@pytest.mark.slow
def test_links_to_the_repository_name_files_that_are_no_pages(site: Path) -> None:
    begin = "https://github.com/sb3-erl/sb3-erl/blob/main/"
    pages = [page for page in site.rglob("*.html") if "_modules" not in page.parts]
    links = {link for page in pages for link in re.findall(rf'href="{begin}([^"#?]+)["#]', page.read_text())}
    assert len(links) > 20 and [link for link in links if not (ROOT / link).exists()] == []
    assert [link for link in links if link.endswith(".md") and link.startswith("docs/") and "/results/" not in link] == []


def test_table_of_use_is_what_classes_accept(pages: ModuleType) -> None:
    erl, td7, veb_rl = (pages.usage(cls) for cls in (ERL, TD7, VEBRL))
    assert erl["actions: `Box`"] == "yes" and erl["actions: `Discrete`"] == 'yes with `learner="dqn"`'
    assert veb_rl["actions: `Box`"] == "no" and veb_rl["actions: `Discrete`"] == "yes"
    assert "learner" not in td7 and erl["learner"].startswith('`"ddpg"`, `"td3"`')


def test_a_page_that_forgets_a_step_is_refused(pages: ModuleType) -> None:
    texts = {"ask": "a", "evaluate": "b", "tell": "c", "learn": "d", "exchange": "e"}
    assert [name for name, _ in pages.steps_of(ERL, texts)] == ["ask", "evaluate", "tell", "learn", "exchange"]
    with pytest.raises(ValueError, match="lacks \\['learn'\\]"):
        pages.steps_of(ERL, {name: text for name, text in texts.items() if name != "learn"})
    with pytest.raises(ValueError, match="the page has \\['dream'\\]"):
        pages.steps_of(ERL, {**texts, "dream": "f"})
