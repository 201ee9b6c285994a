"""The PyTorch modules that ``export_test_models.py`` exports, with random weights.

Two kinds: small Hugging Face models, and single attention layers written by hand with masks that
the former do not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 128
POSITIONS = 128
HIDDEN = 64
HEADS = 2
LAYERS = 2
# transformers keeps |q - k| <= local_attention // 2.
LOCAL_ATTENTION = 16


class TextModel(nn.Module):
    """A Hugging Face model reduced to ``(input_ids, attention_mask) -> last_hidden_state``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for two int64 [batch, sequence] inputs."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        hidden: Tensor = output.last_hidden_state
        return hidden


class UnmaskedTextModel(nn.Module):
    """A Hugging Face model called without ``attention_mask``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for int64 [batch, sequence]."""
        hidden: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden


class TextModelWithAttentions(nn.Module):
    """Also returns the softmax probabilities, so attention may not be fused away."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Return [batch, sequence, hidden], then one [batch, heads, sequence, sequence] a layer."""
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, output_attentions=True
        )
        return (output.last_hidden_state, *output.attentions)


class BigBirdTextModel(nn.Module):
    """A model whose attention is limited to a constant mask, as BigBird's users write it."""

    def __init__(self, model: nn.Module, keep: Tensor, implementation: str) -> None:
        super().__init__()
        self.model = model
        self.implementation = implementation
        self.register_buffer("keep", keep[None, None])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for two int64 [batch, sequence] inputs."""
        sequence = input_ids.shape[1]
        padding = attention_mask[:, None, None, :].to(torch.bool)
        mask = self.get_buffer("keep")[:, :, :sequence, :sequence] & padding
        if self.implementation == "eager":
            # transformers adds a 4-D mask to the scores as it is, so eager needs the float form.
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        output = self.model(input_ids=input_ids, attention_mask=mask)
        hidden: Tensor = output.last_hidden_state
        return hidden


class AttentionLayer(nn.Module):
    """One multi-head attention with its projections, written as most people write it."""

    def __init__(self, hidden: int = HIDDEN, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = hidden // heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)

    def split_heads(self, projected: Tensor) -> Tensor:
        """[B, S, H*D] -> [B, H, S, D]."""
        batch, length, _ = projected.shape
        return projected.view(batch, length, self.heads, self.head_dim).transpose(1, 2)

    def forward(self, hidden: Tensor, memory: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, Sq, E], [B, Sk, E] and bool ``keep``, [B, H, Sq, Sk] or less -> [B, Sq, E]."""
        context_BHSD = nn.functional.scaled_dot_product_attention(
            self.split_heads(self.query(hidden)),
            self.split_heads(self.key(memory)),
            self.split_heads(self.value(memory)),
            attn_mask=keep,
        )
        attended: Tensor = self.output(context_BHSD.transpose(1, 2).flatten(2))
        return attended


class WindowAttention(nn.Module):
    """Self-attention in a sliding window that is computed from the positions."""

    def __init__(self, window: int, causal: bool) -> None:
        super().__init__()
        self.attention = AttentionLayer()
        self.window = window
        self.causal = causal

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for [batch, sequence, hidden]."""
        position = torch.arange(hidden.shape[1])
        query, key = position[:, None], position[None, :]
        if self.causal:
            keep = (query >= key) & (query - key < self.window)
        else:
            keep = (query - key).abs() <= self.window
        attended: Tensor = self.attention(hidden, hidden, keep)
        return attended


class CrossAttention(nn.Module):
    """Attention from a sequence to a whole memory of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = AttentionLayer()

    def forward(self, hidden: Tensor, memory: Tensor) -> Tensor:
        """[B, Sq, E] and [B, Sk, E] -> [B, Sq, E]."""
        attended: Tensor = self.attention(hidden, memory)
        return attended


class PaddedCrossAttention(nn.Module):
    """Attention from a sequence to a padded memory of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = AttentionLayer()

    def forward(self, hidden: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """[B, Sq, E], [B, Sk, E] and int64 [B, Sk] -> [B, Sq, E]."""
        keep = memory_mask[:, None, None, :].to(torch.bool)
        attended: Tensor = self.attention(hidden, memory, keep)
        return attended


class CausalMemoryAttention(nn.Module):
    """The memory ends with the sequence itself: the last query sees the last key."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = AttentionLayer()

    def forward(self, hidden: Tensor, memory: Tensor) -> Tensor:
        """[B, Sq, E] and [B, Sk, E], Sk >= Sq -> [B, Sq, E]."""
        past = memory.shape[1] - hidden.shape[1]
        query = torch.arange(hidden.shape[1])[:, None] + past
        key = torch.arange(memory.shape[1])[None, :]
        attended: Tensor = self.attention(hidden, memory, key <= query)
        return attended


