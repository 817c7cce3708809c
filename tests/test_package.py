import ast
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import proxyhpo

SOURCE = Path(proxyhpo.__file__)
PUBLIC = [name for name in proxyhpo.__all__ if name != "__version__"]


def test_help_lists_each_public_name_with_one_line():
    told = pydoc.plain(pydoc.render_doc(proxyhpo))
    listed = re.findall(r"^ {8}(\w+) {2,}\S.+$", told, re.MULTILINE)
    assert sorted(listed) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_has_words_of_its_own(name):
    value = getattr(proxyhpo, name)
    if name != "PROFILES":
        assert value.__doc__.splitlines()[0].endswith((".", ":"))


def test_type_checkers_see_what_loads_on_first_use():
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    seen = {
        alias.asname: node.module.removeprefix("proxyhpo.")
        for node in block.body
        for alias in node.names
    }
    assert seen == proxyhpo._HOMES
    assert SOURCE.with_name("py.typed").exists()


def test_importing_the_package_loads_no_library():
    ask = "import sys, proxyhpo; print(sorted({'numpy', 'pandas', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
