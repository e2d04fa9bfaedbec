"""Published checkpoints, read and written, and nothing tolerated that does not fit.

Lesson   lessons/11_the_real_weights.ipynb
Tests    tests/test_weights.py, tests/test_goldens.py

    config.json  processor_config.json  tokenizer.json  model.safetensors (or several, with model.safetensors.index.json)

safetensors files hold numbers and nothing that could be executed. They are memory-mapped: a tensor already in the
wanted dtype is not read at all until the model touches it, and never exists twice. What is packed while loading (see
packed.py) is read matrix by matrix instead, and forgotten: only packed does the whole model ever exist.

A quantised model is saved with the same names, but for `weight`, which is `weight_int8` or `weight_int4` and `scale`, and
but for the two first matrices of an expert, which are one, `gate_up`; its config.json says so under `quantization`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from minivl2 import conversation as talk
from minivl2 import quantize as quantization
from minivl2.config import Config
from minivl2.files import written_whole
from minivl2.model import DeepSeekVL2, NothingDrawn, build
from minivl2.names import UNUSED, mismatches, published_name, published_names, unused_names
from minivl2.packed import GROUP, aligned, in_order, layout, out_of_order, own_pages
from minivl2.processor import Processor, ProcessorConfig

SHARD_BYTES = 5_000_000_000
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8}
INDEX = "model.safetensors.index.json"
QUANTISED = ("weight_int8", "weight_int4", "scale")     # last parts of names, in a checkpoint saved quantised


class CheckpointError(ValueError):
    """A folder that is not a whole, fitting checkpoint. The message lists what is wrong."""


def load(
    path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
    quantize: str | None = None, pack: bool = False,
) -> tuple[DeepSeekVL2, Processor]:
    """The model and the processor of a folder in the published layout.

    In the dtype of the files (bfloat16, for the published models) and on the CPU the weights stay on the disk until
    they are touched, and take their own size of memory at most.

    quantize    "int8" or "int4": round the weights while loading, to a half or a third of the memory
    pack        lay bfloat16 weights in memory in the order that oneDNN reads fastest, before the first answer

    Raises CheckpointError, ConfigError, or ValueError for what this machine cannot do.
    """
    if quantize not in (None, "int8", "int4"):
        raise ValueError(f"quantize cannot be {quantize!r}; it is int8 or int4")
    folder = Path(path)
    config, processor = _read_small_files(folder)
    saved = _saved_quantised(folder)
    bits = saved.get("bits") or {None: 16 if pack else None, "int8": 8, "int4": 4}[quantize]
    if saved and (pack or quantize not in (None, f"int{bits}")):
        raise ValueError(f"{folder} holds weights of {bits} bits already: load it without quantize and pack")
    if bits:
        quantization.check(bits, dtype, device)
    model, names = _empty(config, bits if saved else None)
    files = _weight_files(folder)
    shapes = read_shapes(files)
    problems = mismatches(names, shapes)
    if problems:
        raise CheckpointError(_report(folder, problems))
    takers = quantization.prepare(model, bits) if bits and not saved else {}
    ours = {published_name(name): name for name in [*model.state_dict(), *takers]}
    state = {}
    unmapped = {name for name, our in ours.items() if our in takers}
    tensors = read_tensors(files, unmapped)
    bar = tqdm(tensors, total=len(shapes), desc=f"loading {folder.name}", delay=2, mininterval=0.5, leave=False)
    for name, tensor in bar:
        if saved and name.rpartition(".")[2] in QUANTISED:
            state[ours[name]] = aligned(_reordered(tensor, saved) if name.endswith("int4") else tensor)
        elif not tensor.is_floating_point():
            raise CheckpointError(f"{folder}: {name} holds {tensor.dtype}; weights are floating-point numbers")
        elif name in unmapped:
            taker, part = takers[ours[name]]
            taker.take(part, tensor.to(dtype) if bits == 16 else tensor)
        elif name.startswith(UNUSED):
            model.unused[name] = tensor
        elif name.endswith("e_score_correction_bias"):          # steps of 0.001 are lost in bfloat16
            state[ours[name]] = tensor.to(device, torch.promote_types(dtype, torch.float32))
        else:
            state[ours[name]] = tensor.to(device, dtype)
    packed = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    model.load_state_dict(packed | state, strict=True, assign=True)
    return model.eval(), processor


def _empty(config: Config, bits: int | None) -> tuple[DeepSeekVL2, dict[str, tuple[int, ...]]]:
    """A model without numbers, and what a checkpoint of it holds. bits: of a checkpoint saved quantised."""
    with torch.device("meta"), NothingDrawn():
        model = build(config)
    if bits:
        quantization.prepare(model, bits)
    return model, published_names(model)


def _saved_quantised(folder: Path) -> dict:
    """What config.json says of how the weights were quantised before they were saved; {}: they were not."""
    saved = _read_json(folder / "config.json").get("quantization") or {}
    if saved and (saved.get("bits") not in (4, 8) or saved.get("group", GROUP) != GROUP):
        raise CheckpointError(f"{folder} is quantised in a way that minivl2 does not know: {saved}")
    return saved


def _reordered(packed: Tensor, saved: dict) -> Tensor:
    """Numbers of 4 bits lie in the order of the processor they were saved on; here another may be wanted."""
    theirs, wanted = tuple(saved["layout"]), layout()
    if theirs == wanted:
        return packed
    return in_order(out_of_order(packed, theirs).T.to(torch.uint8), wanted)


def save(model: DeepSeekVL2, processor: Processor, path: str | Path) -> None:
    """Write the published layout. The folder is whole afterwards, or as it was before."""
    if model.bits == 16:
        raise ValueError("these weights are packed for this machine only: load the model without pack to save it")
    folder = Path(path)
    with written_whole(folder) as staged:
        written = write_checkpoint(model, processor, staged)
    for old in {*folder.glob("*.safetensors"), folder / INDEX}:     # of what was here before; load would read them
        if old.name not in written:
            old.unlink(missing_ok=True)


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def write_checkpoint(
    model: DeepSeekVL2, processor: Processor, folder: Path,
    numbers: Callable[[Tensor], Tensor] = as_it_is, most: int | None = None,
) -> set[str]:
    """The files of the published layout, into an empty folder. Returns their names.

    numbers    what to write for each of the model's tensors; asked for the tensors of one file at a time
    most       bytes in a file
    """
    tensors = {published_name(name): t for name, t in model.state_dict().items()}
    dtype = model.image_newline.dtype
    for name, shape in unused_names(model.config.vision).items():
        # Readers that build the pooling head want to find it. If this model never had one, zeros will do: it is not run.
        tensors[name] = model.unused.get(name, torch.zeros(shape, dtype=dtype))
    shards = _shards(tensors, most or SHARD_BYTES)
    for file, names in shards.items():
        save_file({name: numbers(tensors[name]) for name in names}, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        _write_json(folder / INDEX, {
            "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
            "weight_map": {name: file for file, names in shards.items() for name in names}})
    about = {"torch_dtype": str(dtype).removeprefix("torch.")}
    if model.bits:
        about["quantization"] = quantization.description(model.bits)
    _write_json(folder / "config.json", model.config.to_dict() | about)
    _write_json(folder / "processor_config.json", processor.config.to_dict())
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizerFast", "bos_token": talk.BEGIN, "eos_token": talk.END, "pad_token": talk.PAD,
        "add_bos_token": False, "add_eos_token": False,
        "model_max_length": model.config.language.max_position_embeddings})
    processor.tokenizer.save(str(folder / "tokenizer.json"))
    return {file.name for file in folder.iterdir()}


def verify(path: str | Path) -> list[str]:
    """All that is wrong with a checkpoint, a line each: missing, extra and misshapen tensors, and numbers that are not."""
    folder = Path(path)
    config, _ = _read_small_files(folder)
    _, names = _empty(config, _saved_quantised(folder).get("bits"))
    files = _weight_files(folder)
    shapes = read_shapes(files)
    problems = mismatches(names, shapes)
    bar = tqdm(read_tensors(files), total=len(shapes), desc="reading every number", mininterval=0.5, leave=False)
    for name, tensor in bar:
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            problems.append(f"{name}: {bad} of {tensor.numel()} numbers are infinite or not a number")
    return problems


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, from the files' headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with _opened(file) as handle:
            for name in handle.keys():      # noqa: SIM118  (the handle is not a dictionary)
                if name in shapes:
                    raise CheckpointError(f"{file.parent}: {name} is in two files")
                shapes[name] = tuple(handle.get_slice(name).get_shape())
    return shapes


def read_tensors(files: Sequence[Path], unmapped: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """All tensors, memory-mapped: a file's pages are let go when none of its tensors is in use any more.

    Those called `unmapped` are read into memory of their own, to be let go one by one. (The library would map, too, but
    touch every tensor: of a file that is not in memory yet, that fetches the beginning of each.)
    """
    for file in files:
        with _opened(file) as handle, open(file, "rb") as plain:
            start = 8 + int.from_bytes(plain.read(8), "little")
            header = json.loads(plain.read(start - 8))
            pages = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
            for name in handle.keys():      # noqa: SIM118
                dtype, (first, end) = DTYPES.get(header[name]["dtype"]), header[name]["data_offsets"]
                if dtype is None or (start + first) % dtype.itemsize:       # none of ours, but it may be somebody's
                    yield name, handle.get_tensor(name)
                    continue
                raw = pages[start + first:start + end]
                if name in unmapped:
                    raw = own_pages(len(raw))
                    plain.seek(start + first)
                    plain.readinto(memoryview(raw.numpy()))
                yield name, raw.view(dtype).view(header[name]["shape"])


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or cut short ({error}). Fetch it again.") from None


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or the only ones there are."""
    if (folder / INDEX).exists():
        index = _read_json(folder / INDEX)
        try:
            names = sorted(set(index["weight_map"].values()))
        except (KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{folder / INDEX} has no weight_map") from None
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise CheckpointError(f"{folder / INDEX} names files outside the folder: {outside[0]}")
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{folder} holds no *.safetensors file")
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}: the download is not complete")
    return files


