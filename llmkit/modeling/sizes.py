"""One dial: depth sets the size of a model, and everything that should grow with it."""

import math
from dataclasses import asdict, dataclass
from typing import Any

HEAD_SIZE = 64


@dataclass(frozen=True)
class Shape:
    """The shape of a Qwen3 model with tied embeddings; names as in its configuration."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    head_dim: int = HEAD_SIZE

    @property
    def parameters(self) -> int:
        """Trained parameters; the embedding, which is the output layer too, counts once."""
        return self.vocab_size * self.hidden_size + self.num_hidden_layers * self._layer + self.hidden_size

    @property
    def _layer(self) -> int:
        d, heads, groups = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        attention = d * self.head_dim * (2 * heads + 2 * groups) + 2 * self.head_dim
        return attention + 3 * d * self.intermediate_size + 2 * d

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of one training step per token: forward, and backward which costs twice as much.

        6 for each weight (Kaplan et al., "Scaling Laws for Neural Language Models", 2020) and
        12 x layers x attention width x context for attention scores (Chowdhery et al., "PaLM", 2022, appendix B);
        the causal mask is not counted as a saving.
        """
        attention = (
            12 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * self.max_position_embeddings
        )
        return 6 * self.parameters + attention

    def training_bytes(self, batch_tokens: int, autocast: bool) -> int:
        """A forecast of the memory of training: weights, gradients, optimizer state, activations and logits.

        Weights and gradients are float32; Muon keeps one number for a hidden weight and AdamW two for the others. What
        a layer keeps for the backward pass is about 16 vectors of the hidden size and 5 of the inner size per token.
        """
        embedding = self.vocab_size * self.hidden_size
        hidden = self.parameters - embedding
        states = 4 * (2 * self.parameters + hidden + 2 * embedding)
        width = 2 if autocast else 4
        activations = (
            self.num_hidden_layers * batch_tokens * (16 * self.hidden_size + 5 * self.intermediate_size) * width
        )
        logits = 3 * 4 * batch_tokens * self.vocab_size
        return states + activations + logits

    def config(self, tokenizer: Any, initializer_range: float) -> Any:
        """The stock configuration of this shape."""
        from transformers import Qwen3Config

        return Qwen3Config(
            **asdict(self),
            initializer_range=initializer_range,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )


def shape_of_depth(depth: int, vocab_size: int, context_length: int, hidden_size: int | None = None) -> Shape:
    """The shape that a depth stands for.

    - Width: 32 per layer up to 6 layers, 64 from 12 on, and between the two on a line. Small models want to be deep and
      narrow: below some 3 million parameters the embedding takes too large a share of a wide one.
    - Heads of 64; an even number of them from 5 on, so that they share keys and values.
    - The SwiGLU layer is 8/3 as wide as the model, rounded up to 64, so that its three matrices hold as many weights as
      the two of width 4 that they replace (Shazeer, "GLU Variants Improve Transformer", 2020).

    Args:
        hidden_size: a width of one's own.
    """
    if hidden_size is None:
        per_layer = min(max(32 + (depth - 6) * 32 / 6, 32), 64)
        heads = max(round(depth * per_layer / HEAD_SIZE), 1)
        hidden_size = (heads + heads % 2 if heads > 4 else heads) * HEAD_SIZE
    heads = max(hidden_size // HEAD_SIZE, 1)
    return Shape(
        num_hidden_layers=depth,
        hidden_size=hidden_size,
        intermediate_size=math.ceil(8 * hidden_size / 3 / 64) * 64,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads_for(heads),
        vocab_size=math.ceil(vocab_size / 64) * 64,
        max_position_embeddings=context_length,
        head_dim=hidden_size // heads,
    )


def key_value_heads_for(heads: int) -> int:
    """One key-value head for every 4, 3 or 2 query heads, whichever divides them first."""
    return heads // next(n for n in (4, 3, 2, 1) if heads % n == 0)


def shape_of_config(config: Any, context_length: int) -> Shape:
    """The shape of a given causal model, as far as its configuration says; parameters are then an estimate."""
    heads = config.num_attention_heads
    return Shape(
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        # GPT-2 and its kin have two matrices of four times the width, which weigh as much as three of 8/3.
        intermediate_size=getattr(config, "intermediate_size", None) or 8 * config.hidden_size // 3,
        num_attention_heads=heads,
        num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        vocab_size=config.vocab_size,
        max_position_embeddings=context_length,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
