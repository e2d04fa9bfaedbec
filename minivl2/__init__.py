"""minivl2: DeepSeek-VL2 from scratch, in readable PyTorch.

Read the files in the order in which data flows:

    config  tiling  images  conversation  processor  batch      what goes in
    vision  projector  visual_tokens                            a picture becomes tokens
    rope  cache  attention  experts  decoder  model             tokens become the next token's probabilities
    generation  grounding                                       answers, and boxes in them
    places  record  figures  panels  xray  play                 what happens inside an answer, to be looked at
    names  weights  files  compare  cost  cli                   published checkpoints, and what they cost
    packed  quantize                                            the same in fewer bits
    roofline  bench  afresh  stand_in  peer                     how fast, beside how fast it could be
    toyworld  training                                          a world to learn from, and the learning
    grading                                                     your code in the place of ours, under our tests
"""

from minivl2 import grounding, tiling
from minivl2.batch import Batch
from minivl2.config import Config
from minivl2.generation import answer_each, generate, stream
from minivl2.model import DeepSeekVL2, build
from minivl2.names import published_names
from minivl2.processor import Processor
from minivl2.weights import load, save, verify

__version__ = "0.1.0"
__all__ = [
    "Batch", "Config", "DeepSeekVL2", "Processor", "answer_each", "build", "generate", "grounding", "load",
    "published_names", "save", "stream", "tiling", "verify",
]
