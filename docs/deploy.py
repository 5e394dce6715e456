"""Build the site as one version and commit it to the branch gh-pages, next to the other versions.

python docs/deploy.py 1.2 latest    # version 1.2, which "latest" and the start page then mean
python docs/deploy.py 1.1           # another version
git push origin gh-pages            # publish
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from mike import commands

REPOSITORY = Path(__file__).resolve().parents[1]
BUILT = REPOSITORY / "site"


def main() -> None:
    """Build strictly and commit; the command ``mike deploy`` does so with mkdocs only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="name of the version and of its folder")
    parser.add_argument("alias", nargs="?", help="second name, taken from the version that had it; where / leads")
    options = parser.parse_args()
    aliases = [options.alias] if options.alias else []
    names = {"aliases": aliases, "update_aliases": True, "message": f"Deploy version {options.version} of the site"}
    with commands.deploy({"site_dir": str(BUILT)}, options.version, **names):
        shutil.rmtree(BUILT, ignore_errors=True)
        build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
        subprocess.run(build, cwd=REPOSITORY, check=True)
    if options.alias:
        commands.set_default(options.alias, allow_empty=True)


if __name__ == "__main__":
    main()
