"""The source code that a user's own hosts, seeds and data follow from: their modules, and all that these import.

The standard library and this package are left out. An installed package counts by its version.
"""

import ast
import hashlib
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_INSTALLED = {"site-packages", "dist-packages"}
_CANNOT_BE_FOLLOWED = frozenset(
    {"__file__", "__import__", "import_module", "exec", "eval", "run_path", "run_module"}
    | {"environ", "getenv", "urlopen", "urlretrieve", "from_pretrained", "load_state_dict_from_url"}
    | {"hf_hub_download", "snapshot_download", "home", "cwd", "getcwd"}
)
"""Names with which a module may read or import what its source does not tell. `eval` only as a plain name."""
_READERS = frozenset(
    {"open", "load", "load_file", "loadtxt", "genfromtxt", "fromfile", "memmap", "read_bytes", "read_text"}
    | {"read_csv", "read_parquet", "read_json", "imread", "safe_open"}
)
"""Functions that read a file. Its name is known if it is a constant, an option or a file that `find` returned."""


@dataclass(frozen=True)
class UserCode:
    """Digest of the user code that something depends on.

    Attributes:
        digest: changes with the source of every module and the content of every file that the source names.
        unknown: why that may not be all; None if it is.
    """

    digest: str
    unknown: str | None


@dataclass(frozen=True)
class _Source:
    """A module's source as it was when the module was first seen here.

    Attributes:
        imports: names of modules, or of what may be one.
        strings: string constants that may be paths of files.
    """

    content: bytes
    imports: tuple[str, ...] = ()
    strings: tuple[str, ...] = ()
    folder: Path = Path()
    unknown: str | None = None


_SEEN: dict[str, tuple[ModuleSpec, _Source]] = {}
"""Sources of loaded modules. A reload makes a new spec; an edit without one changes nothing that runs."""


def user_code(*things: object) -> UserCode:
    """Returns the digest of the user code that functions, classes and modules depend on."""
    found, unknown = [], None
    for name, source in _reached(things):
        if source is None:
            parts = [_version(name.partition(".")[0]).encode()]
        else:
            files, unread = _files(source)
            parts = [source.content, *files]
            unknown = unknown or source.unknown or (f"module {name} names {unread}" if unread else None)
        found.append((name, _digest(parts)))
    return UserCode(_digest(f"{name} {digest}".encode() for name, digest in sorted(found)), unknown)


def remember_code(*things: object) -> None:
    """Records the source of that code's loaded modules, before anybody can edit them."""
    for _ in _reached(things):
        pass


def _reached(things: Iterable[object]) -> Iterator[tuple[str, _Source | None]]:
    """Yields each module of a user's own that the things' modules import, and None as the source of installed ones."""
    seen = set()
    pending = sorted({name for thing in things for name in _modules_of(thing)})
    while pending:
        name = pending.pop()
        top = name.partition(".")[0]
        if name in seen or top in sys.stdlib_module_names or top == "esper_ray":
            continue
        seen.add(name)
        source = None if top != "__main__" and _is_installed(top) else _source(name)
        if source is not None:
            pending += [*source.imports, *([name.rpartition(".")[0]] if "." in name else [])]
        yield name, source


