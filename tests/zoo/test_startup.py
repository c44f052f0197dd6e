"""The start-up hook against a stub of the Zoo: registration, silence, cost, and that it breaks nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.zoo.conftest import STARTUP, Playground, clean_environment, write_tree

EVERYTHING = """
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER
from rl_zoo3.exp_manager import ExperimentManager
print(sorted(ALGOS), sorted(HYPERPARAMS_SAMPLER), sorted(HYPERPARAMS_CONVERTER))
"""
REGISTERED = "['erl_re2', 'td3'] ['erl_re2', 'td3'] ['erl_re2', 'td3']"
STOCK = "['td3'] ['td3'] ['td3']"


def test_files_name_the_same_entry() -> None:
    line = (STARTUP / "sb3_erl_zoo.pth").read_text()
    start = (STARTUP / "sb3_erl_zoo.start").read_text().split()
    assert line.startswith("import ") and line.count("\n") == 1 and line.endswith("\n"), "site executes single import lines"
    assert start == ["_sb3_erl_zoo:install"]
    module, function = start[0].split(":")
    assert re.search(rf"\bimport {module}\b", line) and f"{module}.{function}()" in line


def test_start_line_resolves(playground: Playground) -> None:
    code = "import pkgutil; print(callable(pkgutil.resolve_name('_sb3_erl_zoo:install')))"
    assert playground.output(code) == "True"


def test_registers(playground: Playground) -> None:
    assert playground.output(EVERYTHING) == REGISTERED


def test_registers_the_class_itself(playground: Playground) -> None:
    code = "from rl_zoo3 import ALGOS; import sb3_erl; print(ALGOS['erl_re2'] is sb3_erl.ERLRe2)"
    assert playground.output(code) == "True"


def test_zoo_inside_an_archive(playground: Playground) -> None:
    playground.zip_zoo()
    assert playground.output(EVERYTHING) == REGISTERED


def test_archive_loader_is_left_as_it_was(playground: Playground) -> None:
    playground.zip_zoo()
    code = "import importlib.util as u; u.find_spec('rl_zoo3.utils')\n" + EVERYTHING
    assert playground.output(code) == REGISTERED


def test_switched_off(playground: Playground) -> None:
    code = EVERYTHING + "print([f for f in sys.meta_path if 'sb3_erl' in type(f).__module__])"
    assert playground.output(code, SB3_ERL_ZOO="0").splitlines() == [STOCK, "[]"]


def test_late_call_completes_what_is_imported(playground: Playground) -> None:
    code = EVERYTHING + "site.addsitedir(SITE)\n" + EVERYTHING
    result = playground.run(f"SITE = {str(playground.site)!r}\n" + code, start=False)
    assert result.stdout.split("\n")[:2] == [STOCK, REGISTERED], result.stderr


def test_reload_registers_again_and_wraps_once(playground: Playground) -> None:
    code = """
import importlib, rl_zoo3.exp_manager as m, rl_zoo3.utils as u
from sb3_erl.zoo import module_ready
wrapped = m.ExperimentManager.__init__
module_ready("rl_zoo3.exp_manager", m)
assert m.ExperimentManager.__init__ is wrapped
for module in (u, m):
    importlib.reload(module)
assert m.ExperimentManager.__init__.__wrapped__.__name__ == "__init__"
assert not hasattr(m.ExperimentManager.__init__.__wrapped__, "__wrapped__")
print(sorted(u.ALGOS), sum(getattr(f, "is_sb3_erl_zoo_finder", False) for f in sys.meta_path))
"""
    assert playground.output(code) == "['erl_re2', 'td3'] 1"


def test_second_install_adds_nothing(playground: Playground) -> None:
    code = "import _sb3_erl_zoo as h; n = len(sys.meta_path); h.install(); h.install(); print(len(sys.meta_path) - n)"
    assert playground.output(code) == "0"


def test_algorithm_of_the_zoo_is_not_replaced(playground: Playground) -> None:
    write_tree(playground.library / "rl_zoo3", {"utils.py": "class Stock: ...\nALGOS = {'erl_re2': Stock}\n"})
    assert playground.output("from rl_zoo3.utils import ALGOS; print(ALGOS['erl_re2'].__name__)") == "Stock"


def test_default_settings_are_ours(playground: Playground) -> None:
    code = "from rl_zoo3.exp_manager import ExperimentManager as E; print(E('erl_re2').config)"
    assert playground.output(code) == str(playground.library / "sb3_erl" / "hyperparams" / "erl_re2.yml")


@pytest.mark.parametrize(
    "call",
    ["E('td3')", "E('erl_re2', 'mine.yml')", "E('erl_re2', 'hyperparams/erl_re2.yml')", "E('erl_re2', config='a.b')"],
    ids=["other algorithm", "own file", "own file of the default's name", "python module"],
)
def test_other_settings_are_left_alone(playground: Playground, call: str) -> None:
    zoo = playground.library / "rl_zoo3"
    code = f"from rl_zoo3.exp_manager import ExperimentManager as E\ne = {call}\nprint(e.config)"
    expected = re.findall(r"'([^']+)'", call)[1:] or [str(zoo / "hyperparams" / "td3.yml")]
    assert playground.output(code) == expected[0]


def test_settings_of_the_zoo_win(playground: Playground) -> None:
    theirs = playground.library / "rl_zoo3" / "hyperparams" / "erl_re2.yml"
    theirs.write_text("default: {}\n")
    assert playground.output("from rl_zoo3.exp_manager import ExperimentManager as E; print(E('erl_re2').config)") == str(
        theirs
    )


def test_broken_package_is_a_warning(playground: Playground) -> None:
    write_tree(playground.library / "sb3_erl", {"__init__.py": "raise RuntimeError('half installed')\n"})
    result = playground.run(EVERYTHING)
    assert result.returncode == 0 and result.stdout.strip() == STOCK
    assert "RuntimeWarning" in result.stderr and "half installed" in result.stderr


def test_missing_hook_module_is_silent(playground: Playground) -> None:
    (playground.site / "_sb3_erl_zoo.py").unlink()
    assert playground.output("print('started')") == "started"


def test_start_imports_nothing_else(playground: Playground) -> None:
    code = """
