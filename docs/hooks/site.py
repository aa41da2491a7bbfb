"""What `make docs` does beyond the plugins: finished pages for the gallery, links in tutorials."""

from __future__ import annotations

import logging
import pathlib
import posixpath
import re
import subprocess
from typing import Any

from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks.site")
# `make docs` draws these from the embedded world before the site is built.
GALLERY = pathlib.Path("out/gallery")
# What a page of a run consists of; masks and tables of the run stay out of the site.
SHOWN = {".css", ".gif", ".html", ".jpg", ".js", ".png", ".svg", ".webp"}
LINK = re.compile(r'href="(?!\w+:|#|/)([^"#]+\.md)(#[^"]*)?"')


def on_files(files: Files, config: Any) -> Files:
    """Adds the finished pages, so that links to them are checked like all others."""
    found = [p for p in sorted(GALLERY.rglob("*")) if p.suffix in SHOWN and p.is_file()]
    for path in found:
        name = f"gallery/{path.relative_to(GALLERY).as_posix()}"
        files.append(File.generated(config, name, abs_src_path=str(path.resolve())))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Says on a page of figures when they last changed, where that is known."""
    if not page.file.src_uri.startswith("results/"):
        return markdown
    # The date of the last commit: what a person would have to keep up to date would soon be wrong.
    command = ["git", "log", "-1", "--format=%cs", "--", page.file.abs_src_path]
    try:
        dated = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return markdown
    return f"{markdown}\n\n---\n\n*This page last changed on {dated}.*\n" if dated else markdown


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Follows the links of a tutorial, which its plugin leaves as they were written."""
    if not page.file.src_uri.endswith(".py"):
        return html
    folder = posixpath.dirname(page.file.src_uri)

    def follow(found: re.Match[str]) -> str:
        source = posixpath.normpath(posixpath.join(folder, found[1]))
        # One tutorial names another by its page; its source is a program.
        known = files.get_file_from_path(source) or files.get_file_from_path(f"{source[:-3]}.py")
        if known is None:
            log.warning("%s: no page %s, which it links to", page.file.src_uri, found[1])
            return found[0]
        return f'href="{known.url_relative_to(page.file)}{found[2] or ""}"'

    return LINK.sub(follow, html)
