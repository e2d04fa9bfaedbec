"""Answering: read the prompt once, then write one token after another.

Paper    nucleus sampling, arXiv:1904.09751, section 3.1; repetition penalty, arXiv:1909.05858, section 4.1.
Lesson   lessons/09_answering.ipynb            Tests   tests/test_generation.py
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from PIL import Image
from tokenizers.decoders import DecodeStream
from torch import Tensor

from minivl2.batch import Batch, common_start
from minivl2.cache import Cache
from minivl2.conversation import about
from minivl2.decoder import check_length
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor


def generate(model: DeepSeekVL2, batch: Batch, max_new_tokens: int = 512, **options) -> Tensor:
    """The new token ids, (B, at most max_new_tokens). A row that has ended is filled up with the end token.

    The options are those of `write`.
    """
    return torch.stack(list(write(model, batch, max_new_tokens, **options)), dim=1)


def stream(
    model: DeepSeekVL2,
    processor: Processor,
    messages: Sequence[Mapping],
    images: Sequence[Image.Image | str] | None = None,
    max_new_tokens: int = 512,
    **options,
) -> Iterator[str]:
    """The answer to a conversation, piece by piece as it is written. The options are those of `write`."""
    batch = processor(messages, images)
    text = DecodeStream(skip_special_tokens=False)      # holds back half of a character until the other half comes
    for token in write(model, batch, max_new_tokens, **options):
        if token.item() == model.config.language.eos_token_id:
            return
        piece = text.step(processor.tokenizer, token.item())
        if piece:
            yield piece


def answer_each(
    model: DeepSeekVL2,
    processor: Processor,
    questions: Sequence[str],
    images: Sequence[Image.Image | str] = (),
    max_new_tokens: int = 512,
    **options,
) -> list[str]:
    """The answers to several questions about the same images, each as if it were the only one.

    What the questions begin with alike, the images above all, is looked at and read once. Then all answers are written
    side by side: a matrix that several rows need is read from memory once for all of them. The options are those of
    `write`.
    """
    batches = processor.each([about(question, len(images)) for question in questions], images)
    start, memory = common_start(batches), None
    if len(batches) > 1 and not any(b.image_mask[:, start:].any() for b in batches):
        beginning = batches[0].cut(start)[0].to(model.image_newline.device)
        batches = [b.cut(start)[1] for b in batches]
        memory = Cache(model.config.language.num_hidden_layers, start)
        check_length(start, model.config.language.max_position_embeddings)
        read(model, beginning, memory, options.get("prefill_chunk"))
    answers = generate(model, processor.batch(batches), max_new_tokens, memory=memory, **options)
    return [processor.decode(answer) for answer in answers.tolist()]


def write(
    model: DeepSeekVL2,
    batch: Batch,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    prefill_chunk: int | None = None,
    seed: int | None = None,
    memory: Cache | None = None,
) -> Iterator[Tensor]:
    """Yields the next token of every row, (B,), until all rows have ended, or the context is full.

    temperature          0 takes the likeliest token; 1 draws from the model's own probabilities
    top_p                draw only among the likeliest tokens that together have this probability
    repetition_penalty   above 1, tokens already in the answer become less likely
    prefill_chunk        read the prompt this many tokens at a time: the same result in less memory
    seed                 the same seed draws the same answer
    memory               what was read before this batch: one conversation, from which every row goes on
    """
    for name, value, fine in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1),
        ("temperature", temperature, temperature >= 0),
        ("top_p", top_p, 0 < top_p <= 1),
        ("repetition_penalty", repetition_penalty, repetition_penalty > 0),
        ("prefill_chunk", prefill_chunk, prefill_chunk is None or prefill_chunk >= 1),
    ):
        if not fine:
            raise ValueError(f"{name} cannot be {value}")
    device = model.image_newline.device
    random = torch.Generator(device)
    random.manual_seed(seed) if seed is not None else random.seed()

    def choose(logits: Tensor, answer: Tensor) -> Tensor:
        return sample(penalise(logits, answer, repetition_penalty), temperature, top_p, random)

    earlier = {} if memory is None else {"memory": memory}      # your own loop, in lesson 9, need not know of it
    return one_by_one(model, batch.to(device), max_new_tokens, choose, prefill_chunk, **earlier)


@torch.no_grad()
def read(model: DeepSeekVL2, batch: Batch, cache: Cache, prefill_chunk: int | None = None) -> Tensor:
    """The whole batch into the cache. Returns what the decoder made of it, (B, T, D), or of its last chunk."""
    x, T = model.embed(batch), batch.input_ids.shape[1]
    for chunk in torch.arange(T).split(prefill_chunk or T):
        hidden, _ = model.decoder(x[:, chunk], batch.attention_mask[:, chunk], cache)
    return hidden


@torch.no_grad()
def one_by_one(
    model: DeepSeekVL2,
    batch: Batch,
    max_new_tokens: int,
    choose: Callable[[Tensor, Tensor], Tensor],
    prefill_chunk: int | None = None,
    memory: Cache | None = None,
) -> Iterator[Tensor]:
    """Yields the next token of every row, (B,). choose: logits (B, V) and the answer so far (B, n) -> tokens (B,)"""
    decoder, lang = model.decoder, model.config.language
    B, T = batch.input_ids.shape
    length = T if memory is None else memory.length + T
    check_length(length, lang.max_position_embeddings)
    capacity = min(length + max_new_tokens, lang.max_position_embeddings)
    cache = Cache(lang.num_hidden_layers, capacity) if memory is None else memory.fork(B, capacity)
    hidden = read(model, batch, cache, prefill_chunk)

    answer = batch.input_ids.new_empty(B, 0)
    ended = torch.zeros(B, dtype=torch.bool, device=hidden.device)
    while True:
        logits = decoder.head(hidden[:, -1]).float()                        # (B, V): only for the last token
        token = choose(logits, answer).masked_fill(ended, lang.eos_token_id)
        yield token
        ended = ended | (token == lang.eos_token_id)
        answer = torch.cat((answer, token[:, None]), dim=1)
        if ended.all() or answer.shape[1] == max_new_tokens or cache.length == capacity:
            return
        hidden, _ = decoder(decoder.embed(token[:, None]), torch.ones_like(ended)[:, None], cache)


def penalise(logits: Tensor, answer: Tensor, penalty: float) -> Tensor:
    """logits (B, V), answer (B, n) so far. Only the answer counts: asked "is it red?", the model may well say red."""
    told = logits.gather(1, answer)
    return logits.scatter(1, answer, torch.where(told < 0, told * penalty, told / penalty))


def sample(logits: Tensor, temperature: float, top_p: float, random: torch.Generator) -> Tensor:
    """logits (B, V) -> (B,)"""
    if temperature == 0:
        return logits.argmax(-1)
    likely, token = (logits / temperature).softmax(-1).sort(-1, descending=True)
    before = likely.cumsum(-1) - likely         # probability of all that are likelier: 0 for the first, so one stays
    drawn = likely.masked_fill(before >= top_p, 0).multinomial(1, generator=random)
    return token.gather(1, drawn)[:, 0]
