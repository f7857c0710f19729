"""The tree of errors in the docstring of their module, against the classes."""

import ast
import copyreg
import pickle
import re
from pathlib import Path

import pytest
from tblib.pickling_support import pickle_exception  # what Dask's `distributed` installs

import tilenet
from tilenet import errors

LINE = r"(\w+)(?: \((\w+)\))?(?:  +(\d))?(?:  +.*)?"


def listed():
    """Yield (level, class, builtin or empty, exit code) of each line of the tree."""
    for line in errors.__doc__.splitlines():
        if found := re.fullmatch(r"    ((?:[│ ]   )*)(?:[├└]── )?" + LINE, line):
            branch, name, builtin, code = found.groups()
            yield len(branch) // 4 + ("─" in line), name, builtin, code


LISTED = list(listed())


def test_the_tree_has_every_class():
    classes = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, tilenet.TilenetError)}
    assert sorted(name for _, name, _, _ in LISTED) == sorted(classes)


@pytest.mark.parametrize("at", range(1, len(LISTED)), ids=[name for _, name, _, _ in LISTED[1:]])
def test_an_error_is_below_its_parent_and_a_builtin_with_its_exit_code(at):
    level, name, builtin, code = LISTED[at]
    error = getattr(errors, name)
    parent = next(above for lower, above, _, _ in reversed(LISTED[:at]) if lower < level)
    assert getattr(errors, parent) in error.__bases__
    assert builtin is None or issubclass(error, getattr(__import__("builtins"), builtin))
    assert error.exit_code == int(code or getattr(errors, parent).exit_code)


def sent(error):
    """Return an error as another process gets it."""
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("name", [name for _, name, _, _ in LISTED])
def test_an_error_stays_what_it_is_between_processes_also_with_the_pickling_of_dask(name, monkeypatch):
    error = getattr(errors, name)("a.tif: is lost. Fix that, then run again")
    error.__cause__ = KeyError("why")
    monkeypatch.delitem(copyreg.dispatch_table, type(error), raising=False)
    plain = sent(error)
    monkeypatch.setitem(copyreg.dispatch_table, type(error), pickle_exception)
    with_dask = sent(error)
    for received in (plain, with_dask):
        assert type(received) is type(error) and str(received) == str(error)
    assert repr(with_dask.__cause__) == "KeyError('why')"


def texts_of(source):
    """Return the texts of a module except docstrings: what messages, help and output are made of."""
    tree = ast.parse(source)
    documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = [node.body[0].value for node in documented if ast.get_docstring(node)]
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings
    ]


def pages_named_in(source):
    return [text for text in texts_of(source) if re.search(r"docs/|\.md\b|README", text)]


def test_no_message_names_a_page_that_an_installation_does_not_have():
    modules = sorted(Path(tilenet.__file__).parent.rglob("*.py"))
    assert len(modules) > 100
    assert {path.name: found for path in modules if (found := pages_named_in(path.read_text()))} == {}
    assert pages_named_in('def f():\n    """See docs/a.md."""\n    raise ValueError(f"{f}: see docs/b.md")') == [
        ": see docs/b.md"
    ]
