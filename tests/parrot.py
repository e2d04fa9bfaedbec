"""A toy with random weights that says what it is told to: the X-ray of an answer we know beforehand."""

import functools

import small

import minivl2
from minivl2.processor import Processor, ProcessorConfig
from minivl2.training.tokenizer import sentences, train_tokenizer

SIZE = 640


@functools.cache
def tokenizer_json():
    return train_tokenizer(sentences(), SIZE).to_str()


def toy():
    """Random weights, the toy's own tokenizer."""
    from tokenizers import Tokenizer
    config = minivl2.Config.named("toy")
    model = small.randomised(minivl2.build(config), dtype=small.torch.float32)
    return model, Processor(Tokenizer.from_str(tokenizer_json()), ProcessorConfig.of(config))


def teach(model, processor, text, pause=lambda: None):
    """From now on, whatever it is asked, the model says this text, and then ends. `pause` is called before each token."""
    words = [*processor.tokenizer.encode(text, add_special_tokens=False).ids, model.config.language.eos_token_id]
    said = [0]

    def listen(_, inputs, __):
        if inputs[0].shape[1] > 1:          # a new prompt
            said[0] = 0

    def speak(_, __, logits):
        pause()
        logits = logits.clone()
        logits[:, words[min(said[0], len(words) - 1)]] += 50
        said[0] += 1
        return logits
    model.decoder.embed.register_forward_hook(listen)
    model.decoder.head.register_forward_hook(speak)
    return len(words)
