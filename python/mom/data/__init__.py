"""Text to tokens to batches: reading documents, preparing token files, sampling windows from them.

The command behind it all is `mom.data.prepare.prepare`.
"""

from .memmap import TokenFile, WindowSampler
from .sources import Documents, Piece, ReadReport, TextDocuments, standard_library_text

__all__ = [
    "Documents",
    "Piece",
    "ReadReport",
    "TextDocuments",
    "TokenFile",
    "WindowSampler",
    "standard_library_text",
]
