"""Modules that reduce a model of transformers to tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from torch import Tensor, nn


class Text(nn.Module):
    """``(input_ids, attention_mask) -> last_hidden_state``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for two int64 [batch, sequence] inputs."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        hidden: Tensor = output.last_hidden_state
        return hidden


class CausalText(nn.Module):
    """The same for a decoder, which is told to keep no cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for two int64 [batch, sequence] inputs."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden


class UnmaskedText(nn.Module):
    """``input_ids -> last_hidden_state``: no padding mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for int64 [batch, sequence]."""
        hidden: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden


class Single(nn.Module):
    """Any model with one input, positional: images, features, waves."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: Tensor) -> Tensor:
        """Return the model's last hidden state."""
        hidden: Tensor = self.model(values).last_hidden_state
        return hidden


class PositionedText(nn.Module):
    """A decoder that is given the positions, too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for three int64 [batch, sequence] inputs."""
        hidden: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        return hidden


class UnmaskedCausalText(nn.Module):
    """A decoder called without ``attention_mask`` and told to keep no cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for int64 [batch, sequence]."""
        hidden: Tensor = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden


class TextWithAttentions(nn.Module):
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


class GlobalText(nn.Module):
    """Longformer with global tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, global_attention_mask: Tensor
    ) -> Tensor:
        """Return [batch, sequence, hidden] for three int64 [batch, sequence] inputs."""
        hidden: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
        ).last_hidden_state
        return hidden


class ResizedImage(nn.Module):
    """A vision encoder that interpolates its position table to the image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return [batch, patches, hidden] for [batch, channels, height, width]."""
        output = self.model(pixel_values, interpolate_pos_encoding=True)
        hidden: Tensor = output.last_hidden_state
        return hidden


class Wave(nn.Module):
    """An encoder of sound with padding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [batch, frames, hidden] for samples and int64 mask, both [batch, samples]."""
        output = self.model(input_values, attention_mask=attention_mask)
        hidden: Tensor = output.last_hidden_state
        return hidden


class EncoderStack(nn.Module):
    """The encoder of an encoder-decoder with one input (Whisper's features)."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, values: Tensor) -> Tensor:
        """Return [batch, rows, hidden]."""
        hidden: Tensor = self.encoder(values).last_hidden_state
        return hidden


class TextEncoderStack(nn.Module):
    """The encoder of an encoder-decoder of text."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return [batch, sequence, hidden] for two int64 [batch, sequence] inputs."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        hidden: Tensor = output.last_hidden_state
        return hidden


class MemoryDecoder(nn.Module):
    """The decoder of an encoder-decoder, given the encoder's output and its padding."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.decoder = model.get_decoder()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
    ) -> Tensor:
        """Return [batch, sequence, hidden]; the encoder's are [batch, memory(, hidden)]."""
        hidden: Tensor = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=False,
        ).last_hidden_state
        return hidden


class UnmaskedMemoryDecoder(nn.Module):
    """The same where the encoder's output has no padding (Whisper)."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.decoder = model.get_decoder()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        """Return [batch, sequence, hidden]; the encoder's are [batch, memory, hidden]."""
        hidden: Tensor = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            use_cache=False,
        ).last_hidden_state
        return hidden


class EncoderDecoder(nn.Module):
    """A whole encoder-decoder."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        encoder_input_ids: Tensor,
        encoder_attention_mask: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
    ) -> Tensor:
        """Return the decoder's [batch, sequence, hidden]."""
        hidden: Tensor = self.model(
            input_ids=encoder_input_ids,
            attention_mask=encoder_attention_mask,
            decoder_input_ids=input_ids,
            decoder_attention_mask=attention_mask,
            use_cache=False,
        ).last_hidden_state
        return hidden


class CachedText(nn.Module):
    """A decoder with a KV cache: keys and values in, keys and values out.

    Every layer keeps all keys, also where it sees only a window, as exporters flatten it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Return [batch, sequence, hidden], then each layer's keys and values.

        ``past`` is keys and values, in turn, [batch, key heads, past, head dim] a layer; the mask
        covers past and sequence.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=filled_cache(past),
            use_cache=True,
        )
        return (output.last_hidden_state, *cached(output.past_key_values))


class CachedMemoryDecoder(nn.Module):
    """A decoder whose cache also holds the keys and values of the encoder's output."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.decoder = model.get_decoder()

    def forward(
        self, input_ids: Tensor, encoder_attention_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Return [batch, sequence, hidden], then each layer's own keys and values.

        ``past`` has the layers' own keys and values as in ``CachedText``, and then those of the
        encoder's output, [batch, heads, memory, head dim], which don't change.
        """
        own = filled_cache(past[: len(past) // 2])
        memory = filled_cache(past[len(past) // 2 :])
        output = self.decoder(
            input_ids=input_ids,
            # Only its shape is looked at: the keys and values are in the cache.
            encoder_hidden_states=past[-1].transpose(1, 2).flatten(2),
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=transformers.EncoderDecoderCache(own, memory),
            use_cache=True,
        )
        return (output.last_hidden_state, *cached(output.past_key_values))


def filled_cache(past: Sequence[Tensor]) -> transformers.DynamicCache:
    """Return a cache of keys and values, given in turn."""
    cache = transformers.DynamicCache()
    for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
        cache.update(key, value, layer)
    return cache


def cached(cache: Any) -> tuple[Tensor, ...]:
    """Return a decoder's own keys and values, in turn, from the cache that it returned."""
    cache = getattr(cache, "self_attention_cache", cache)
    if isinstance(cache, tuple):  # transformers 4.46's GPT-2 and BART: the encoder's come last
        keys, values = [layer[0] for layer in cache], [layer[1] for layer in cache]
    elif hasattr(cache, "key_cache"):  # the rest of transformers 4.46
        keys, values = cache.key_cache, cache.value_cache
    else:
        keys, values = ([getattr(i, part) for i in cache.layers] for part in ("keys", "values"))
    return tuple(tensor for pair in zip(keys, values, strict=True) for tensor in pair)
