"""Links that lead out of this folder, as on GitHub, made to lead somewhere on a site.

Files at the root of the repository that are pages have a stub here, which becomes the
file's text. A link to another file is a download (MyST does that), and one to a folder
is its name, unless it has a page: a site has no listings.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import List

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
#: Pages of the root, by the stub that stands for each.
PAGES = {
    "overview": ROOT / "README.md",
    "changelog": ROOT / "CHANGELOG.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "security": ROOT / "SECURITY.md",
}
LINK = re.compile(r"\[([^\[\]]+)\]\(([^()\s#:]+)(#[^()\s]*)?\)")


def _read(app: Sphinx, docname: str, source: List[str]) -> None:
    page = PAGES.get(docname, DOCS / f"{docname}.md")
    if docname in PAGES:
        source[0] = page.read_text()
    here = (DOCS / docname).parent
    source[0] = LINK.sub(partial(_link, page.parent, here), source[0])


def _link(was: Path, here: Path, match: "re.Match[str]") -> str:
    """A link of a page in `was` that is now in `here`."""
    text, path, anchor = match.groups()
    target = (was / path).resolve()
    if (target / "README.md").exists() and DOCS in target.parents:
        target /= "README.md"
    if target.is_dir():
        name = f"`{target.relative_to(ROOT)}/`"
        return name if text.strip("`/") in name else f"{text} ({name})"
    if not target.exists():
        return match[0]  # not a link: a line of code
    for name, page in PAGES.items():
        if target == page:
            target = DOCS / f"{name}.md"
    return f"[{text}]({os.path.relpath(target, here)}{anchor or ''})"


def setup(app: Sphinx) -> None:
    app.connect("source-read", _read)
