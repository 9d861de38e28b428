"""New and given causal language models, ready to be trained."""

from typing import Any

import torch

from llmkit.errors import UserError
from llmkit.modeling.sizes import Shape


def without_progress_bars() -> None:
    """Loading and saving a small model takes no time that a bar could show."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def new_model(shape: Shape, tokenizer: Any, initializer_range: float) -> Any:
    """A model of this shape with fresh weights, from torch's random state.

    The output projections of attention and SwiGLU start at zero, so that every layer starts as the identity and the first
    steps are not spent on undoing random ones (as in Zhang et al., "Fixup Initialization", 2019).
    """
    from transformers import AutoModelForCausalLM

    without_progress_bars()
    model = AutoModelForCausalLM.from_config(shape.config(tokenizer, initializer_range), attn_implementation="sdpa")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def load_config(name: str) -> Any:
    """The configuration of a model from a folder or the Hub."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name)


def load_model(name: str, tokenizer: Any, option: str = "--model") -> Any:
    """A causal language model from a folder or the Hub, in float32.

    Raises:
        UserError: it is no causal language model, or its embedding does not fit the tokenizer.
    """
    from transformers import AutoModelForCausalLM

    without_progress_bars()
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{option} {name}: cannot be loaded as a causal language model: {str(error).splitlines()[0]}"
        ) from None
    rows = model.get_input_embeddings().num_embeddings
    if rows < len(tokenizer):
        raise UserError(
            f"{option} {name}: its embedding has {rows} rows and the tokenizer {len(tokenizer)} tokens; "
            "give the model's own tokenizer"
        )
    return model


def load_tokenizer(name: str, option: str) -> Any:
    """A tokenizer from a folder or the Hub.

    Raises:
        UserError: it cannot be loaded, or has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {name}: no tokenizer can be loaded from it: {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{option} {name}: the tokenizer has no eos_token to put between documents")
    return tokenizer


LONGEST_PLAIN_CONTEXT = 1024  # above it, the scores of all pairs take more memory than their speed is worth


def choose_attention(model: Any, device: torch.device, context_length: int) -> None:
    """Compute attention by plain matrix products on a CPU, by the fused kernel elsewhere and for a long context.

    The fused kernel's backward pass on a CPU takes a third of a training step at short contexts (3.4 ms for a layer of
    12 x 64 tokens in 4 heads, on 2 cores); with plain products the compiler makes few loops of them: 28 ms instead of 38
    forward and backward at 0.9 M parameters and context 64, 345 instead of 467 at 10 M and context 512.
    """
    plain = device.type == "cpu" and context_length <= LONGEST_PLAIN_CONTEXT
    model.set_attn_implementation("eager" if plain else "sdpa")


def compile_layers(model: torch.nn.Module) -> None:
    """Compile every repeated layer in place.

    One layer is compiled and serves them all, names and weights of the model stay as they are. Compiling the whole model
    gains little more and takes longer.
    """
    repeated = set(model._no_split_modules or [])
    for module in model.modules():
        if type(module).__name__ in repeated:
            module.compile()
