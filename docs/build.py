"""Build the documentation as a site, in English and in Chinese: build.py [FOLDER].

Every warning is an error.
"""

import sys
from pathlib import Path

import repository  # next to this file
from sphinx.cmd.build import main as sphinx

DOCS = Path(__file__).parent
TREES = {"en": (DOCS, "en"), "zh": (DOCS / "zh", "zh_CN")}
# The browser's language decides; without JavaScript the reader does.
FIRST_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>AI Gateway</title>
<script>
  location.replace(`${navigator.language.startsWith('zh') ? 'zh' : 'en'}/index.html`)
</script>
<p><a href="en/index.html" lang="en">English</a> · <a href="zh/index.html" lang="zh">中文</a></p>
"""


def main(target: Path) -> int:
    """Build both trees into `target`; the exit code is 0 if there was no warning."""
    failed = 0
    for name, (tree, language) in TREES.items():
        options = ["-q", "-W", "--keep-going", "-c", str(DOCS), "-D", f"language={language}"]
        # The doctrees stay outside of the site.
        options += ["-d", str(target.parent / f".doctrees-{name}")]
        failed |= sphinx([*options, str(tree), str(target / name)])
    repository.write(target)
    (target / "index.html").write_text(FIRST_PAGE, "utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/site")))
