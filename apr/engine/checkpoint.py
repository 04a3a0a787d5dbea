"""Opening a checkpoint: a plain Hugging Face directory with safetensors weights and their tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from apr.core.errors import CheckpointError
from apr.core.model_files import first_line, read_config


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU if there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def load_model(directory: str | Path, device: str = "auto", attention: str = "sdpa") -> PreTrainedModel:
    """Returns the causal LM saved in `directory`, in evaluation mode, in the dtype it was saved in.

    How it samples by default (`generation_config.json`) is not read: every request says so itself. Raises
    `CheckpointError` if the directory, its config or its safetensors weights are missing or broken, or if the
    tokenizer beside them is missing or does not fit.
    """
    directory = Path(directory)
    config = read_config(directory)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            attn_implementation=attention,
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
            generation_config=GenerationConfig.from_model_config(config),
            output_loading_info=True,
        )
    except Exception as error:  # whatever the library meets in somebody else's weights
        raise CheckpointError(f"{directory}: weights not readable ({first_line(error)})") from None
    model, found = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        for name in sorted(found[kind])[:1]:
            raise CheckpointError(f"{directory}: weights not those of config.json ({name} is {kind[:-5]})")
    return model.to(resolve_device(device)).eval()