class Perceptron(nn.Module):
    """No attention at all: nothing to find."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(HIDDEN),
            nn.Linear(HIDDEN, 2 * HIDDEN),
            nn.GELU(),
            nn.Linear(2 * HIDDEN, HIDDEN),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for [batch, sequence, hidden]."""
        transformed: Tensor = hidden + self.layers(hidden)
        return transformed


def bigbird_keep(
    positions: int, *, window: int, global_tokens: int, block: int, density: float, seed: int
) -> Tensor:
    """BigBird's pattern (arXiv 2007.14062, section 2) as bool [positions, positions].

    A window ``|q - k| <= window``, the first ``global_tokens`` rows and columns, and random
    ``block`` x ``block`` blocks kept with probability ``density``.
    """
    index = np.arange(positions)
    query, key = index[:, None], index[None, :]
    blocks = -(-positions // block)
    random_blocks = np.random.default_rng(seed).random((blocks, blocks)) < density
    keep = np.abs(query - key) <= window
    keep |= (query < global_tokens) | (key < global_tokens)
    keep |= random_blocks[query // block, key // block]
    return torch.from_numpy(keep)


def bigbird_block_keep(positions: int, *, block: int, density: float, seed: int) -> Tensor:
    """BigBird in whole blocks: a window of one block each side and one global block."""
    coarse = bigbird_keep(
        positions // block, window=1, global_tokens=1, block=1, density=density, seed=seed
    )
    return coarse.repeat_interleave(block, 0).repeat_interleave(block, 1)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give each parameter random values that make a wrong mask visible in the output.

    transformers starts with biases 0, norms 1 and near-uniform attention: exporters would fold or
    share the former, and the latter would hide an error in a mask.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                is_norm_weight = name.endswith("weight")
                parameter.copy_(0.1 * noise + (1.0 if is_norm_weight else 0.0))
            elif "embedding" in name or name.split(".")[-2] in {"wte", "wpe"}:
                parameter.copy_(noise)
            else:
                # 1.6 / sqrt(inputs): scores of unit-variance rows have a deviation of about 2.5.
                parameter.copy_(1.6 * noise / min(parameter.shape) ** 0.5)
    return module.eval()


@dataclass(frozen=True)
class BertSizes:
    """The sizes of a BERT."""

    vocabulary: int = VOCABULARY
    hidden: int = HIDDEN
    layers: int = LAYERS
    heads: int = HEADS
    intermediate: int = 2 * HIDDEN
    positions: int = POSITIONS


def bert(implementation: str, sizes: BertSizes = BertSizes()) -> nn.Module:
    """Build a BERT without the pooler."""
    config = transformers.BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.intermediate,
        max_position_embeddings=sizes.positions,
    )
    config._attn_implementation = implementation
    return transformers.BertModel(config, add_pooling_layer=False)


def gpt2(implementation: str) -> nn.Module:
    """Build a small GPT-2."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
        use_cache=False,
    )
    config._attn_implementation = implementation
    return transformers.GPT2Model(config)


def modernbert(implementation: str) -> nn.Module:
    """Build a small ModernBERT: layer 0 is global, layers 1 and 2 see ``|q - k| <= 8``."""
    config = transformers.ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=96,
        local_attention=LOCAL_ATTENTION,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    config._attn_implementation = implementation
    return transformers.ModernBertModel(config)


def text_model(family: str, implementation: str) -> nn.Module:
    """Build the module behind ``<family>_<implementation>_*.onnx``."""
    if family == "bert":
        return TextModel(bert(implementation))
    if family == "gpt2":
        return TextModel(gpt2(implementation))
    if family == "modernbert":
        return TextModel(modernbert(implementation))
    keep = bigbird_keep(POSITIONS, window=6, global_tokens=3, block=8, density=0.1, seed=0)
    return BigBirdTextModel(bert(implementation), keep, implementation)


def example_bert_bigbird() -> nn.Module:
    """Build the model of the examples: large enough to measure, small enough to commit."""
    sizes = BertSizes(
        vocabulary=1024, hidden=128, layers=4, heads=4, intermediate=512, positions=512
    )
    keep = bigbird_block_keep(512, block=32, density=0.1, seed=0)
    return BigBirdTextModel(bert("sdpa", sizes), keep, "sdpa")
