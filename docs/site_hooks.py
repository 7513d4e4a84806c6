"""What mkdocs alone does not do for this site: see mkdocs.yml.

The README is its first page. A link to a file outside docs/ leads to a copy of it,
so that the same link works on GitHub and on the site.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
COPIES = "files"  # the folder of the site that has them
_LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)(#[^)\s]+)?(?=\))")


def on_config(config: MkDocsConfig) -> None:
    """Put every decision record behind the pages that mkdocs.yml names."""
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    config.nav = [
        *(config.nav or ()),
        {"Decisions": [f"decisions/{path.name}" for path in records]},
    ]


def on_files(files: Files, config: MkDocsConfig) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    # Its links begin at the top of the repository, those of a page in docs/.
    links = re.sub(r"\]\((?!https?://|#)", "](../", readme)
    index = links.replace("](../docs/", "](")
    files.append(File.generated(config, "index.md", content=index))
    texts = [page.content_string for page in files.documentation_pages()]
    for name in sorted({found[1] for text in texts for found in _LINK.finditer(text)}):
        if name != "README.md" and (ROOT / name).is_file():
            content = (ROOT / name).read_text(encoding="utf-8")
            files.append(File.generated(config, copy_of(name), content=content))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links that leave docs/ to the copies; only top pages have such links."""
    if PurePosixPath(page.file.src_uri).parent.name:
        return markdown

    def target(found: re.Match[str]) -> str:
        name, anchor = found[1], found[2] or ""
        return f"index.md{anchor}" if name == "README.md" else copy_of(name)

    return _LINK.sub(target, markdown)


def copy_of(name: str) -> str:
    """As text, which every browser shows."""
    return f"{COPIES}/{name.lstrip('.').replace('/', '-')}.txt"
