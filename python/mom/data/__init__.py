"""Text to tokens to batches: reading documents, preparing token files, sampling windows from them.

The command behind it all is `mom.data.prepare.prepare`.
"""

from .hub_texts import hub_documents
from .sources import Documents, Piece, ReadReport, TextDocuments, standard_library_text
from .token_files import TokenFile, WindowSampler

__all__ = [
    "Documents",
    "Piece",
    "ReadReport",
    "TextDocuments",
    "TokenFile",
    "WindowSampler",
    "hub_documents",
    "standard_library_text",
]
