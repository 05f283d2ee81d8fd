"""Tars with the members that a test names."""

import io
import tarfile


def write_tar(file, members, **options):
    with tarfile.open(file, "w", **options) as tar:
        for name, content in members:
            if isinstance(name, tarfile.TarInfo):
                tar.addfile(name)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file
