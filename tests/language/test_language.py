"""Text and ids are two views of one thing; what breaks the grammar says where and why."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from apr.core.errors import CheckpointError
from apr.language import Condition, Language, Malformed, Vocabulary
from apr.language.pretrained import PretrainedVocabulary, missing_words, new_token
from apr.language.tokenizer import build_tokenizer, load_language, save_tokenizer
from apr.tasks.countdown.operation import Operation
from apr.tasks.countdown.words import read_answer, words_of

WORDS = words_of(4)
LANGUAGE = Language(Vocabulary(100, WORDS, 10))
VOCABULARY = LANGUAGE.vocabulary
DIGITS = Vocabulary(20, WORDS, 10)

ROOT = (
    "<root> 27 :0 3 5 9 12 children 2 go spawn 27 :1 #2 12 + 9 = 21 3 5 #1 9 / 3 = 3 5 12 run "
    "joined none joined 9 / 3 = 3 , 5 * 3 = 15 , 15 + 12 = 27 resume "
    "answer 9 / 3 = 3 , 5 * 3 = 15 , 15 + 12 = 27 end"
)


def text(*parts):
    """A strategy of texts: of words, and of strategies of what stands between them."""
    return st.tuples(*(st.just(part) if isinstance(part, str) else part for part in parts)).map(
        lambda said: " ".join(map(str, said))
    )


def several(part, low, high, between=" "):
    return st.lists(part, min_size=low, max_size=high).map(lambda parts: between.join(map(str, parts)))


numbers = st.integers(0, 100) | st.integers(0, 3000)
operations = text(numbers, st.sampled_from("+-*/"), numbers, "=", numbers)
lines = several(text(st.sampled_from([":1", ":2", ":3"]), operations, several(numbers, 1, 3)), 1, 3)
nodes = text(numbers, lines)
paths = st.just("none") | several(operations, 1, 3, " , ")
conditions = st.just("") | text(st.sampled_from(["tokens", "children"]), numbers)
prompts = text("<root>", numbers, ":0", several(numbers, 1, 4), conditions, "go")
prompts |= text("<child>", nodes, "go")
spawns = st.lists(nodes, min_size=1, max_size=4).map(lambda found: " ".join(
    ["spawn", *(f"#{len(found) - place} {node}" for place, node in enumerate(found)), "run"]))  # fmt: skip
inner = (
    lines
    | text(st.sampled_from("+-*/"), numbers, st.sampled_from("<!>"))
    | st.just("list")
    | text("goto", lines, "go")
    | spawns
    | text("joined", several(paths, 1, 4, " joined "), "resume")
)
endings = text(st.sampled_from(["join", "answer"]), paths, "end")
threads = text(prompts, several(inner, 0, 6), endings).map(lambda said: " ".join(said.split()))


@given(threads)
@settings(max_examples=300)
def test_text_survives_ids(said):
    ids = VOCABULARY.encode(said)
    assert VOCABULARY.decode(ids) == said
    assert VOCABULARY.encode(VOCABULARY.decode(ids)) == ids


@given(st.lists(st.integers(-5, VOCABULARY.size + 5), max_size=60))
@settings(max_examples=300)
def test_no_ids_raise(ids):
    assert isinstance(read_answer(VOCABULARY, ids), (list, Malformed, type(None)))
    for found in (LANGUAGE.syntax.messages([*ids, 0]), LANGUAGE.syntax.returned([*ids, 0])):
        assert isinstance(found, (list, Malformed))


@given(paths, st.data())
@settings(max_examples=300)
def test_an_answer_with_one_token_changed_is_read_or_malformed(path, data):
    ids = VOCABULARY.encode(f"<root> 27 :0 3 5 go answer {path} end")
    ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(st.integers(0, VOCABULARY.size - 1))
    found = read_answer(VOCABULARY, ids)
    if isinstance(found, Malformed):
        assert 0 <= found.position <= len(ids)
        assert found.reason
    elif found is not None:
        said = " , ".join(f"{left} {op} {right} = {result}" for left, op, right, result in found)
        assert VOCABULARY.decode(ids).endswith(f"answer {said} end")


def test_numbers_up_to_the_bound_are_one_token_and_larger_ones_by_digits():
    assert len(DIGITS.number(20)) == 1
    assert [DIGITS.words[i] for i in DIGITS.number(256)] == ["2", "##5", "##6"]
    assert [DIGITS.words[i] for i in DIGITS.number(205)] == ["20", "##5"]


def test_prompt_and_answer():
    ids = LANGUAGE.syntax.prompt(VOCABULARY.encode("27 :0 3 5 9 12"), Condition("children", 2))
    assert VOCABULARY.decode(ids) == "<root> 27 :0 3 5 9 12 children 2 go"
    asking = Language(Vocabulary(100, [*WORDS, "devices"], 10))
    ids = asking.syntax.prompt(asking.vocabulary.encode("27 :0 3 5 9 12"), Condition("devices", 16))
    said = "<root> 27 :0 3 5 9 12 devices 16 go"
    assert (asking.vocabulary.decode(ids), asking.vocabulary.encode(said)) == (said, ids)
    with pytest.raises(ValueError, match="not a word of the thread language: 'devices'"):
        VOCABULARY.encode(said)
    answer = [Operation(9, "/", 3, 3), Operation(5, "*", 3, 15), Operation(15, "+", 12, 27)]
    assert read_answer(VOCABULARY, VOCABULARY.encode(ROOT)) == answer
    assert read_answer(VOCABULARY, VOCABULARY.encode("<root> 27 :0 1 2 go answer none end")) is None
    assert read_answer(VOCABULARY, VOCABULARY.encode("<root> 27 :0 1 2 go")) == Malformed(6, "no answer")


@pytest.mark.parametrize(
    ("said", "position", "reason"),
    [
        ("answer", 1, "expected a number, found 'nothing'"),
        ("answer 3 5", 2, "expected one of + - * /, found '5'"),
        ("answer 3 + 5 8 end", 4, "expected '=', found '8'"),
        ("answer 3 + 5 = 8", 6, "expected 'end', found 'nothing'"),
        ("answer 3 + 5 = 8 , end", 7, "expected a number, found 'end'"),
        ("answer none 3 end", 2, "expected 'end', found '3'"),
        ("answer none end end", 3, "text after the end"),
        ("answer <pad> end", 1, "expected a number, found '<pad>'"),
    ],
)
def test_malformed_says_where_and_why(said, position, reason):
    assert read_answer(VOCABULARY, VOCABULARY.encode(said)) == Malformed(position, reason)


def test_what_a_model_samples_is_neither_prompt_nor_joined():
    ids = VOCABULARY.encode(ROOT)
    sampled = [token for token, mine in zip(ids, LANGUAGE.syntax.sampled(ids), strict=True) if mine]
    said = ROOT.split(" go ")[1]
    assert VOCABULARY.decode(sampled) == said[: said.index("joined")] + said[said.index("answer") :]


def test_spawn_and_join_on_ids():
    syntax, ids = LANGUAGE.syntax, VOCABULARY.encode(ROOT)
    run = ids.index(syntax.run)
    first, second = syntax.messages(ids[: run + 1])
    assert VOCABULARY.decode(first) == "27 :1 12 + 9 = 21 3 5"
    assert VOCABULARY.decode(syntax.child_prompt(second)) == "<child> 27 :1 9 / 3 = 3 5 12 go"
    child = VOCABULARY.encode("<child> 27 :1 9 / 3 = 3 5 12 go join 9 / 3 = 3 end")
    returned = syntax.returned(child)
    assert VOCABULARY.decode(returned) == "9 / 3 = 3"
    joined = syntax.joined([syntax.nothing, returned])
    assert VOCABULARY.decode(joined) == "joined none joined 9 / 3 = 3 resume"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<root> go run", "run without spawn"),
        ("<root> go spawn run", "spawn of nothing"),
        ("<root> go spawn #2 #1 3 run", "empty message"),
        ("<root> go spawn 3 run", "spawn of nothing"),
        ("<root> go spawn 3 #1 run", "empty message"),
        ("<root> go spawn 3 end #1 3 run", "'end' inside a spawn"),
        ("<root> go spawn #1 3 join run", "'join' inside a spawn"),
        ("<root> go spawn #3 3 #1 4 run", "'#1' after '#3'"),
        ("<root> go spawn #2 3 run", "run after '#2'"),
    ],
)
def test_broken_spawns_are_values(text, reason):
    assert LANGUAGE.syntax.messages(VOCABULARY.encode(text)).reason == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<child> go end", "child ends without join"),
        ("<child> go join end", "empty join"),
        ("<child> go join 3 resume end", "'resume' inside a join"),
    ],
)
def test_broken_joins_are_values(text, reason):
    assert LANGUAGE.syntax.returned(VOCABULARY.encode(text)).reason == reason


@given(threads)
@settings(max_examples=50)
def test_the_tokenizer_has_the_same_ids(said):
    assert TOKENIZER.encode(said) == VOCABULARY.encode(said)
    assert TOKENIZER.decode(TOKENIZER.encode(said)) == said


TOKENIZER = build_tokenizer(VOCABULARY)


def test_a_saved_tokenizer_is_checked(tmp_path):
    save_tokenizer(LANGUAGE, tmp_path)
    assert load_language(tmp_path).vocabulary.words == VOCABULARY.words
    saved = (tmp_path / "thread_language.json").read_text()
    (tmp_path / "thread_language.json").write_text(saved.replace("100", "90"))
    with pytest.raises(CheckpointError, match="not those of the thread language"):
        load_language(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        load_language(tmp_path)


READ = " ".join(f"{n} + {n * 7} = {n * 8}, {n} < {n + 1}\n" for n in range(150)) + "the list joined a spawn"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


STYLES = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "qwen": split(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    "llama3": split(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"),
    "llama2": pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits(True)]),
    "mistral": pre_tokenizers.Metaspace(),
}
"""How families of models cut text before BPE: " 37" is one token, or two, or three."""


def pretrained(style) -> Language:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = STYLES[style]
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "▁"]
    tokenizer.train_from_iterator([READ], trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>"], initial_alphabet=alphabet, show_progress=False,
    ))  # fmt: skip
    if style == "llama2":  # SentencePiece's BPE as its tokenizer.json has it: no words, blanks are letters
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<s>")
    missing = missing_words(tokenizer, WORDS, 10)
    tokenizer.add_tokens([new_token(word) for word in missing], special_tokens=True)
    return Language(PretrainedVocabulary(tokenizer, WORDS, 10, rows=len(tokenizer) + 5))


PRETRAINED = {style: pretrained(style) for style in STYLES}


def test_tokenizers_write_what_they_can_in_their_own_tokens():
    tokens = {}
    for style, language in PRETRAINED.items():
        vocabulary = language.vocabulary
        tokens[style] = vocabulary.tokenizer.convert_ids_to_tokens(vocabulary.encode("spawn #1 137 + 12"))
        assert tokens[style][:2] == ["<|apr:spawn|>", "<|apr:#1|>"]
        # CONTROL without <pad>, <unk> and comma, depths, counts; and , - * / ! > where each is two tokens
        new = 15 + 4 + 10 + (6 if style in ("llama2", "mistral") else 0)
        assert vocabulary.new_ids == list(range(vocabulary.size - 5 - new, vocabulary.size - 5))
    assert tokens["gpt2"][2:] == ["Ġ137", "Ġ+", "Ġ12"]
    assert tokens["qwen"][2:] == ["Ġ", "1", "3", "7", "Ġ+", "Ġ", "1", "2"]
    assert tokens["llama3"][2:] == ["Ġ", "137", "Ġ+", "Ġ", "12"]
    assert tokens["llama2"][2:] == ["▁", "1", "3", "7", "▁+", "▁", "1", "2"]
    assert tokens["mistral"][2:] == ["▁137", "▁+", "▁12"]


@given(threads, st.sampled_from(list(STYLES)))
@settings(max_examples=300)
def test_other_tokenizers_say_the_same(said, style):
    """The same text has the same framing and the same answer, whatever the ids."""
    language = PRETRAINED[style]
    ids, ours = language.vocabulary.encode(said), VOCABULARY.encode(said)
    assert language.vocabulary.decode(ids) == said
    for each, thread in ((language, ids), (LANGUAGE, ours)):
        assert not {"<unk>"} & set(map(each.vocabulary.word, thread))
    blocks = said.split(" run")[:-1]
    for until in (" run".join(blocks[: place + 1]) + " run" for place in range(len(blocks))):
        theirs, mine = (list(map(each.vocabulary.decode, each.syntax.messages(each.vocabulary.encode(until))))
                        for each in (language, LANGUAGE))  # fmt: skip
        assert theirs == mine
    if "answer" in said:
        assert read_answer(language.vocabulary, ids) == read_answer(VOCABULARY, ours)


@given(st.data(), st.sampled_from(list(STYLES)))
@settings(max_examples=300)
def test_what_other_tokenizers_cannot_read_is_malformed(data, style):
    """Any ids, among them rows of the embeddings that no token has; more often such as nearly read."""
    language = PRETRAINED[style]
    any_id = st.integers(0, language.vocabulary.size - 1)
    ids = data.draw(threads.map(language.vocabulary.encode)) if data.draw(st.booleans()) else []
    ids = [*ids, *data.draw(st.lists(any_id, max_size=20))]
    if ids:
        ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(any_id)
    found, syntax = read_answer(language.vocabulary, ids), language.syntax
    for each in (found, syntax.messages([*ids, 0]), syntax.returned([*ids, 0])):
        assert isinstance(each, (list, Malformed, type(None)))
    if isinstance(found, list):
        said = " , ".join(f"{left} {op} {right} = {result}" for left, op, right, result in found)
        assert read_answer(language.vocabulary, language.vocabulary.encode(f"answer {said} end")) == found


def test_text_of_the_pretraining_is_no_word():
    language = PRETRAINED["gpt2"]
    words, tokenizer = language.vocabulary, language.vocabulary.tokenizer
    stray = tokenizer.encode("the")[:1]
    answer = words.encode("answer 3 + 5")
    assert read_answer(words, answer + stray) == Malformed(len(answer), "expected '=', found '<unk>'")
    spawn = [*words.encode("spawn #1 27"), *stray, *words.encode("run")]
    assert language.syntax.messages(spawn) == Malformed(3, "'<unk>' inside a spawn")
    blank = tokenizer.convert_tokens_to_ids("Ġ")
    assert words.read_number([blank, blank], 0) is None


def test_a_tokenizer_that_cannot_write_numbers_is_refused():
    letters = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    letters = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>")
    with pytest.raises(CheckpointError, match="is missing"):
        PretrainedVocabulary(letters, WORDS, 10, 2)
    letters.add_tokens([new_token(word) for word in missing_words(letters, WORDS, 10)])
    with pytest.raises(CheckpointError, match="writes 0 so that it cannot be read back"):
        PretrainedVocabulary(letters, WORDS, 10, 2)