def _read_small_files(folder: Path) -> tuple[Config, Processor]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. A checkpoint is one, with config.json and *.safetensors in it.")
    for name in ("config.json", "processor_config.json", "tokenizer.json"):
        if not (folder / name).exists():
            raise CheckpointError(f"{folder} is not a DeepSeek-VL2 checkpoint: it has no {name}")
    config = Config.from_file(folder)
    try:
        processor_config = ProcessorConfig.from_file(folder / "processor_config.json")
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'processor_config.json'} cannot be read: {error}") from None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:      # the tokenizers library raises Exception itself
        raise CheckpointError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
    try:
        processor = Processor(tokenizer, processor_config)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    if (processor_config.tile, processor_config.side) != (config.vision.image_size, config.tokens_per_side):
        raise CheckpointError(
            f"{folder}: the processor cuts tiles of {processor_config.tile} pixels, {processor_config.side} tokens a side, "
            f"but the model sees {config.vision.image_size} pixels and makes {config.tokens_per_side} tokens")
    largest = max(processor.special_ids.values())
    if largest >= config.language.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer's special tokens go up to {largest}, "
            f"but the model knows {config.language.vocab_size} tokens")
    return config, processor


def _shards(tensors: dict[str, Tensor], most: int) -> dict[str, list[str]]:
    """Which names go into which file: files of at most so many bytes, named as published."""
    parts: list[list[str]] = [[]]
    size = 0
    for name in sorted(tensors):
        if size + tensors[name].nbytes > most and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += tensors[name].nbytes
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{i:05}-of-{len(parts):06}.safetensors": part for i, part in enumerate(parts, 1)}


def _report(folder: Path, problems: list[str]) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:10])
    more = f"\n  ... and {len(problems) - 10} more (minivl2 verify lists them all)" if len(problems) > 10 else ""
    return f"{folder} does not fit its own configuration:\n{shown}{more}"


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
