"""Builds what the commands would build at their first start, for the processor at hand.

An image runs this while it is made. On a machine with another processor the libraries are built once more, into the
volume at XDG_CACHE_HOME: -march=native is worth a compiler in the image.
"""

import pathlib

from tokenometer import processor
from tokenometer.kernels import build
from tokenometer.schemas import compiled

build.load_host()
for file in sorted(pathlib.Path(processor.__path__[0]).rglob("*.cpp")):
    build.build_shared(file)
print(*sorted(path.name for path in compiled.cache_directory().iterdir()))
