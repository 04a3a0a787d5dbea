"""The model that training starts from: new, a checkpoint of this project, or any Hugging Face causal LM."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from apr.core.errors import CheckpointError, ParamsError
from apr.core.model_files import check_window
from apr.core.params import Params
from apr.core.seeds import derive_seed
from apr.language.pretrained import PretrainedVocabulary
from apr.language.tokenizer import LANGUAGE_FILE, extend_tokenizer
from apr.language.vocabulary import BaseVocabulary
from apr.training.checkpoint import load_trainable, new_model
from apr.training.sft.rehearsal import rehearse
from apr.training.sharding import sharded


def starting_model(
    params: Params, method: str, vocabulary: BaseVocabulary
) -> tuple[PreTrainedModel, LoraConfig | None]:
    """Returns the model with packed attention and float32 weights, and the adapters to train if any.

    Raises `CheckpointError` if `sft.base` is not a checkpoint, `vocabulary` was not made for it, or it could
    not be trained, saved and decoded.
    """
    sft, seed = params.sft, derive_seed(params.seed, "sft", method)
    if sft.base is None:
        if sft.lora:
            raise ParamsError("sft.lora: allowed only with sft.base, the checkpoint that it adapts")
        size, window = vocabulary.size, params.grammar.window
        pad = vocabulary.ids["<pad>"]
        return new_model(params.model, size, pad, window, seed, attention="packed"), None
    base = Path(sft.base)
    model = load_trainable(base, device="cpu")
    check_window(base, model.config, params.grammar.window)
    if extend_tokenizer(base, vocabulary.task, vocabulary.messages).vocabulary.ids != vocabulary.ids:
        raise CheckpointError(f"{base}: the tokenizer was not made for this model")
    spoken = (base / LANGUAGE_FILE).is_file()
    foreign = vocabulary if isinstance(vocabulary, PretrainedVocabulary) and not spoken else None
    if foreign:
        add_words(model, foreign)
    rehearse(model, base, params.grammar.window)
    if sft.lora is None:
        return model, None
    lora = LoraConfig(r=sft.lora.rank, lora_alpha=sft.lora.alpha, target_modules="all-linear")
    if foreign:
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        if sharded() and model.config.tie_word_embeddings:
            raise ParamsError("sft.lora: allowed under FSDP only if the embeddings of sft.base are not tied, "
                              "or it knows the words of the thread language")
        names = [name for name, module in model.named_modules() if module in layers]
        lora.trainable_token_indices = {name: foreign.new_ids for name in names}
    return model, lora


@torch.no_grad()
def add_words(model: PreTrainedModel, vocabulary: PretrainedVocabulary) -> None:
    """Gives the words that a pretrained model has no tokens for their rows of its embeddings.

    A row is the mean over the tokens of the word's text.
    """
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    for token in vocabulary.new_ids:
        pieces = vocabulary.tokenizer.encode(vocabulary.word(token), add_special_tokens=False)
        layers: Any = (model.get_input_embeddings(), model.get_output_embeddings())
        for layer in layers:
            layer.weight[token] = layer.weight[pieces].mean(0)
