"""Build the reference model's corpus: the CPython standard library's sources and documentation.

    python -m benchmarks.reference_model.corpus --out build/corpus

Everything here is under the PSF license. The sources come from the running interpreter; the documentation
(reStructuredText) from a folder, by default where Debian's `python3.11-doc` package puts it.

Held-out files are named by hand, code and prose in each text, because a random split would pick tables
(`encodings/cp*.py` reads as perplexity 1.5) and fake the mean. A module that is held out takes its
documentation page with it, so that nothing about it is trained on.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

DEBIAN_DOCS = Path("/usr/share/doc/python3.11/html/_sources")

# Half of the library is its test suite; encodings are tables; pydoc_data repeats the language reference.
EXCLUDED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "encodings",
    "pydoc_data",
    "lib-dynload",
    "__phello__",
    "msilib",
    "__pycache__",
}
EXCLUDED_NAMES = ("_sysconfigdata", "changelog")

HELD_OUT: dict[str, tuple[str, ...]] = {
    "calibration": (
        "lib:heapq.py",
        "lib:shlex.py",
        "lib:queue.py",
        "lib:fnmatch.py",
        "lib:graphlib.py",
        "docs:library/heapq",
        "docs:howto/sorting",
        "docs:tutorial/errors",
    ),
    "evaluation": (
        "lib:textwrap.py",
        "lib:contextlib.py",
        "lib:sched.py",
        "lib:bisect.py",
        "docs:library/textwrap",
        "docs:tutorial/inputoutput",
        "docs:howto/sockets",
    ),
    "second": (
        "lib:csv.py",
        "lib:cmd.py",
        "docs:library/csv",
        "docs:library/cmd",
    ),
}
# Pages about held-out modules that no text uses, kept out of training all the same.
ALSO_HELD_OUT = (
    "docs:library/shlex",
    "docs:library/queue",
    "docs:library/fnmatch",
    "docs:library/graphlib",
    "docs:library/contextlib",
    "docs:library/sched",
    "docs:library/bisect",
)
HELD_OUT_LIMIT_BYTES = 300_000


def library_files(library: Path) -> dict[str, Path]:
    """Python sources of the standard library, keyed `lib:path/in/library.py`."""
    return {
        f"lib:{path.relative_to(library).as_posix()}": path
        for path in sorted(library.rglob("*.py"))
        if not EXCLUDED_FOLDERS & set(path.relative_to(library).parts) and not path.name.startswith(EXCLUDED_NAMES)
    }


def documentation_files(docs: Path) -> dict[str, Path]:
    """Documentation pages, keyed `docs:folder/page` without the `.rst.txt` (or `.rst`) ending."""
    pages = sorted([*docs.rglob("*.rst.txt"), *docs.rglob("*.rst")])
    return {
        f"docs:{page.relative_to(docs).as_posix().removesuffix('.txt').removesuffix('.rst')}": page
        for page in pages
        if not page.name.startswith(EXCLUDED_NAMES)
    }


def read_text(path: Path) -> str | None:
    """The file's text with newlines normalised, or None when it isn't UTF-8 or is nearly empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    text = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
    return text + "\n" if len(text) > 200 else None


def build_corpus(library: Path, docs: Path) -> tuple[list[str], dict[str, str]]:
    """Training documents, and the held-out texts by name."""
    files = library_files(library) | documentation_files(docs)
    withheld = set(ALSO_HELD_OUT).union(*HELD_OUT.values())
    if missing := sorted(withheld - set(files)):
        raise SystemExit(f"held-out files not found: {', '.join(missing)} (library {library}, docs {docs})")
    training = [text for key, path in files.items() if key not in withheld and (text := read_text(path))]
    held_out = {
        name: "\n".join(text for key in keys if (text := read_text(files[key]))) for name, keys in HELD_OUT.items()
    }
    if (size := sum(len(text.encode()) for text in held_out.values())) > HELD_OUT_LIMIT_BYTES:
        raise SystemExit(f"held-out texts are {size} bytes, over {HELD_OUT_LIMIT_BYTES}")
    return training, held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--docs", type=Path, default=DEBIAN_DOCS)
    arguments = parser.parse_args()

    training, held_out = build_corpus(arguments.library, arguments.docs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "train.txt").write_text("\0".join(training), encoding="utf-8")
    for name, text in held_out.items():
        (arguments.out / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"{len(training)} training documents, {sum(map(len, training)) / 1e6:.1f} MB")
    for name, text in held_out.items():
        print(f"held out: {name}, {len(text.encode()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
