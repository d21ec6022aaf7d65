"""Write the generated tables anew: `make tables`, or `python -m docs.tables [--demo DIR]`.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`, in the README, the protocol or a page
of the site; nothing else is touched. `--demo` takes a finished demo into results/ first.
"""

import argparse
import shutil
from pathlib import Path

from . import REPO, filled, pages, report_pages
from .from_results import RESULTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="docs.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="the folder of a finished demo")
    args = parser.parse_args()
    if args.demo:
        (RESULTS / "demo").mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "predictions.png", "curves.png"):
            shutil.copyfile(args.demo / name, RESULTS / "demo" / name)
    texts = report_pages() | {page: filled(page.read_text(), page) for page in pages()}
    for page, text in texts.items():
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
            print(page.relative_to(REPO))


if __name__ == "__main__":
    main()
