"""The model that training starts from: new, a checkpoint of this project, or any Hugging Face causal LM."""

from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoTokenizer, PreTrainedModel

from apr.core.errors import ParamsError
from apr.core.files import read_json
from apr.core.params import Params
from apr.core.seeds import derive_seed
from apr.engine.checkpoint import load_model, new_model, tokenizer_size
from apr.grammar.vocabulary import Vocabulary


def starting_model(
    params: Params, method: str, vocabulary: Vocabulary
) -> tuple[PreTrainedModel, LoraConfig | None]:
    """The model with packed attention and float32 weights, and the adapters to train if any.

    Raises `CheckpointError` if `sft.base` is not a checkpoint.
    """
    sft, seed = params.sft, derive_seed(params.seed, "sft", method)
    if sft.base is None:
        if sft.lora:
            raise ParamsError("sft.lora: allowed only with sft.base, the checkpoint that it adapts")
        size, window = vocabulary.size, params.grammar.window
        return new_model(params.model, size, vocabulary.pad, window, seed, attention="packed"), None
    model = load_model(sft.base, device="cpu", attention="packed").float()
    foreign = not _speaks(Path(sft.base), vocabulary)
    if foreign:
        adopt_vocabulary(model, Path(sft.base), vocabulary)
    if sft.lora is None:
        return model, None
    lora = LoraConfig(r=sft.lora.rank, lora_alpha=sft.lora.alpha, target_modules="all-linear")
    if foreign:  # every word is new to the model
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        lora.modules_to_save = [
            name.split(".")[-1] for name, module in model.named_modules() if module in layers
        ]
        lora.ensure_weight_tying = model.config.get_text_config().tie_word_embeddings
    return model, lora


def _speaks(base: Path, vocabulary: Vocabulary) -> bool:
    """Whether the tokenizer of `base` has the ids of `vocabulary`, and no others."""
    words = read_json(base / "tokenizer.json")["model"]["vocab"]
    return words == vocabulary.ids and tokenizer_size(base) == vocabulary.size


@torch.no_grad()
def adopt_vocabulary(model: PreTrainedModel, base: Path, vocabulary: Vocabulary) -> None:
    """Gives a foreign model the words of the thread language.

    The embedding of a word is the mean over the pieces into which the model's own tokenizer cuts its text.
    """
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    pieces = [tokenizer.encode(word, add_special_tokens=False) for word in vocabulary.words]
    adopted = [
        torch.stack([layer.weight[ids].mean(0) if ids else layer.weight.mean(0) for ids in pieces])
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    model.get_input_embeddings().weight.copy_(adopted[0])
    model.get_output_embeddings().weight.copy_(adopted[1])