def file_digest(path: Path) -> bytes:
    """Returns a digest of a file's content; it is read again only once it has changed."""
    facts = path.stat()
    return _content_digest(path.absolute(), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@lru_cache(maxsize=256)
def _content_digest(path: Path, *_facts: int) -> bytes:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.digest()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _modules_of(thing: object) -> Iterator[str]:
    """Yields the names of the modules in which a function or class, its base classes or its parts are defined."""
    if isinstance(thing, ModuleType):
        yield thing.__name__
    elif isinstance(thing, partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _modules_of(part)
    elif isinstance(thing, type):
        yield from (base.__module__ for base in thing.__mro__)
    elif isinstance(thing, Callable):  # type: ignore[arg-type]
        yield getattr(thing, "__module__", None) or type(thing).__module__
        yield from _modules_of(getattr(thing, "__wrapped__", None))


def _source(name: str) -> _Source:
    loaded, spec = sys.modules.get(name), _spec(name)
    if name == "__main__" or (loaded is not None and spec is None):
        return _Source(b"", unknown=f"it is defined in {name}, which no other process can import")
    if spec is None:  # an attribute of a module, or an optional module that is not there
        return _Source(b"absent")
    known = _SEEN.get(name)
    if known is not None and known[0] is spec:
        return known[1]
    source = _read(name, spec)
    if loaded is not None:
        _SEEN[name] = spec, source
    return source


def _spec(name: str) -> ModuleSpec | None:
    """Returns where a module comes from, without importing anything; None if there is none."""
    if (loaded := sys.modules.get(name)) is not None:
        return loaded.__spec__
    path = None
    if parent := name.rpartition(".")[0]:
        above = _spec(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        path = list(above.submodule_search_locations)
    found = (finder.find_spec(name, path) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)


def _read(name: str, spec: ModuleSpec) -> _Source:
    if spec.origin is None and spec.submodule_search_locations is not None:  # a folder without an __init__.py
        return _Source(b"")
    path = Path(spec.origin or "")
    try:
        content = path.read_bytes()
        tree = ast.parse(content)
    except (OSError, ValueError, SyntaxError):
        return _Source(b"", unknown=f"module {name} has no source that can be read")
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    nodes = list(ast.walk(tree))
    hidden = sorted(_CANNOT_BE_FOLLOWED & set(_names(nodes)))
    return _Source(
        content,
        tuple(dict.fromkeys(imported for node in nodes for imported in _imports(node, package))),
        tuple(dict.fromkeys(_strings(nodes))),
        path.parent,
        _unknown(name, hidden, nodes),
    )


def _unknown(name: str, hidden: list[str], nodes: list[ast.AST]) -> str | None:
    if hidden:
        return f"module {name} uses {hidden[0]}, so that not all that it reads is known"
    if _puts_a_name_together(nodes):
        return f"module {name} reads a file whose name it puts together"
    return None


def _names(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr != "eval":
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")
        above = parents[: len(parents) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        if base:
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _puts_a_name_together(nodes: list[ast.AST]) -> bool:
    """Returns whether a file is read whose name is made of several parts in the same expression."""
    for node in nodes:
        if isinstance(node, ast.Call):
            function = node.func
            called = function.id if isinstance(function, ast.Name) else getattr(function, "attr", None)
            if called in _READERS:
                named = [*node.args[:1], *([function.value] if isinstance(function, ast.Attribute) else [])]
                if any(isinstance(part, ast.BinOp | ast.JoinedStr) for name in named for part in ast.walk(name)):
                    return True
    return False


def _strings(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and text and not {"\n", "\0"} & set(text):
            yield text


def _files(source: _Source) -> tuple[list[bytes], str | None]:
    """Returns the digests of the files that a module's source names, and a place that it names and that is not known.

    That is a folder, or a file that may not be read.
    """
    digests, unread = [], None
    for text in source.strings:
        for path in sorted({Path(text), source.folder / text, *([in_home(text)] if text.startswith("~/") else [])}):
            try:
                if stat.S_ISREG(path.stat().st_mode):
                    digests.append(file_digest(path))
                elif text.strip("./"):  # "/" and "." are seldom folders to read from
                    unread = f"the folder {path}"
            except PermissionError:
                unread = f"{path}, which may not be read"
            except OSError:  # it is not there, or too long for the name of a file
                continue
    return digests, unread


def in_home(text: str) -> Path:
    """Returns a path that begins with `~/`, in the user's home folder if there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no home
        return Path(text)


def _is_installed(top: str) -> bool:
    spec = _spec(top)
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or ())]
    return any(_INSTALLED & set(Path(place).parts) for place in places)


@lru_cache
def _version(top: str) -> str:
    """Returns the version of the installed distribution that a module comes with."""
    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(top, [])
        return " ".join(f"{name} {metadata.version(name)}" for name in sorted(set(names)))
