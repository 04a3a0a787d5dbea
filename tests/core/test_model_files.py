"""What of a model's directory counts."""

import json
import shutil

import pytest

from apr.core.model_files import model_files

READ = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates/tool.jinja",
}  # fmt: skip
NOT_READ = {
    ".cache/huggingface/download/model.safetensors.metadata", ".gitattributes", ".DS_Store", "README.md",
    "LICENSE", "USE_POLICY.md", "pytorch_model.bin", "model.gguf", "flax_model.msgpack", "onnx/model.onnx",
    "original/consolidated.00.pth", "original/tokenizer.model", "model.fp16.safetensors", "vocab.json",
    "generation_config.json", "recipe.json", "log.jsonl", "adapter/adapter_model.safetensors",
    "consolidated.safetensors",
}  # fmt: skip


def write(directory, names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)


def names(directory):
    return {path.relative_to(directory).as_posix() for path in model_files(directory)}


def test_what_is_read_counts_and_nothing_else(tmp_path):
    write(tmp_path, READ | NOT_READ)
    assert names(tmp_path) == READ
    assert len(model_files(tmp_path)) == len(READ)
    others = {"model.safetensors"}
    assert set(model_files(tmp_path, tokenizer_only=True)) == {tmp_path / name for name in READ - others}


@pytest.mark.parametrize("whole", [True, False])
def test_weights_are_those_that_the_index_names(tmp_path, whole):
    parts = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    write(tmp_path, {"model-00003-of-00003.safetensors"} | parts)
    weights = {"weight_map": {"a.weight": min(parts), "b.weight": max(parts), "b.bias": max(parts)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(weights))
    if whole:
        write(tmp_path, {"model.safetensors"})
    expected = {"model.safetensors"} if whole else parts | {"model.safetensors.index.json"}
    assert names(tmp_path) == {"config.json"} | expected, "which has to be there"


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_read_all_the_same(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert names(tmp_path) == {"config.json", "model.safetensors.index.json"}


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part.safetensors"}}')
    assert names(tmp_path) == {"config.json", "model.safetensors.index.json", "part.safetensors"}
    (tmp_path / "model.safetensors.index.json").unlink()
    assert names(tmp_path) == {"config.json", "model.safetensors"}


def test_files_may_be_links(tmp_path):
    """As in the cache of the hub."""
    write(tmp_path / "blobs", READ)
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert names(tmp_path / "snapshot") == {"config.json", "model.safetensors", "tokenizer.json"}
    shutil.rmtree(tmp_path / "blobs")
