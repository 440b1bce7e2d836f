"""What setup.cfg cannot say: which files from outside `gateway/` go into the wheel."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

# The folder `gateway/share` exists in a wheel only: it is the top of the repository, of which
# `package_data` in setup.cfg names the files to ship. `gateway.shipped` finds both.
SHARE = "gateway.share"


class BuildPy(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """No Python file from the top of the repository, such as run.py, is part of `SHARE`."""
        return [] if package == SHARE else super().find_package_modules(package, package_dir)


setup(
    packages=[*find_packages(include=["gateway", "gateway.*"]), SHARE],
    package_dir={SHARE: "."},
    cmdclass={"build_py": BuildPy},
)
