"""The wheel: all packages and programs in one package, whose folder `trainer` puts on the module path.

Packages named `common` or `datasets` at the top of an environment would hide others of these names.
"""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "classic_trainer"
CHECKS = "# Checks"  # of requirements.txt: where the packages begin that only tests need
# No extra is requirements-serve.txt: serving needs less than the package itself.
EXTRAS = ("crawl", "geo", "heic", "jobs", "mlflow", "packs", "pie", "ray", "remote", "timm", "video")
DATA = ["*.jinja", "*.json", "*.txt", "static/*", "page/*", "demo_page/*", "tree/**"]


def requirements(file: str) -> list[str]:
    """Return what a file of requirements asks for."""
    lines = (line.partition("#")[0].strip() for line in Path(file).read_text("utf-8").partition(CHECKS)[0].splitlines())
    return [line for line in lines if line and not line.startswith("-r")]


setup(
    packages=[PACKAGE, *(f"{PACKAGE}.{name}" for name in [*find_packages(exclude=["tests*"]), "platforms.compat"])],
    package_dir={PACKAGE: "."},
    package_data={"": DATA},
    install_requires=requirements("requirements.txt"),
    extras_require={name: requirements(f"requirements-{name}.txt") for name in EXTRAS},
)
