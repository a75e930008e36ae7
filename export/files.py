"""Names of a checkpoint's files."""

from __future__ import annotations

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
#: files that decide preprocessing
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
#: files that decide tokenisation
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
PROCESSOR_FILES = (*IMAGE_FILES, *TEXT_FILES)
