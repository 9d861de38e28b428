"""Train a byte-level BPE tokenizer on a text.

    accelerate launch recipes/train_tokenizer.py --data my_texts/ --vocab_size 4096
    accelerate launch recipes/train_tokenizer.py --conversations tutor

writes runs/tokenizer, which `recipes/pretrain_gpt.py --tokenizer runs/tokenizer` and `AutoTokenizer` load.
"""

import time
from dataclasses import dataclass

from llmkit.data.text import Text, TextOptions
from llmkit.errors import noting, refuse, run
from llmkit.options import option, parse_options


@dataclass
class TokenizerOptions(TextOptions):
    vocab_size: int | None = option(None, "Tokens in all, 260 (plain bytes) or more; None: by the size of the text.")
    conversations: str | None = option(
        None, "Rows that the model will be taught to talk like; 'tutor': the bundled ones."
    )
    output_dir: str = option("runs/tokenizer", "The folder to write.")
    overwrite: bool = option(False, "Delete a run of other options in output_dir.")


def main() -> None:
    options, _, settings = parse_options(TokenizerOptions, description=__doc__)

    from llmkit.data.conversations import said_in
    from llmkit.data.packing import encode_texts, sample_of
    from llmkit.folder import Run
    from llmkit.tokenization.bpe import SAMPLE_BYTES, tokenizer_for

    problems: list[str] = []
    with noting(problems):
        text = Text.open(options)
    with noting(problems):
        conversations = said_in(options.conversations)
    refuse(problems)
    folder = Run.start("train_tokenizer", settings, text.fingerprints | conversations.fingerprints, options.overwrite)
    if folder.finished:
        print(f"{folder.folder} is finished; --overwrite makes it again")
        return
    sides = text.usable_split()

    started = time.perf_counter()
    tokenizer = tokenizer_for(sides, settings, conversations.texts)
    train_seconds = time.perf_counter() - started
    folder.save(data={"name": text.source.name, **sides.counts()})
    folder.save_model(None, tokenizer)

    held_out = list(sample_of(sides.validation(), sides.validation_bytes, SAMPLE_BYTES))
    held_out_bytes = sum(len(document.encode()) for document in held_out)
    started = time.perf_counter()
    tokens = sum(len(ids) for batch in encode_texts(held_out, tokenizer) for ids in batch)
    encode_seconds = time.perf_counter() - started
    metrics = {
        "vocab_size": len(tokenizer),
        "bytes_per_token": held_out_bytes / tokens,
        "bytes_per_token_n": held_out_bytes,
        "train_megabytes_per_second": min(sides.train_bytes, SAMPLE_BYTES) / train_seconds / 1e6,
        "encode_megabytes_per_second": held_out_bytes / encode_seconds / 1e6,
    }
    folder.finish(metrics)
    print(f"{metrics['vocab_size']:,} tokens, {metrics['bytes_per_token']:.2f} bytes per token of held-out text")
    print(
        "trained at {train_megabytes_per_second:.1f} MB/s, encodes {encode_megabytes_per_second:.1f} MB/s".format(
            **metrics
        )
    )
    data = f" --data {options.data}" if options.data else ""
    print(f"wrote {folder.folder}; next: accelerate launch recipes/pretrain_gpt.py{data} --tokenizer {folder.folder}")


if __name__ == "__main__":
    run(main)
