"""Tiny models of several architectures, with random weights: a file of half a megabyte each.

They say nothing that anybody would read, but they compute as the large ones do: with a sliding
window, with a recurrent state, with weights of another type. Written with the package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, LAYERS, VOCABULARY, CONTEXT = 64, 2, 300, 2048
HEADS, KV_HEADS, HEAD, FORWARD = 4, 2, 16, 128
INNER, STATE, RANK, KERNEL = 128, 16, 4, 4
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

Tensor = Callable[..., None]


def write(path: Path, arch: str, half: bool = False) -> str:
    """Write a model of this architecture, its matrices in F16 when half; returns its path."""
    writer: Any = gguf.GGUFWriter(str(path), arch)
    writer.add_name(f"tiny {arch}")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_rms_eps(1e-5)
    _tokenizer(writer)
    random = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        kind = np.float16 if half and len(shape) > 1 else np.float32
        writer.add_tensor(name, (random.standard_normal(shape) * 0.3).astype(kind))

    tensor("token_embd.weight", VOCABULARY, WIDTH)
    tensor("output_norm.weight", WIDTH)
    if not arch.startswith("gemma"):
        tensor("output.weight", VOCABULARY, WIDTH)
    if arch == "mamba":
        _recurrent(writer, tensor, random)
    else:
        _attentive(writer, tensor, arch)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def _tokenizer(writer: Any) -> None:
    names = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    names.append("\N{LOWER ONE EIGHTH BLOCK}".encode())  # a space, to this tokenizer
    names += [b"w%d" % i for i in range(VOCABULARY - len(names))]
    kinds += [NORMAL] * (VOCABULARY - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _attentive(writer: Any, tensor: Tensor, arch: str) -> None:
    writer.add_feed_forward_length(FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    if arch == "gemma2":
        writer.add_sliding_window(64)
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        tensor(at + "attn_norm.weight", WIDTH)
        tensor(at + "attn_q.weight", HEADS * HEAD, WIDTH)
        tensor(at + "attn_k.weight", KV_HEADS * HEAD, WIDTH)
        tensor(at + "attn_v.weight", KV_HEADS * HEAD, WIDTH)
        tensor(at + "attn_output.weight", WIDTH, HEADS * HEAD)
        tensor(at + "ffn_norm.weight", WIDTH)
        tensor(at + "ffn_gate.weight", FORWARD, WIDTH)
        tensor(at + "ffn_up.weight", FORWARD, WIDTH)
        tensor(at + "ffn_down.weight", WIDTH, FORWARD)
        if arch == "gemma2":
            tensor(at + "post_attention_norm.weight", WIDTH)
            tensor(at + "post_ffw_norm.weight", WIDTH)
        if arch == "qwen2":
            for name, size in (("q", HEADS * HEAD), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD)):
                tensor(f"{at}attn_{name}.bias", size)


def _recurrent(writer: Any, tensor: Tensor, random: np.random.Generator) -> None:
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(KERNEL)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        tensor(at + "attn_norm.weight", WIDTH)
        tensor(at + "ssm_in.weight", 2 * INNER, WIDTH)
        decay = -np.abs(random.standard_normal((INNER, STATE))).astype(np.float32)
        writer.add_tensor(at + "ssm_a", decay)
        writer.add_tensor(
            at + "ssm_conv1d.weight",
            (random.standard_normal((INNER, KERNEL)) * 0.3).astype(np.float32),
        )
        tensor(at + "ssm_conv1d.bias", INNER)
        tensor(at + "ssm_x.weight", RANK + 2 * STATE, INNER)
        tensor(at + "ssm_dt.weight", INNER, RANK)
        tensor(at + "ssm_dt.bias", INNER)
        tensor(at + "ssm_d", INNER)
        tensor(at + "ssm_out.weight", WIDTH, INNER)
