"""Keyword arguments that no function has."""

import inspect

import pytest

import tilenet
from tilenet.arguments import known_options
from tilenet.jobs.options import BatchSettings

FUNCTIONS = [
    *(tilenet.segment, tilenet.lazy, tilenet.batch, tilenet.verify, tilenet.overlay, tilenet.evaluate, tilenet.train),
    *(tilenet.open_image, tilenet.objects, tilenet.write_geojson, tilenet.write_table, tilenet.write_tiff),
    *(tilenet.plan_tiles, tilenet.UNet, tilenet.Recipe),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_misspelt_option_of_every_function_is_answered_with_its_name(function):
    taken = inspect.signature(function).parameters.values()
    needed = {p.name: "x" for p in taken if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    optional = [p.name for p in taken if p.kind is not p.VAR_KEYWORD and p.name not in needed and len(p.name) > 3]
    assert optional
    for name in optional:
        misspelt = name[:2] + name[3] + name[2] + name[4:] if name[2] != name[3] else name[1:]
        with pytest.raises(tilenet.SettingsError) as raised:
            function(**needed, **{misspelt: 1})
        assert str(raised.value) == f"{function.__name__} has no option {misspelt}. Did you mean {name}?"
        assert isinstance(raised.value, TypeError)


@pytest.mark.parametrize("function", [tilenet.segment, tilenet.lazy, tilenet.batch], ids=lambda f: f.__name__)
def test_workers_are_said_to_be_those_of_a_client(function):
    taken = inspect.signature(function).parameters.values()
    needed = {p.name: "x" for p in taken if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    with pytest.raises(tilenet.UnknownOption, match=r"has no option workers\. .*distributed\.Client\(n_workers="):
        function(**needed, workers=2)


def test_an_option_of_the_recipe_is_said_to_belong_there():
    with pytest.raises(tilenet.UnknownOption, match=r"no option epochs\. Give recipe=tilenet.Recipe\(epochs="):
        tilenet.train("data", "model.safetensors", epochs=3)


def test_a_batch_takes_options_of_segment_and_no_others():
    assert BatchSettings.__optional_keys__ < set(inspect.signature(tilenet.segment).parameters)
    with pytest.raises(tilenet.UnknownOption, match="batch has no option block"):
        tilenet.batch("x", "y", block=512)


@pytest.mark.parametrize("function", [tilenet.segment, tilenet.lazy, tilenet.batch], ids=lambda f: f.__name__)
def test_help_shows_the_types_and_the_defaults_of_all_settings(function):
    taken = inspect.signature(function).parameters
    assert all(of.annotation is not of.empty for of in taken.values())
    assert (taken["level"].annotation, taken["level"].default) == ("int | None", None)
    assert (taken["strict"].annotation, taken["strict"].default) == ("bool", False)


def test_what_a_function_knows_reaches_it_and_its_signature_stays():
    def add(a, *, other=2):
        """Add."""
        return a + other

    checked = known_options()(add)
    assert (checked(1), checked(1, other=5), checked(a=2)) == (3, 6, 4)
    assert inspect.signature(checked) == inspect.signature(add)
    assert (checked.__doc__, checked.__module__) == (add.__doc__, add.__module__)
