"""The layers of the package, as the design page lists them, against its import statements."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tilenet"
DESIGN = PACKAGE.parent / "docs" / "design.md"


def layers():
    """Return the modules of each line of the table on the design page, lowest first (package/module)."""
    _, _, table = DESIGN.read_text().partition("## Modules")
    found, package = [], ""
    for line in table.splitlines():
        if row := re.match(r"    ( *)([^ ,]+(?:, [^ ,]+)*)", line):
            inside, names = row.groups()
            if names.endswith("/"):
                package = names
            else:
                found.append({(package if inside else "") + name for name in names.split(", ")})
    return [*found, {"__main__"}]


LAYERS = layers()
PURE = {
    "address",
    "bands",
    "byte_counts",
    "errors",
    "geometry",
    "interrupts",
    "extent",
    "footprint",
    "plan",
    "sizes",
    "card",
    "region",
    "resolution",
}
HOMES = {
    "torch": {
        "unet_blocks",
        "unet",
        "fast/stream",
        "fast/winograd",
        "fast/native",
        "fast/compiled",
        "fast/layers",
        "fast/steps",
        "fast/frames",
        "fast/frame_network",
        "predict/engine",
        "machine",
        "models/weights",
        "probe/answers",
        "probe/claims",
        "models/architecture",
        "models/saved",
        "predict/predictors",
        "predict/memory",
        "predict/last_bits",
        "predict/on_gpu",
        "predict/on_cpu",
        "training",
    },
    "triton": {"fast/kernels", "fast/frames"},
    "tifffile": {"readers", "sample", "masks/tiff_mask", "masks/tiff_export"},
    "zarr": {"readers", "store"},
    "dask": {"readers", "workers/clusters", "lazy_array"},
    "distributed": {
        "workers/distributed",
        "workers/cluster_file",
        "workers/submitted_jobs",
        "workers/clusters",
        "runs/object_places",
        "runs/numbering",
        "batches/image_runs",
        "batches/run",
    },
    "dask_jobqueue": {"workers/batch_jobs"},
    "yaml": {"workers/cluster_file"},
    "openslide": {"readers"},
    "wsidicom": {"readers"},
    "pydicom": {"readers"},
    "pylibCZIrw": {"readers"},
    "nd2": {"readers"},
    "liffile": {"readers"},
    "h5py": {"readers"},
    "obstore": {"readers"},
    "boto3": {"readers"},
    "botocore": {"readers"},
    "click": {
        "cli/main",
        "cli/batch",
        "cli/export",
        "cli/pictures",
        "cli/plan",
        "cli/segment",
        "cli/options",
        "cli/output",
        "cli/cluster",
        "cli/training",
        "cli/tuning",
    },
    "rich": {"cli/output"},
    "shapely": {"drawn_regions", "export/cell_areas", "export/edges", "export/in_regions", "tissue/regions"},
}
STANDARD = set(sys.stdlib_module_names) | {"tilenet"}


# Packages whose modules are listed one by one.
PACKAGES = {name.partition("/")[0] for layer in LAYERS for name in layer if "/" in name}


def named(parts):
    """Return a module by its parts as the design page names it: `readers` as a whole, `fast/steps` by itself."""
    return "/".join(parts[: 2 if parts[0] in PACKAGES else 1])


def module_of(path, package=PACKAGE):
    return named(path.relative_to(package).with_suffix("").parts)


def imports_of(source):
    """Return (name, inside tilenet or not) of everything that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (
            node.module == "tilenet" or node.module.removeprefix("tilenet.") in PACKAGES
        ):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def breaches(module, source):
    """Return what a module imports against the rules."""
    level = next(i for i, layer in enumerate(LAYERS) if module in layer)
    allowed = set().union(*LAYERS[: level + 1])
    wrong = []
    for name in imports_of(source):
        top, _, rest = name.partition(".")
        inner = named(rest.split("."))
        if top == "tilenet" and inner and inner not in allowed:
            wrong.append(f"{module} imports {name}, which is above it")
        if top in HOMES and module not in HOMES[top]:
            wrong.append(f"{module} imports {top}")
        if module in PURE and top not in STANDARD:
            wrong.append(f"{module} imports {top}, and is to be pure")
    return wrong


SOURCES = [
    p
    for p in PACKAGE.rglob("*.py")
    if p.name != "__init__.py" or p.parent not in {PACKAGE, *(PACKAGE / name for name in PACKAGES)}
]


def test_the_design_page_lists_every_module_once():
    listed = sorted(name for layer in LAYERS for name in layer)
    assert listed == sorted({module_of(path) for path in SOURCES})
    assert sum(map(len, LAYERS)) == len(set(listed))


def test_every_module_imports_only_from_below():
    assert [breach for path in SOURCES for breach in breaches(module_of(path), path.read_text())] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("plan", "from tilenet.readers import open_image"),
        ("plan", "import numpy"),
        ("runner", "import torch"),
        ("readers", "from tilenet.jobs import job"),
        ("jobs/job", "import zarr"),
        ("api", "import openslide"),
        ("api", "from rich.progress import Progress"),
    ],
)
def test_the_rules_can_be_broken(module, source):
    assert breaches(module, source)


def is_call_by_name(node):
    """Tell whether a function is called by its name, or by those of its module and itself."""
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called.value if isinstance(called, ast.Attribute) else called, ast.Name)


def test_only_the_command_line_prints_and_exits():
    nodes = ((module_of(path), node) for path in SOURCES for node in ast.walk(ast.parse(path.read_text())))
    calls = ((module, ast.unparse(node.func)) for module, node in nodes if is_call_by_name(node))
    assert {module for module, name in calls if name in {"print", "sys.exit", "exit"}} == {"cli/main"}


def imports_tests(source):
    """Return the files of tests that a source imports."""
    return {name for name in imports_of(source) if name.startswith("test_")}


def test_no_file_of_tests_imports_another():
    sources = {path.name: path.read_text() for path in Path(__file__).parent.glob("*.py")}
    assert {name: found for name, source in sources.items() if (found := imports_tests(source))} == {}
    for source in ("from test_cli import work", "import test_cli", "def f():\n    import test_cli as c"):
        assert imports_tests(source) == {"test_cli"}


def test_no_module_bears_the_name_of_an_exported_function():
    import tilenet

    assert not {module_of(p) for p in SOURCES} & (set(tilenet.__all__) - {"metrics"})


def test_every_exported_name_exists():
    import tilenet

    assert all(getattr(tilenet, name) is not None for name in tilenet.__all__)


def test_type_checkers_see_the_exported_names_in_their_modules():
    import tilenet

    (seen,) = (node for node in ast.parse(Path(tilenet.__file__).read_text()).body if isinstance(node, ast.If))
    homes = {alias.asname: (node.module, alias.name) for node in seen.body for alias in node.names}
    expected = {name: (f"tilenet.{home}", name) for name, home in tilenet._HOME_OF.items()}
    assert homes == expected | {"metrics": ("tilenet", "metrics")}


@pytest.mark.parametrize("command", ["import tilenet", "import tilenet.cli.main"])
def test_importing_is_light(command):
    code = (
        f"import sys; {command}; print([m for m in ('torch', 'zarr', 'dask', 'numpy', 'skimage') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
