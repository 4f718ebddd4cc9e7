"""Tokenizers: trained here, or taken over unchanged from a source checkpoint."""

from moeba.tokenization.adopt import check_stock_reading, copy_tokenizer, tokenizer_files, use_stock_names
from moeba.tokenization.tokenization_moeba import CHAT_MARKERS, CHAT_TEMPLATE, MoebaTokenizer

__all__ = [
    "CHAT_MARKERS",
    "CHAT_TEMPLATE",
    "MoebaTokenizer",
    "check_stock_reading",
    "copy_tokenizer",
    "tokenizer_files",
    "use_stock_names",
]
