"""`files.toml` of a model folder: SHA-256 of the files that the manifest does not name.

The manifest's hash is the model id, so what does not change the meaning of codes cannot be in it: token models, the gradient, graphs in
integers and for single frames. Their digests are here, and undertone refuses a file that differs.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

NAME = "files.toml"
KINDS = (".onnx", ".safetensors", ".json")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def others(folder: Path) -> list[Path]:
    """Files of a model folder that its manifest does not name, by name."""
    manifest = tomllib.loads((folder / "manifest.toml").read_text())
    named = {entry["path"] for entry in manifest.values() if isinstance(entry, dict)}
    return sorted(p for p in folder.iterdir() if p.suffix in KINDS and p.name not in named)


def write(folder: Path) -> list[str]:
    """Writes files.toml for what is there now; returns the names in it."""
    files = others(folder)
    lines = [
        "# SHA-256 of the files that manifest.toml does not name. Written by `python -m undertone_recipe digests`.",
        "format = 1",
        "",
        "[sha256]",
        *(f'"{p.name}" = "{sha256(p)}"' for p in files),
    ]
    part = folder / (NAME + ".part")
    part.write_text("\n".join(lines) + "\n")
    part.replace(folder / NAME)
    return [p.name for p in files]


def wrong(folder: Path) -> list[str]:
    """What does not agree with files.toml, in words; nothing for a folder that has none."""
    path = folder / NAME
    if not path.exists():
        return []
    stated = tomllib.loads(path.read_text())["sha256"]
    there = {p.name: sha256(p) for p in others(folder)}
    missing = [f"{name} is missing" for name in stated if name not in there]
    unknown = [f"{name} is not in {NAME}" for name in there if name not in stated]
    changed = [name for name, digest in stated.items() if there.get(name, digest) != digest]
    return missing + unknown + [f"{name}: its hash is not that of {NAME}" for name in changed]
