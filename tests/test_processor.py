"""From a conversation and its images to a batch."""

import dataclasses
import json

import pytest
import reference
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from torch.testing import assert_close

from minivl2.batch import IGNORED, Batch, pad_left
from minivl2.config import Config, paper_candidates
from minivl2.conversation import BEGIN, END, IMAGE, PAD, SPECIAL_TOKENS, ConversationError
from minivl2.images import ImageError
from minivl2.processor import Processor, ProcessorConfig
from minivl2.tiling import cut

HALF = (0.5,) * 3
SIZES = st.tuples(st.integers(5, 200), st.integers(5, 200))
WORDS = st.text(st.sampled_from("ab  \n.,é狐<|>"), max_size=12).filter(lambda text: IMAGE not in text)


def spelled_out(processor, text, grids=()):
    """The reference's line of text as ids: special tokens by name, each text between images by itself."""
    ids, grids = [], iter(grids)
    for i, part in enumerate(text.split(IMAGE)):
        if i:
            ids += [processor.special_ids[IMAGE]] * reference.visual_token_count(*next(grids), side=2)
        ids += processor.tokenizer.encode(part, add_special_tokens=False).ids
    return ids


# ------------------------------------------------------------------------------------------ the ids


@given(st.data(), WORDS, st.lists(st.tuples(SIZES, WORDS), max_size=4), st.booleans())
def test_ids_are_the_texts_with_as_many_image_tokens_as_each_image_needs(processor, data, start, rest, paths):
    text = start + "".join(IMAGE + words for _, words in rest)
    images = [small.picture(*size, seed=i) for i, (size, _) in enumerate(rest)]
    grids = [(1, 1)] * len(images) if len(images) > 2 else [
        tuple(side // small.TILE for side in reference.choose_resolution(image.size, paper_candidates(small.TILE)))
        for image in images]
    batch = processor(small.ask(text), images)
    line = reference.conversation(small.ask(text))
    assert batch.input_ids[0].tolist() == spelled_out(processor, line, grids)
    assert batch.grids.tolist() == [list(grid) for grid in grids]
    assert batch.image_mask.tolist() == (batch.input_ids == processor.special_ids[IMAGE]).tolist()
    assert batch.attention_mask.all() and batch.labels is None and len(batch) == 1


def test_each_image_has_its_own_number_of_tokens(processor):
    """Not that of the first: a small one beside a wide one."""
    batch = processor(small.ask("<image>a<image>"), [small.picture(20, 20), small.picture(200, 40)])
    runs = "".join(".x"[int(m)] for m in batch.image_mask[0]).replace(".", " ").split()
    assert [len(run) for run in runs] == [reference.visual_token_count(w, h, side=2) for w, h in batch.grids.tolist()]
    assert len(set(map(len, runs))) == 2


@pytest.mark.parametrize("images, tiled", [(1, True), (2, True), (3, False), (4, False)])
def test_with_three_or_more_images_nothing_is_tiled(processor, images, tiled):
    wide = small.picture(400, 42)
    batch = processor(small.ask(IMAGE * images), [wide] * images)
    assert batch.grids.tolist() == [[9, 1] if tiled else [1, 1]] * images
    assert len(batch.tiles) == images * (10 if tiled else 2)


def test_images_of_all_turns_are_counted_together(processor):
    """One image in each of three questions are three images."""
    talk = [m for i in range(3) for m in small.answered("<image>", "yes")][:-1]
    assert processor(talk, [small.picture(400, 42)] * 3).grids.tolist() == [[1, 1]] * 3


def test_tiles_are_those_of_every_image_in_order(processor):
    pictures = [small.picture(80, 40), small.picture(40, 120, seed=1)]
    batch = processor(small.ask("<image> and <image>"), pictures)
    want = [cut(p, g, small.TILE, HALF, HALF) for p, g in zip(pictures, [(2, 1), (1, 3)], strict=True)]
    assert torch.equal(batch.tiles, torch.cat(want)) and batch.tiles.dtype == torch.float32


def test_a_text_without_images_has_no_tiles(processor):
    batch = processor(small.ask("how many?"))
    assert batch.tiles.shape == (0, 3, small.TILE, small.TILE) and batch.grids.shape == (0, 2)
    assert not batch.image_mask.any()


def test_nothing_is_merged_across_an_image(processor):
    """On its own "the" may be one token; the text on either side of an image is on its own."""
    ids = processor(small.ask("th<image>e"), [small.picture(42, 42)]).input_ids[0].tolist()
    encode = processor.tokenizer.encode
    assert ids == [processor.special_ids[BEGIN], *encode("<|User|>: th", add_special_tokens=False).ids,
                   *[processor.special_ids[IMAGE]] * 13, *encode("e\n\n<|Assistant|>:", add_special_tokens=False).ids]


def test_the_tokenizers_own_begin_token_is_not_wanted(goldens):
    """Some tokenizers put one before every text they are given; here one text is given in many pieces."""
    made = small.processor(goldens)
    begin = made.special_ids[BEGIN]
    want = made(small.ask("a<image>b"), [small.picture(42, 42)]).input_ids
    made.tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    assert made.tokenizer.encode("a").ids[0] == begin
    assert torch.equal(made(small.ask("a<image>b"), [small.picture(42, 42)]).input_ids, want)


# ------------------------------------------------------------------------------------------ labels


def test_answers_and_their_ends_are_learned_and_nothing_else(processor):
    talk = small.answered("<image> where?", "  over there ") + small.answered("and the dog?", "here")
    batch = processor(talk, [small.picture(42, 42)], training=True)
    assert batch.input_ids[0].tolist() == spelled_out(processor, reference.conversation(talk, training=True), [(1, 1)])
    ids, labels = batch.input_ids[0], batch.labels[0]
    learned = labels != IGNORED
    assert torch.equal(ids[learned], labels[learned])
    runs, before = [], False
    for token, is_learned in zip(ids.tolist()[1:], learned.tolist()[1:], strict=True):
        if is_learned:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = is_learned
    end = processor.special_ids[END]
    encode = processor.tokenizer.encode
    assert runs == [[*encode(text, add_special_tokens=False).ids, end] for text in ("over there", "here")]
    assert not (learned & batch.image_mask[0]).any()
    assert labels[0] == ids[0]      # as the published processor has it; nothing comes before it, so nothing is learned


# ------------------------------------------------------------------------------------------ images and messages


def test_images_may_be_paths_or_stand_in_the_messages(processor, tmp_path):
    picture = small.picture(80, 40)
    picture.save(tmp_path / "a.png")
    want = processor(small.ask("<image>"), [picture])
    for batch in (processor(small.ask("<image>"), [tmp_path / "a.png"]),
                  processor(small.ask("<image>"), [str(tmp_path / "a.png")]),
                  processor([small.ask("<image>")[0] | {"images": [tmp_path / "a.png"]}])):
        assert torch.equal(batch.tiles, want.tiles) and torch.equal(batch.input_ids, want.input_ids)


@pytest.mark.parametrize("text, images", [("<image>", 0), ("none", 1), ("<image><image>", 1), ("<image>", 2)])
def test_every_image_needs_its_place_in_the_text(processor, text, images):
    with pytest.raises(ConversationError, match=f"the text has {text.count(IMAGE)} <image>, but {images} images came"):
        processor(small.ask(text), [small.picture(20, 20)] * images)


def test_what_is_no_image_is_named(processor, tmp_path):
    with pytest.raises(ImageError, match="nowhere.png does not exist"):
        processor(small.ask("<image>"), [tmp_path / "nowhere.png"])


# ------------------------------------------------------------------------------------------ batches


@given(st.lists(st.sampled_from(["a", "how many shapes are there?", "<image>", "x <image> y"]), min_size=1, max_size=4))
def test_a_batch_is_padded_on_the_left(processor, texts):
    alone = [processor(small.ask(t), [small.picture(60 + 9 * i, 42)] * t.count(IMAGE)) for i, t in enumerate(texts)]
    batch, longest = processor.batch(alone), max(b.input_ids.shape[1] for b in alone)
    for i, b in enumerate(alone):
        padding = longest - b.input_ids.shape[1]
        assert batch.input_ids[i].tolist() == [processor.special_ids[PAD]] * padding + b.input_ids[0].tolist()
        assert batch.attention_mask[i].tolist() == [False] * padding + [True] * (longest - padding)
        assert batch.image_mask[i].tolist() == [False] * padding + b.image_mask[0].tolist()
    assert torch.equal(batch.tiles, torch.cat([b.tiles for b in alone]))
    assert torch.equal(batch.grids, torch.cat([b.grids for b in alone]))
    assert batch.labels is None and len(batch) == len(texts)


def test_padding_is_not_learned(processor):
    alone = [processor(small.answered("q", a), training=True) for a in ("yes", "a much longer answer")]
    batch = processor.batch(alone)
    padding = batch.input_ids.shape[1] - alone[0].input_ids.shape[1]
    assert padding > 0
    assert batch.labels[0].tolist() == [IGNORED] * padding + alone[0].labels[0].tolist()


def test_batches_that_do_not_belong_together_are_refused(processor):
    with pytest.raises(ValueError, match="no conversations"):
        pad_left([], 0)
    with pytest.raises(ValueError, match="some .* training=True and some were not"):
        processor.batch([processor(small.answered("q", "a"), training=True), processor(small.ask("q"))])


def test_a_batch_moves_as_a_whole(processor):
    for batch in (processor(small.ask("q")), processor(small.answered("q", "a"), training=True)):
        moved = batch.to("meta")
        for field in dataclasses.fields(Batch):
            tensor = getattr(moved, field.name)
            assert (tensor is None) == (getattr(batch, field.name) is None)
            assert tensor is None or tensor.device.type == "meta"


# ------------------------------------------------------------------------------------------ the tokenizer


def plain_tokenizer(*known):
    return Tokenizer(models.WordLevel({token: i for i, token in enumerate(known)}, unk_token=known[0]))


def test_special_tokens_are_found_by_name_and_the_missing_ones_added():
    """Small and Tiny number them differently, so no number is written anywhere."""
    made = Processor(plain_tokenizer("a", BEGIN, IMAGE, END, "<|User|>"), ProcessorConfig())
    assert made.special_ids[IMAGE] == 2 and made.special_ids["<|User|>"] == 4
    added = [token for token in SPECIAL_TOKENS if token not in (IMAGE, "<|User|>")]
    assert [made.special_ids[token] for token in added] == list(range(5, 5 + len(added)))
    assert made.tokenizer.encode("<|ref|>").ids == [made.special_ids["<|ref|>"]]


def test_special_tokens_that_are_there_are_left_alone(processor, goldens):
    fresh = Tokenizer.from_file(str(goldens / "mla" / "tokenizer.json"))
    assert processor.tokenizer.get_vocab_size() == fresh.get_vocab_size()


@pytest.mark.parametrize("known, missing", [(("a", BEGIN), END), (("a", END), BEGIN)])
def test_a_tokenizer_without_begin_or_end_is_not_deepseeks(known, missing):
    with pytest.raises(ValueError, match=f"the tokenizer has no {missing}: it is not DeepSeek's"):
        Processor(plain_tokenizer(*known), ProcessorConfig())


def test_decoding_stops_at_the_end_and_keeps_special_tokens(processor):
    text = "<|ref|>the fox<|/ref|> is here"
    ids = processor.tokenizer.encode(text, add_special_tokens=False).ids
    end = processor.special_ids[END]
    assert processor.decode(ids) == processor.decode(torch.tensor([*ids, end, *ids]).tolist()) == text
    assert processor.decode([end]) == processor.decode([]) == ""
    assert processor.decode([*ids, end, end, *ids, end]) == text        # a row of a batch is filled up with ends


def test_decoding_reads_a_letter_of_several_tokens_as_one(processor):
    ids = processor.tokenizer.encode("狐 é", add_special_tokens=False).ids
    assert len(ids) > 3 and processor.decode(ids) == "狐 é"
    given = list(ids)
    processor.decode(given)
    assert given == ids


# ------------------------------------------------------------------------------------------ its file


def test_the_published_file_and_back(goldens, tmp_path):
    published = json.loads((goldens / "mla" / "processor_config.json").read_text(encoding="utf-8"))
    config = ProcessorConfig.from_file(goldens / "mla" / "processor_config.json")
    assert config == ProcessorConfig() and (config.tile, config.side) == (384, 14)
    written = json.loads(json.dumps(config.to_dict()))
    assert written == published
    (tmp_path / "p.json").write_text(json.dumps(
        published | {"image_mean": [0.1, 0.2, 0.3], "candidate_resolutions": [[56, 56], [112, 56]]}), encoding="utf-8")
    assert ProcessorConfig.from_file(tmp_path / "p.json") == ProcessorConfig(
        candidate_resolutions=((56, 56), (112, 56)), image_mean=(0.1, 0.2, 0.3))


def test_mean_and_deviation_are_those_of_the_file(goldens):
    config = dataclasses.replace(ProcessorConfig.of(small.config()), image_mean=(0.5, 0.25, 0.0), image_std=(0.5, 0.25, 2.0))
    made = Processor(Tokenizer.from_file(str(goldens / "mla" / "tokenizer.json")), config)
    tiles, _ = made.tile([small.picture(42, 42)])
    want = cut(small.picture(42, 42), (1, 1), small.TILE, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert_close(tiles, want)


@pytest.mark.parametrize("name, tile, side", [("tiny", 384, 14), ("base", 384, 14), ("toy", 56, 4)])
def test_the_processor_of_a_model_makes_as_many_tokens_as_the_model(name, tile, side):
    config = Config.named(name)
    made = ProcessorConfig.of(config)
    assert (made.tile, made.side) == (tile, side) == (config.vision.image_size, config.tokens_per_side)
