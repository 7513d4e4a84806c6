"""`make sbom`: what the image is made of, as CycloneDX: .sbom/starview-cron.cdx.json.

It asks the built image itself: Debian's packages, those of which a program was copied,
and the Python packages. The same image gives the same components.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

IMAGE = "starview-cron"
FILE = Path(".sbom") / f"{IMAGE}.cdx.json"
_VERSION = SchemaVersion.V1_6
_ASK = r"""
dpkg-query -W -f 'deb\t${Package}\t${Version}\n'
cat /var/lib/dpkg/status.d/*
python -c '
from importlib.metadata import distributions
for found in distributions():
    print("pypi", found.name.lower(), found.version, sep="\t")
'
"""


def components(said: str) -> Iterator[Component]:
    """Of lines of kind, name and version, and of dpkg's status files."""
    copied = re.findall(r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)$", said, re.M)
    listed = re.findall(r"^(deb|pypi)\t(\S+)\t(\S+)$", said, re.M)
    for kind, name, version in sorted({*listed, *(("deb", *each) for each in copied)}):
        url = PackageURL(kind, "debian" if kind == "deb" else None, name, version)
        yield Component(
            name=name,
            version=version,
            purl=url,
            bom_ref=str(url),
            type=ComponentType.LIBRARY,
        )


def main() -> int:
    ask = ["docker", "run", "--rm", "--network=none", "--entrypoint=sh", IMAGE]
    said = subprocess.run([*ask, "-c", _ASK], stdout=subprocess.PIPE, text=True)
    if said.returncode:
        print("error: the image did not answer HINT: docker compose build")
        return 1
    bom = Bom(components=components(said.stdout))
    image = Component(name=IMAGE, bom_ref=IMAGE, type=ComponentType.CONTAINER)
    bom.metadata.component = image
    bom.register_dependency(image, bom.components)
    text = make_outputter(bom, OutputFormat.JSON, _VERSION).output_as_string(indent=2)
    if wrong := JsonStrictValidator(_VERSION).validate_str(text):
        print(f"error: no valid CycloneDX: {wrong}")
        return 1
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text, encoding="utf-8")
    print(f"{len(bom.components)} components in {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
