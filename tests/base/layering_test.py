"""Fails on an include between folders of src/ that ARCHITECTURE.md does not draw.

    server -> engine -> model -> compute -> memory -> base
                |
                +-> residency -> store -> io -> memory -> base

A folder may include whatever is reachable along the arrows. Third-party headers that belong to one
folder only (RocksDB to store, liburing to io, ...) are checked as well.
"""
import pathlib
import re
import sys

ARROWS = {
    "base": [],
    "memory": ["base"],
    "io": ["memory"],
    "store": ["io"],
    "residency": ["store"],
    "compute": ["memory"],
    "model": ["compute"],
    "engine": ["model", "residency"],
    "server": ["engine"],
}
OWNED = {  # pattern of the third-party include -> folders of src/ that may have it
    r"rocksdb/": {"store"},
    r"liburing": {"io"},
    r"numa(if)?\.h": {"memory"},
    r"spdlog/": {"base"},
    r"boost/": {"server"},
    r"immintrin\.h": {"compute"},
    r"cuda": {"compute", "memory"},
}


def reachable(folder):
    seen, todo = {folder}, [folder]
    while todo:
        for below in ARROWS[todo.pop()]:
            if below not in seen:
                seen.add(below)
                todo.append(below)
    return seen


def violations(source_dir):
    for path in sorted((source_dir / "src").rglob("*")):
        if path.suffix not in {".h", ".cc", ".cu", ".cuh"}:
            continue
        folder = path.relative_to(source_dir / "src").parts[0]
        allowed = reachable(folder)
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)', line)
            if not match:
                continue
            where, name = f"{path.relative_to(source_dir)}:{number}", match.group(2)
            if match.group(1) == '"':
                target = name.split("/")[0]
                if target in ARROWS and target not in allowed:
                    yield f"{where}: {folder} must not include {target}/ ({name})"
            for pattern, owners in OWNED.items():
                if re.match(pattern, name) and folder not in owners:
                    yield f"{where}: only {sorted(owners)} may include <{name}>"


def self_test():
    """The check itself must be able to fail."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        (root / "src/compute").mkdir(parents=True)
        (root / "src/compute/bad.cc").write_text('#include "io/block_reader.h"\n#include <rocksdb/db.h>\n')
        assert len(list(violations(root))) == 2, "planted violations were not found"


if __name__ == "__main__":
    self_test()
    found = list(violations(pathlib.Path(sys.argv[1])))
    print("\n".join(found) or "layering: no forbidden include")
    sys.exit(bool(found))