before = set(sys.modules)
import json  # an import passes through the finder
heavy = ("torch", "numpy", "stable_baselines3", "sb3_erl", "rl_zoo3", "importlib.metadata", "threading")
print([name for name in heavy if name in sys.modules], "_sb3_erl_zoo" in before)
"""
    assert playground.output(code) == "[] True"


def test_start_costs_less_than_two_milliseconds(playground: Playground) -> None:
    """
    With byte code, which installers write. The best of a few starts counts: other programs can only add to it.
    """
    code = f"""
import time
sys.path.append({str(playground.site)!r})
begin = time.perf_counter()
import _sb3_erl_zoo
_sb3_erl_zoo.install()
print(1000 * (time.perf_counter() - begin))
"""
    costs = [float(playground.run(code, start=False, PYTHONDONTWRITEBYTECODE="").stdout) for _ in range(6)]
    assert min(costs) < 2.0, costs


def test_finder_that_asks_everybody(playground: Playground) -> None:
    code = """
class Asking:
    def find_spec(self, name, path=None, target=None):
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                return spec
sys.meta_path.insert(0, Asking())
"""
    assert playground.output(code + EVERYTHING) == REGISTERED


def test_other_errors_of_the_zoo_come_through(playground: Playground) -> None:
    write_tree(playground.library / "rl_zoo3", {"utils.py": "raise ImportError('zoo is broken')\n"})
    result = playground.run("import rl_zoo3.utils")
    assert result.returncode == 1 and "ImportError: zoo is broken" in result.stderr and "RuntimeWarning" not in result.stderr


HUB = """
class Card:
    def __init__(self, *values): self.values = values
    def to_dict(self): return {"values": self.values}
def _generate_metadata(*values): return Card(*values)
"""


def hub_code(rest: str) -> str:
    return f"from huggingface_sb3 import push_to_hub as p\n{rest}"


def test_hub_gets_the_missing_function(playground: Playground) -> None:
    write_tree(playground.library / "huggingface_sb3", {"__init__.py": "", "push_to_hub.py": HUB})
    code = hub_code("print(p.generate_metadata('erl_re2', 1.0), 'sb3_erl' in sys.modules)")
    assert playground.output("sys.modules['rl_zoo3'] = sys\n" + code) == "{'values': ('erl_re2', 1.0)} False"


def test_hub_is_left_alone_without_the_zoo(playground: Playground) -> None:
    write_tree(playground.library / "huggingface_sb3", {"__init__.py": "", "push_to_hub.py": HUB})
    assert playground.output(hub_code("print(hasattr(p, 'generate_metadata'))")) == "False"


def test_hub_function_is_not_replaced(playground: Playground) -> None:
    write_tree(
        playground.library / "huggingface_sb3",
        {"__init__.py": "", "push_to_hub.py": HUB + "def generate_metadata(*values): return 'theirs'\n"},
    )
    code = hub_code("print(p.generate_metadata())")
    assert playground.output("sys.modules['rl_zoo3'] = sys\n" + code) == "theirs"


def test_children_started_by_spawn(playground: Playground) -> None:
    """A spawned child reads the start-up files by itself; here it gets them the way its parent did."""
    script = playground.folder / "script.py"
    script.write_text(
        f"import sys, site\nsys.path.insert(0, {str(playground.library)!r})\nsite.addsitedir({str(playground.site)!r})\n"
        "import multiprocessing\n"
        "def names(queue):\n    from rl_zoo3 import ALGOS\n    queue.put(sorted(ALGOS))\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n    queue = context.SimpleQueue()\n"
        "    child = context.Process(target=names, args=(queue,))\n    child.start()\n"
        "    print(queue.get())\n    child.join()\n"
    )
    result = subprocess.run(
        [sys.executable, "-S", str(script)], env=clean_environment(), capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "['erl_re2', 'td3']", result.stderr


def test_sources_of_the_hook_are_no_package(playground: Playground) -> None:
    """An editable install shows ``startup`` beside the package; importing it from there must change nothing."""
    assert not (STARTUP / "__init__.py").exists()
    shutil.rmtree(playground.site)
    code = "n = len(sys.meta_path); import sb3_erl.zoo.startup._sb3_erl_zoo; print(len(sys.meta_path) - n)"
    assert playground.run(code, start=False).stdout.strip() == "0"
