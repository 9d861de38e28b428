"""Of the checkpoints of a run only a whole one is used: the newest whose files are all there as they were written."""

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from llmkit.training.checkpoints import newest_checkpoint, problem_of, seal


def write_checkpoint(folder, step, sealed=True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.full((8, 8), float(step))}, checkpoint / "model.safetensors")
    torch.save({"step": step}, checkpoint / "optimizer.pt")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if sealed:
        seal(checkpoint)
    return checkpoint


def truncate_weights(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def empty_a_file(checkpoint):
    (checkpoint / "optimizer.pt").write_bytes(b"")


def delete_a_file(checkpoint):
    (checkpoint / "trainer_state.json").unlink()


def delete_the_seal(checkpoint):
    (checkpoint / "manifest.json").unlink()


def halve_the_seal(checkpoint):
    file = checkpoint / "manifest.json"
    file.write_text(file.read_text()[:20])


def fill_the_seal_with_zeros(checkpoint):
    (checkpoint / "manifest.json").write_bytes(bytes(40))


def empty_the_seal(checkpoint):
    (checkpoint / "manifest.json").write_bytes(b"")


def write_a_seal_of_another_kind(checkpoint):
    (checkpoint / "manifest.json").write_text("[1, 2]\n")


def break_the_weights_header(checkpoint):
    """As many bytes as before, but none of them what they were: what a disk may give back after a power cut."""
    file = checkpoint / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)


DAMAGES = [
    (truncate_weights, ["model.safetensors", "bytes instead of"]),
    (empty_a_file, ["optimizer.pt", "0 bytes instead of"]),
    (delete_a_file, ["trainer_state.json", "missing"]),
    (delete_the_seal, ["not written to its end"]),
    (halve_the_seal, ["manifest.json", "cannot be read"]),
    (fill_the_seal_with_zeros, ["manifest.json", "cannot be read"]),
    (empty_the_seal, ["manifest.json", "cannot be read"]),
    (write_a_seal_of_another_kind, ["manifest.json", "cannot be read"]),
    (break_the_weights_header, ["model.safetensors", "cannot be read"]),
]


def test_the_newest_sealed_checkpoint_is_used_without_a_word(tmp_path):
    for step in (5, 10, 100):  # by number: as a word, 5 comes after 10 and 100
        write_checkpoint(tmp_path, step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_a_seal_lists_every_file_and_its_size(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 5)
    listed = json.loads((checkpoint / "manifest.json").read_text())
    assert listed == {file.name: file.stat().st_size for file in checkpoint.iterdir() if file.name != "manifest.json"}
    assert set(listed) == {"model.safetensors", "optimizer.pt", "trainer_state.json"}
    assert problem_of(checkpoint) is None


def test_a_checkpoint_that_is_sealed_again_is_whole(tmp_path):
    """A run that goes on from an earlier checkpoint writes the later ones once more into the same folders."""
    checkpoint = write_checkpoint(tmp_path, 5)
    (checkpoint / "optimizer.pt").write_bytes(b"longer than it was" * 1000)
    assert "optimizer.pt" in problem_of(checkpoint)
    seal(checkpoint)
    assert problem_of(checkpoint) is None


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_says_why(tmp_path, damage, words):
    write_checkpoint(tmp_path, 5)
    damage(write_checkpoint(tmp_path, 10))
    with pytest.warns(UserWarning, match="passed over") as warned:
        assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    (message,) = [str(warning.message) for warning in warned]
    assert "checkpoint-10" in message
    assert all(word in message for word in words)


def test_every_damaged_checkpoint_is_named(tmp_path):
    write_checkpoint(tmp_path, 5)
    write_checkpoint(tmp_path, 10, sealed=False)
    truncate_weights(write_checkpoint(tmp_path, 15))
    with pytest.warns(UserWarning, match="passed over") as warned:
        assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert ["checkpoint-15" in str(warned[0].message), "checkpoint-10" in str(warned[1].message)] == [True, True]


def test_without_a_whole_checkpoint_there_is_none(tmp_path):
    write_checkpoint(tmp_path, 5, sealed=False)
    with pytest.warns(UserWarning, match="checkpoint-5"):
        assert newest_checkpoint(tmp_path) is None


def test_what_is_no_checkpoint_is_not_looked_at(tmp_path):
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "checkpoint-5.tmp").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_checkpoint(tmp_path) is None
        assert newest_checkpoint(tmp_path / "not_there") is None
