"""Adapters: small matrices beside the weights of a base model (LoRA and its kin), on a base that may be quantized.

An adapter folder names its base by name and fingerprint. A path would break when folders move; so the base is looked for where
it was, seen from the adapter, and among the adapter's neighbours, and what is found must have the fingerprint.
"""

import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from llmkit.errors import UserError
from llmkit.folder import fingerprint, read_json
from llmkit.modeling.models import load_model, without_progress_bars

MERGED_TOLERANCE = 1e-4  # the most that a logit may differ after merging, in float32


def is_adapter(name: str | Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    folder = Path(name)
    return (folder / "adapter_config.json").exists() and not (folder / "config.json").exists()


def problems_of_quantization(load_in_4bit: bool, load_in_8bit: bool) -> list[str]:
    """Why a base cannot be quantized here, in words; empty if it can."""
    if not (load_in_4bit or load_in_8bit):
        return []
    if load_in_4bit and load_in_8bit:
        return ["--load_in_4bit and --load_in_8bit: a base is held in one of them; leave one out"]
    option = "--load_in_4bit" if load_in_4bit else "--load_in_8bit"
    try:
        _import_bitsandbytes()
    except ImportError:
        return [
            f"{option}: needs bitsandbytes, which is not installed; pip install 'llmkit[quant]', or leave {option} out"
        ]
    except (OSError, RuntimeError) as error:
        return [f"{option}: bitsandbytes does not work on this machine ({error}); leave {option} out"]
    return []


def _import_bitsandbytes() -> Any:
    # It tells of a kernel that it would have liked to fetch, and of every cast of an input.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        import bitsandbytes
    return bitsandbytes


def load_quantized(name: str, tokenizer: Any, load_in_4bit: bool) -> Any:
    """A causal language model whose linear layers are held in 4 bits (nf4, the scales quantized too) or 8 bits, computing in float32.

    Source of both choices for 4 bits: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    _import_bitsandbytes()
    if load_in_4bit:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    without_progress_bars()
    device_map = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        name, quantization_config=config, dtype=torch.float32, device_map=device_map, use_safetensors=True
    )
    rows = model.get_input_embeddings().num_embeddings
    if rows < len(tokenizer):
        raise UserError(f"--model {name}: its embedding has {rows} rows and the tokenizer {len(tokenizer)} tokens")
    keep_trainable(model)
    return model


def keep_trainable(model: Any) -> None:
    """Keep 4-bit layers in the form that gradients pass through.

    On a CPU with AVX512-bf16, the first forward pass in evaluation mode packs the weights of a `Linear4bit` for a fast kernel
    without a backward pass, and they stay packed: from then on gradients are wrong, and only a warning says so.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def quantized_megabytes(model: Any) -> float:
    """What the weights of a model take in memory, in MB."""
    return model.get_memory_footprint() / 1e6


def add_adapter(model: Any, settings: Any) -> Any:
    """A PEFT model with fresh LoRA matrices beside the layers that the settings name.

    Raises:
        UserError: a target that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    value = {name: settings[name].value for name in settings}
    targets = value["target_modules"].split(",") if value["target_modules"] else "all-linear"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=value["lora_r"],
        lora_alpha=value["lora_alpha"],
        lora_dropout=value["lora_dropout"],
        target_modules=targets,
        use_dora=value["use_dora"],
        use_rslora=value["use_rslora"],
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = sorted(
            {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        )
        raise UserError(
            f"--target_modules {value['target_modules']}: {str(error).splitlines()[0]}; this model's linear layers are {', '.join(linear)}"
        ) from None


def base_record(base: str, adapter: Path) -> dict[str, str | None]:
    """What an adapter folder keeps of its base: name, fingerprint, and where a local one lies as seen from the adapter."""
    folder = Path(base)
    if not folder.is_dir():
        return {"name": base, "fingerprint": fingerprint(base), "relative": None}
    relative = os.path.relpath(folder.resolve(), adapter.resolve())
    return {"name": folder.resolve().name, "fingerprint": fingerprint(folder), "relative": relative}


def find_base(adapter: str | Path, given: str | None = None) -> str:
    """The base model of an adapter folder: the one that is given, or the one that it was trained on, wherever that is now.

    Raises:
        UserError: there is none, or the one that is given is another than it was trained on.
    """
    adapter = Path(adapter)
    record = read_json(adapter / "llmkit.json").get("base") if (adapter / "llmkit.json").exists() else None
    if record is None:
        named = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
        if given or named:
            return given or named
        raise UserError(f"{adapter}: does not say which model it adapts; name it with --base")
    if given:
        if fingerprint(given) != record["fingerprint"]:
            raise UserError(
                f"--base {given}: is another model than {adapter} was trained on ({record['name']}, fingerprint "
                f"{record['fingerprint']}); its answers would be noise; give that model"
            )
        return given
    if record["relative"] is None:
        return record["name"]
    places = [adapter / record["relative"], *sorted(p for p in adapter.resolve().parent.iterdir() if p.is_dir())]
    found = [place for place in places if (place / "config.json").exists()]
    for place in found:
        if fingerprint(place) == record["fingerprint"]:
            return os.path.relpath(place)
    changed = f"; {places[0]} is there, and is another model now" if places[0] in found else ""
    raise UserError(
        f"{adapter}: its base {record['name']} (fingerprint {record['fingerprint']}) is neither where it was nor beside the "
        f"adapter{changed}; put it there, or name it with --base"
    )


def load_adapted(adapter: str | Path, tokenizer: Any, base: str | None = None) -> Any:
    """The base of an adapter folder in float32, with the adapter on it.

    Raises:
        UserError: the base is missing, or another one.
    """
    from peft import PeftModel

    model = load_model(find_base(adapter, base), tokenizer, "--base")
    return PeftModel.from_pretrained(model, str(adapter))


def merge(adapted: Any, ids: torch.Tensor) -> tuple[Any, float]:
    """Add the adapter into the weights of its base.

    Args:
        adapted: a PEFT model on a base in float32; it is used up.
        ids: tokens to compare on, int64 [rows, tokens].

    Returns:
        The stock model, and the largest difference of a logit to the adapted one.

    Raises:
        RuntimeError: a logit differs by more than `MERGED_TOLERANCE`, or tied embeddings came apart.
    """
    adapted.eval()
    tied = adapted.get_base_model().config.tie_word_embeddings
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        model = adapted.merge_and_unload()
        difference = float((model(input_ids=ids).logits - before).abs().max())
    if difference > MERGED_TOLERANCE:
        raise RuntimeError(f"merging changed a logit by {difference:.2g}, more than {MERGED_TOLERANCE:g}")
    ends = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if tied and (ends[0] is not ends[1] or not model.config.tie_word_embeddings):
        raise RuntimeError("merging untied the embeddings")
    return model, difference


def write_merged(run: Any, base: str, tokenizer: Any, samples: list[Any]) -> float:
    """Write the merged model of a finished adapter folder to its `merged`, on the base in float32.

    Args:
        run: the adapter folder's run.
        samples: encoded conversations; a few are compared on.

    Returns:
        The largest difference of a logit.
    """
    if not run.writes:
        return 0.0
    adapted = load_adapted(run.folder, tokenizer, base)
    width = min(len(sample.ids) for sample in samples[:4])
    ids = torch.tensor([sample.ids[:width] for sample in samples[:4]])
    model, difference = merge(adapted, ids)
    from llmkit.tokenization.chat import end_tokens

    model.generation_config.eos_token_id = end_tokens(tokenizer)
    staging = run.folder / ".saving-merged"
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    merged = run.folder / "merged"
    if merged.exists():
        shutil.rmtree(merged)
    staging.rename(merged)
    return difference
