"""Train a byte-level BPE tokenizer on a text.

    accelerate launch recipes/train_tokenizer.py --data my_texts/ --vocab_size 4096

writes runs/tokenizer, which `recipes/pretrain_gpt.py --tokenizer runs/tokenizer` and `AutoTokenizer` load.
"""

import time
from dataclasses import dataclass, field

from llmkit.errors import refuse, run
from llmkit.options import parse_options


@dataclass
class TokenizerOptions:
    data: str | None = field(
        default=None, metadata={"help": "File, folder or Hub dataset id; None: the bundled corpus."}
    )
    text_column: str | None = field(
        default=None, metadata={"help": "Column of the text, where its name does not say so."}
    )
    validation_data: str | None = field(default=None, metadata={"help": "Held-out text of its own."})
    validation_fraction: float | None = field(
        default=None, metadata={"help": "Share of documents held out; None: by size."}
    )
    split_seed: int = field(default=0, metadata={"help": "Another seed holds out other documents."})
    vocab_size: int | None = field(
        default=None, metadata={"help": "Tokens in all, 260 (plain bytes) or more; None: by the text's size."}
    )
    output_dir: str = field(default="runs/tokenizer", metadata={"help": "The folder to write."})
    overwrite: bool = field(default=False, metadata={"help": "Delete a run of other options in output_dir."})


def main() -> None:
    options, _, settings = parse_options(TokenizerOptions, description=__doc__)

    from llmkit.data.packing import encode_texts, sample_of
    from llmkit.data.sources import open_source
    from llmkit.data.splits import problems_of, split
    from llmkit.folder import Run
    from llmkit.tokenization.bpe import SAMPLE_BYTES, tokenizer_for

    source = open_source(options.data, options.text_column)
    validation = (
        open_source(options.validation_data, options.text_column, "--validation_data")
        if options.validation_data
        else None
    )
    inputs = {"data": source.fingerprint, "validation_data": validation and validation.fingerprint}
    folder = Run.start("train_tokenizer", settings, inputs, options.overwrite)
    if folder.finished:
        print(f"{folder.folder} is finished; --overwrite makes it again")
        return
    sides = split(source, validation, options.validation_fraction, options.split_seed)
    refuse(problems_of(sides))
    folder.save(data={"name": source.name, **sides.counts()})

    started = time.perf_counter()
    tokenizer = tokenizer_for(sides, settings)
    train_seconds = time.perf_counter() - started

    held_out = list(sample_of(sides.validation(), sides.validation_bytes, SAMPLE_BYTES))
    held_out_bytes = sum(len(text.encode()) for text in held_out)
    started = time.perf_counter()
    tokens = sum(len(ids) for batch in encode_texts(held_out, tokenizer) for ids in batch)
    metrics = {
        "vocab_size": len(tokenizer),
        "bytes_per_token": held_out_bytes / tokens,
        "bytes_per_token_n": held_out_bytes,
        "train_megabytes_per_second": min(sides.train_bytes, SAMPLE_BYTES) / train_seconds / 1e6,
        "encode_megabytes_per_second": held_out_bytes / (time.perf_counter() - started) / 1e6,
    }
    folder.save_model(None, tokenizer)
    folder.finish(metrics)
    print(f"{metrics['vocab_size']} tokens, {metrics['bytes_per_token']:.2f} bytes per token of held-out text")
    print(
        f"trained at {metrics['train_megabytes_per_second']:.1f} MB/s, encodes {metrics['encode_megabytes_per_second']:.1f} MB/s"
    )
    data = f" --data {options.data}" if options.data else ""
    print(f"wrote {folder.folder}; next: accelerate launch recipes/pretrain_gpt.py{data} --tokenizer {folder.folder}")


if __name__ == "__main__":
    run(main)
