"""Copy a release artefact with one byte of one file changed."""

import io
import sys
import tarfile

VICTIM = "source/dashboard/app.py"

source, target = sys.argv[1:]
with tarfile.open(source) as whole, tarfile.open(target, "w:gz") as tampered:
    for member in whole:
        data = whole.extractfile(member).read()
        if member.name == VICTIM:
            data = b"#" + data[1:]
        tampered.addfile(member, io.BytesIO(data))
