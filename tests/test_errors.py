"""The tree of errors in the docstring of their module, against the classes."""

import re

import pytest

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
