"""Builds what a meter and an audit would build at their first start, for the processor at hand.

An image runs this while it is made. On a machine with another processor the libraries are built once more, into the
volume at XDG_CACHE_HOME: -march=native is worth a compiler in the image.
"""

import pathlib

from tokenometer import processor
from tokenometer.kernels import build

build.load_host()
for name in ("meter/emission.cpp", "broker/kafka/fetch/walk.cpp", "broker/kafka/drain.cpp", "verify/audit.cpp"):
    file = pathlib.Path(processor.__path__[0]) / name
    build.build_shared(file)
print(*sorted(path.name for path in build.cache_directory().iterdir()))
