"""Text, events and ids are three views of one thing; what breaks the grammar says where and why."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from apr.core.errors import CheckpointError
from apr.language import Condition, Language, Malformed, Vocabulary
from apr.language import events as ev
from apr.language.pretrained import PretrainedVocabulary, missing_words, new_token
from apr.language.tokenizer import build_tokenizer, load_language, save_tokenizer
from apr.tasks.countdown import Operation

LANGUAGE = Language(Vocabulary(number_tokens=100, depths=4, messages=10))
VOCABULARY = LANGUAGE.vocabulary
DIGITS = Vocabulary(number_tokens=20, depths=4, messages=10)

ROOT = (
    "<root> 27 :0 3 5 9 12 children 2 go spawn #2 27 :1 12 + 9 = 21 3 5 #1 27 :1 9 / 3 = 3 5 12 run "
    "joined none joined 9 / 3 = 3 , 5 * 3 = 15 , 15 + 12 = 27 resume "
    "answer 9 / 3 = 3 , 5 * 3 = 15 , 15 + 12 = 27 end"
)

numbers = st.integers(0, 100) | st.integers(0, 3000)
operations = st.builds(Operation, numbers, st.sampled_from("+-*/"), numbers, numbers)
states = st.lists(numbers, min_size=1, max_size=4).map(tuple)
rests = st.lists(numbers, max_size=3).map(tuple)
line_chains = st.lists(st.tuples(operations, rests), min_size=1, max_size=3).map(
    lambda parts: tuple(ev.Line(depth, *part) for depth, part in enumerate(parts, start=1))
)
nodes = st.builds(ev.Node, numbers, line_chains)
paths = st.none() | st.lists(operations, min_size=1, max_size=3).map(tuple)
conditions = st.none() | st.builds(Condition, st.sampled_from(["tokens", "children"]), numbers)
prompts = st.builds(ev.RootPrompt, numbers, states, conditions) | st.builds(ev.ChildPrompt, nodes)
inner = (
    st.builds(ev.Line, st.integers(0, 3), operations, rests)
    | st.builds(ev.Leaf, st.sampled_from("+-*/"), numbers, st.sampled_from("<!>"))
    | st.just(ev.Listing())
    | st.builds(ev.Goto, line_chains)
    | st.lists(nodes, min_size=1, max_size=4).map(lambda found: ev.Spawn(tuple(found)))
    | st.lists(paths, min_size=1, max_size=4).map(lambda found: ev.Joined(tuple(found)))
)
endings = st.builds(ev.Join, paths) | st.builds(ev.Answer, paths)
threads = st.tuples(prompts, st.lists(inner, max_size=6), endings).map(lambda t: [t[0], *t[1], t[2]])


@given(threads)
@settings(max_examples=300)
def test_events_survive_ids_and_text(events):
    ids = LANGUAGE.encode(events)
    assert LANGUAGE.parse(ids) == events
    assert VOCABULARY.encode(VOCABULARY.decode(ids)) == ids


@given(st.lists(st.integers(-5, VOCABULARY.size + 5), max_size=60))
@settings(max_examples=300)
def test_no_ids_raise(ids):
    parsed = LANGUAGE.parse(ids)
    assert isinstance(parsed, (list, Malformed))
    assert isinstance(LANGUAGE.answer(ids), (list, Malformed, type(None)))
    if isinstance(parsed, list):
        assert LANGUAGE.encode(parsed) == ids


@given(threads, st.data())
@settings(max_examples=300)
def test_a_thread_with_one_token_changed_is_parsed_or_malformed(events, data):
    ids = LANGUAGE.encode(events)
    ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(st.integers(0, VOCABULARY.size - 1))
    parsed = LANGUAGE.parse(ids)
    if isinstance(parsed, Malformed):
        assert 0 <= parsed.position <= len(ids)
        assert parsed.reason


def test_numbers_up_to_the_bound_are_one_token_and_larger_ones_by_digits():
    assert len(DIGITS.number(20)) == 1
    assert [DIGITS.words[i] for i in DIGITS.number(256)] == ["2", "##5", "##6"]
    assert [DIGITS.words[i] for i in DIGITS.number(205)] == ["20", "##5"]


def test_prompt_and_answer():
    ids = LANGUAGE.prompt((3, 5, 9, 12), 27, Condition("children", 2))
    assert VOCABULARY.decode(ids) == "<root> 27 :0 3 5 9 12 children 2 go"
    answer = [Operation(9, "/", 3, 3), Operation(5, "*", 3, 15), Operation(15, "+", 12, 27)]
    assert LANGUAGE.answer(VOCABULARY.encode(ROOT)) == answer
    assert LANGUAGE.answer(VOCABULARY.encode("<root> 27 :0 1 2 go answer none end")) is None
    assert LANGUAGE.answer(VOCABULARY.encode("<root> 27 :0 1 2 go")) == Malformed(6, "no answer")


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("27 :0", 0, "a thread starts with <root> or <child>, not '27'"),
        ("<root> 27 3 5 go", 2, "expected ':0', found '3'"),
        ("<root> 27 :0 3 5 go + 8", 8, "expected one of < ! >, found 'nothing'"),
        ("<root> 27 :0 3 5 go spawn run", 7, "spawn of nothing"),
        ("<root> 27 :0 3 5 go answer none end end", 9, "text after the end"),
        ("<root> 27 :0 3 5 go :1 3 + 5 8", 10, "expected '=', found '8'"),
        ("<root> 27 :0 3 5 go <pad>", 6, "'<pad>' starts nothing"),
    ],
)
def test_malformed_says_where_and_why(text, position, reason):
    assert LANGUAGE.parse(VOCABULARY.encode(text)) == Malformed(position, reason)


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
        ("<root> go spawn 3 #1 3 run", "spawn without a message"),
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
def test_the_tokenizer_has_the_same_ids(events):
    text = VOCABULARY.decode(LANGUAGE.encode(events))
    assert TOKENIZER.encode(text) == VOCABULARY.encode(text)
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


TOKENIZER = build_tokenizer(VOCABULARY)


def test_a_saved_tokenizer_is_checked(tmp_path):
    save_tokenizer(LANGUAGE, tmp_path)
    assert load_language(tmp_path).vocabulary.words == VOCABULARY.words
    text = (tmp_path / "thread_language.json").read_text()
    (tmp_path / "thread_language.json").write_text(text.replace("100", "90"))
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
    tokenizer.add_tokens([new_token(word) for word in missing_words(tokenizer, 4, 10)], special_tokens=True)
    return Language(PretrainedVocabulary(tokenizer, 4, 10, rows=len(tokenizer) + 5))


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
def test_other_tokenizers_say_the_same(events, style):
    """The same text gives the same events and the same framing, whatever the ids."""
    language, text = PRETRAINED[style], VOCABULARY.decode(LANGUAGE.encode(events))
    ids = language.vocabulary.encode(text)
    assert ids == language.encode(events) and language.vocabulary.decode(ids) == text
    assert language.parse(ids) == LANGUAGE.parse(VOCABULARY.encode(text)) == events
    for event in events:
        if isinstance(event, ev.Spawn):
            ours, theirs = (
                list(map(each.vocabulary.decode, each.syntax.messages(each.encode([event]))))
                for each in (LANGUAGE, language)
            )
            assert ours == theirs
    assert language.answer(ids) == LANGUAGE.answer(LANGUAGE.encode(events)) or isinstance(events[-1], ev.Join)


@given(st.data(), st.sampled_from(list(STYLES)))
@settings(max_examples=300)
def test_what_other_tokenizers_cannot_read_is_malformed(data, style):
    """Any ids, among them rows of the embeddings that no token has; more often such as nearly read."""
    language = PRETRAINED[style]
    any_id = st.integers(0, language.vocabulary.size - 1)
    ids = data.draw(threads.map(language.encode)) if data.draw(st.booleans()) else []
    ids = [*ids, *data.draw(st.lists(any_id, max_size=20))]
    if ids:
        ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(any_id)
    parsed, syntax = language.parse(ids), language.syntax
    for found in (parsed, syntax.messages([*ids, 0]), syntax.returned([*ids, 0])):
        assert isinstance(found, (list, Malformed))
    if isinstance(parsed, list):
        text = language.vocabulary.decode(ids)
        assert "<unk>" not in text and language.parse(language.encode(parsed)) == parsed


def test_text_of_the_pretraining_is_no_word():
    language = PRETRAINED["gpt2"]
    words, tokenizer = language.vocabulary, language.vocabulary.tokenizer
    stray = tokenizer.encode("the")[:1]
    prompt = words.encode("<root> 27 :0 3 5 go")
    assert language.parse(prompt + stray) == Malformed(len(prompt), "'<unk>' starts nothing")
    spawn = [*words.encode("spawn #1 27"), *stray, *words.encode("run")]
    assert language.syntax.messages(spawn) == Malformed(3, "'<unk>' inside a spawn")
    blank = tokenizer.convert_tokens_to_ids("Ġ")
    assert words.read_number([blank, blank], 0) is None


def test_a_tokenizer_that_cannot_write_numbers_is_refused():
    letters = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    letters = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>")
    with pytest.raises(CheckpointError, match="is missing"):
        PretrainedVocabulary(letters, 4, 10, 2)
    letters.add_tokens([new_token(word) for word in missing_words(letters, 4, 10)])
    with pytest.raises(CheckpointError, match="writes 0 so that it cannot be read back"):
        PretrainedVocabulary(letters, 4, 10, 2)
