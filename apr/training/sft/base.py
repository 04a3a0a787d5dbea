"""The model that training starts from: new, a checkpoint of this project, or any Hugging Face causal LM."""

from collections.abc import Mapping
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

PERIODS = (2, 3, 4, 5, 7, 10, 14, 20, 33, 50, 100, 200, 400, 800)
"""Of the waves that number tokens can begin as: residues, decimal digits, size."""


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
        model = new_model(params.model, size, pad, window, seed, attention="packed")
        add_waves(model, vocabulary.number_of, sft.number_waves, seed)
        return model, None
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
def add_waves(model: PreTrainedModel, number_of: Mapping[int, int], share: float, seed: int) -> None:
    """Makes waves of their value so large a `share` of the variance of numbers' embeddings.

    So numbers begin as what they are to a sum or a difference, which is what most tokens of small models
    else go into: n and m are as alike as the mean of cos(2 pi (n - m) / period) over `PERIODS`, as far as the
    embeddings have room for two directions each.
    """
    if share == 0:
        return
    weight: Any = model.get_input_embeddings().weight
    tokens = torch.tensor(sorted(number_of))
    values = torch.tensor([number_of[token] for token in tokens.tolist()])
    periods = torch.tensor(PERIODS[: weight.shape[1] // 2])
    angles = 2 * torch.pi * values[:, None] / periods
    generator = torch.Generator().manual_seed(derive_seed(seed, "waves"))
    turned = torch.randn(weight.shape[1], weight.shape[1], generator=generator)
    directions = torch.linalg.qr(turned).Q[: 2 * len(periods)]
    scale = model.config.initializer_range * (weight.shape[1] / len(periods)) ** 0.5
    waves = torch.cat([angles.cos(), angles.sin()], dim=1) @ directions * scale
    weight[tokens] = share**0.5 * waves + (1 - share) ** 0.5 * weight[tokens]


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
