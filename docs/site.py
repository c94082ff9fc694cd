"""What `make docs` adds to the pages of this folder: README, a page for each module, and files that pages link to."""

import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", **{f"{n}.md": f"{n}.md" for n in ("CONTRIBUTING", "CHANGELOG", "SECURITY")}}
MODULES = ("pytorch_impl", "mxnet_impl", "jittor_impl", "common", "data", "parity_tests")
LINK = re.compile(r"(\]\()([^()#\s]+)(#[^()\s]*)?\)")
EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Examples of docstrings are code; without this, brackets in them would be taken for links."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)


def on_files(files, config):
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=ROOT / source))
    paths = (path for package in MODULES for path in sorted((ROOT / package).rglob("*.py")))
    config.nav.append({"Modules": (modules := [])})
    sections = {"": modules}
    for name in filter(is_documented, (path.relative_to(ROOT).as_posix() for path in paths)):
        page, module = page_of(name), name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        files.append(File.generated(config, page, content=f"# {module}\n\n::: {module}\n"))
        parent, _, last = module.rpartition(".")
        if name.endswith("__init__.py"):
            sections[module] = [page]
            sections[parent].append({last: sections[module]})
        else:
            sections[parent].append({last: page})
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of pages are those of the repository; here they lead to the page, the module or a copy of the file."""
    origins = {page: source for source, page in PAGES.items()}
    folder = posixpath.dirname(origins.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def link(found):
        start, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if "://" in target or page.file.src_uri.startswith("api/") or not (ROOT / path).is_file():
            return found.group()  # mkdocs says so if it leads nowhere
        uri = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path) or page_of(path)
        if uri not in files.src_uris:
            uri = f"files/{path}.txt"
            if uri not in files.src_uris:
                files.append(File.generated(config, uri, content=(ROOT / path).read_text("utf-8")))
        relative = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"{start}{relative}{anchor or ''})"

    return LINK.sub(link, markdown)


def is_documented(name: str) -> bool:
    parts = name.removesuffix(".py").split("/")
    return "tests" not in parts and not any(part.startswith("_") and part != "__init__" for part in parts)


def page_of(name: str) -> str:
    module = name.removesuffix(".py")
    return f"api/{module.removesuffix('__init__')}index.md" if module.endswith("__init__") else f"api/{module}.md"
