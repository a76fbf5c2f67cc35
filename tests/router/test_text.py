"""From ids to shown text: detokenizers, stop texts, stories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from specrouter_level import vocab
from specrouter_router import tokenizer
from specrouter_router.stops import StopScanner
from specrouter_router.story import Account, Chunk, End, Reader, Story
from specrouter_router.tokenizer import ByteTokenizer, FileTokenizer, TokenizerError

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with a few merges, special tokens and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("Ã", "©")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|user|>", "<|assistant|>", "<|end|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def real(directory: Path) -> FileTokenizer:
    return FileTokenizer(directory)


def test_the_digest_is_the_levels(directory: Path, real: FileTokenizer) -> None:
    assert real.vocab_digest == vocab.digest(directory)


def test_chats_are_rendered_by_the_template(real: FileTokenizer) -> None:
    ids = real.render([{"role": "user", "content": "hello"}])
    user, assistant = real.encode("<|user|>"), real.encode("<|assistant|>")
    assert ids == [*user, *real.encode("hello"), *assistant] and len(user) == 1


def test_what_can_not_be_loaded_says_so(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        tokenizer.load(str(tmp_path))
    for broken in ("{}", "[]", '{"model": ', '{"version": "1.0", "added_tokens": [], "model": {"type": "none"}}'):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(TokenizerError, match="tokenizer"):
            tokenizer.load(str(tmp_path))


@settings(max_examples=200, deadline=None)
@given(prompt=st.text(max_size=8), text=st.text(max_size=40), by_bytes=st.booleans())
def test_tokens_one_by_one_give_the_whole_text(real: FileTokenizer, prompt: str, text: str, by_bytes: bool) -> None:
    made = ByteTokenizer() if by_bytes else real
    try:
        context, ids = made.encode(prompt), made.encode(text)
    except UnicodeEncodeError:
        return  # lone surrogates: requests with them are refused
    one_by_one = made.detokenizer(context)
    parts = [one_by_one.feed(token) for token in ids]
    assert "".join(parts) + one_by_one.flush() == text
    assert not any("\ufffd" in part for part in parts) or "\ufffd" in text


@given(ids=st.lists(st.integers(0, 255), max_size=60))
def test_bytes_that_are_no_text_come_out_somehow_and_soon(real: FileTokenizer, ids: list[int]) -> None:
    detokenizer = real.detokenizer([])
    shown = 0
    for n, token in enumerate(ids):
        shown = n if detokenizer.feed(token) else shown
        assert n - shown <= tokenizer.PATIENCE
    detokenizer.flush()


def test_special_ids_show_nothing(real: FileTokenizer) -> None:
    detokenizer = real.detokenizer([])
    ids = [*real.encode("he"), *real.encode("<|end|>") * 100, *real.encode("llo")]
    assert "".join(map(detokenizer.feed, ids)) == "hello"


@settings(max_examples=300)
@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 3), max_size=30),
)
def test_stop_texts_are_found_wherever_the_pieces_end(text: str, stops: list[str], cuts: list[int]) -> None:
    scanner = StopScanner(stops)
    shown = ""
    rest = text
    for size in [*cuts, *[1] * 30]:
        if scanner.matched or not rest:
            break
        piece, rest = rest[:size], rest[size:]
        shown += "".join(part for part, _ in scanner.feed(piece, "t"))
    shown += "" if scanner.matched else "".join(part for part, _ in scanner.flush())
    places = [text.find(stop) for stop in stops if stop in text]
    assert scanner.matched == bool(places)
    if not places:
        assert shown == text
    elif all(len(stop) == 1 for stop in stops) or max(cuts, default=1) == 1:
        assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)


def test_held_back_pieces_keep_their_origin() -> None:
    scanner = StopScanner(["END"])
    assert scanner.feed("so E", "draft") == [("so ", "draft")]
    assert scanner.feed("N", "mid") == []
    assert scanner.feed("Xy", "target") == [("E", "draft"), ("N", "mid"), ("Xy", "target")]


async def test_readers_follow_from_any_token_and_slow_ones_get_larger_chunks() -> None:
    story = Story([], ByteTokenizer().detokenizer([]), ["!"], frozenset({0}))
    for token, origin in zip(b"hel", ("draft", "draft", "target"), strict=True):
        assert not story.append(token, origin)
    reader, late = Reader(story), Reader(story, 2)
    story.deliver(2)
    assert await reader.next() == Chunk(0, [104, 101], ["draft", "draft"], [("he", "draft")])
    story.deliver(3)
    assert not story.append(0, "target")
    assert not story.append(33 + 1, "mid")
    assert story.append(33, "mid")
    story.close("stop", Account())
    assert (await reader.next()).pieces == [("l", "target"), ('"', "mid")]
    rest = await late.next()
    assert isinstance(rest, Chunk) and rest.tokens == [108, 0, 34, 33]
    assert await reader.next() == await late.next() == End("stop", [], Account())


async def test_an_unfinished_character_is_told_at_the_end() -> None:
    story = Story([], ByteTokenizer().detokenizer([]), [], frozenset())
    for token in "aé".encode()[:-1]:
        story.append(token, "target")
    story.close("length", Account())
    reader = Reader(story)
    assert (await reader.next()).pieces == [("a", "target")]
    assert (await reader.next()).pieces == [("\ufffd", "target")]
