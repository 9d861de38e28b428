"""The model folder: files whole or not at all, and a run that starts, goes on, is finished, or is refused."""

import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
from conftest import sentences

from llmkit.errors import UserError
from llmkit.folder import Run, atomic_write, fingerprint, read_json, require_model_folder
from llmkit.options import Setting, Settings
from llmkit.tokenization.bpe import train_bpe

# ---------------------------------------------------------------------------------------------- files


@pytest.fixture
def old_file(tmp_path) -> Path:
    file = tmp_path / "card.md"
    file.write_text("old", encoding="utf-8")
    return file


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_write_that_fails_leaves_the_old_file_whole(old_file, error):
    def write_half() -> None:
        with atomic_write(old_file) as stream:
            stream.write("new, but only half")
            stream.flush()
            raise error

    with pytest.raises(error):
        write_half()
    assert old_file.read_text(encoding="utf-8") == "old"
    assert list(old_file.parent.iterdir()) == [old_file]


def test_atomic_write_replaces_at_the_end_only(old_file):
    with atomic_write(old_file) as stream:
        stream.write("né🙂")
        stream.flush()
        assert old_file.read_text(encoding="utf-8") == "old"
    assert old_file.read_bytes() == "né🙂".encode()
    assert list(old_file.parent.iterdir()) == [old_file]
    assert stat.S_IMODE(old_file.stat().st_mode) == 0o644  # readable by a server of another user


@pytest.mark.parametrize(
    ("content", "expected"), [(None, "no such file"), (b"{", "not JSON"), (b"\xff\xfe", "not JSON")]
)
def test_json_that_cannot_be_read_is_refused(tmp_path, content, expected):
    file = tmp_path / "llmkit.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=expected) as refused:
        read_json(file)
    assert str(file) in str(refused.value)


# ---------------------------------------------------------------------------------------------- fingerprints


@pytest.fixture
def model_folder(tmp_path) -> Path:
    folder = tmp_path / "gpt"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "llmkit.json"):
        (folder / name).write_text(f"content of {name}")
    return folder


def test_fingerprint_is_equal_after_moving(model_folder, tmp_path):
    before, of_file = fingerprint(model_folder), fingerprint(model_folder / "tokenizer.json")
    moved = model_folder.rename(tmp_path / "elsewhere")
    assert fingerprint(moved) == fingerprint(str(moved)) == before
    assert fingerprint(moved / "tokenizer.json") == of_file
    assert re.fullmatch("[0-9a-f]{32}", before)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_fingerprint_changes_with_what_makes_the_model(model_folder, name):
    before = fingerprint(model_folder)
    with open(model_folder / name, "a") as stream:
        stream.write("!")
    assert fingerprint(model_folder) != before


def test_fingerprint_is_of_each_file_by_itself(model_folder):
    """Two files that have swapped contents are another model."""
    before = fingerprint(model_folder)
    one, other = model_folder / "config.json", model_folder / "tokenizer.json"
    first, second = one.read_text(), other.read_text()
    one.write_text(second)
    other.write_text(first)
    assert fingerprint(model_folder) != before


def test_fingerprint_does_not_change_with_what_tells_of_the_model(model_folder):
    before = fingerprint(model_folder)
    (model_folder / "README.md").write_text("another card")
    (model_folder / "metrics.json").write_text("{}")
    assert fingerprint(model_folder) == before


def test_a_hub_id_is_its_own_fingerprint():
    assert fingerprint("openai-community/gpt2") == "openai-community/gpt2"


# ---------------------------------------------------------------------------------------------- model folders given


@pytest.fixture
def in_tmp(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder_with(path: str, *names: str) -> str:
    Path(path).mkdir(parents=True)
    for name in names:
        Path(path, name).write_text("{}")
    return path


@pytest.mark.parametrize(
    ("names", "weights", "missing"),
    [
        ((), True, ["config.json", "model.safetensors", "tokenizer.json"]),
        (("config.json", "model.safetensors"), True, ["tokenizer.json"]),
        (("config.json", "tokenizer.json"), True, ["model.safetensors"]),
        (("model.safetensors", "tokenizer.json"), True, ["config.json"]),
        (("config.json", "pytorch_model.bin", "tokenizer.json"), True, ["model.safetensors"]),  # safetensors only
        (("config.json", "model.safetensors"), False, ["tokenizer.json"]),
    ],
)
def test_a_folder_that_lacks_something_is_refused_with_all_that_it_lacks(in_tmp, names, weights, missing):
    with pytest.raises(UserError) as refused:
        require_model_folder(folder_with("runs/gpt", *names), "--model", weights)
    (problem,) = refused.value.problems
    assert "--model runs/gpt" in problem
    assert [name for name in ("config.json", "model.safetensors", "tokenizer.json") if name in problem] == missing


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (("config.json", "model.safetensors", "tokenizer.json"), True),
        (("config.json", "model.safetensors.index.json", "tokenizer.json"), True),
        (("config.json", "adapter_model.safetensors", "tokenizer.json"), True),
        (("config.json", "model.safetensors", "spiece.model"), True),
        (("tokenizer.json",), False),
    ],
)
def test_a_folder_that_has_all_passes(in_tmp, names, weights):
    require_model_folder(folder_with("runs/gpt", *names), "--model", weights)


def test_the_folder_of_a_run_that_goes_on_says_so(in_tmp):
    folder_with("runs/gpt/checkpoint-10")
    folder_with("runs/other", "tokenizer.json")
    with pytest.raises(UserError, match="its run is not finished"):
        require_model_folder("runs/gpt", "--model")


def test_an_unknown_folder_names_those_that_are_there(in_tmp):
    folder_with("runs/gpt", "config.json", "tokenizer.json")
    folder_with("runs/tokenizer", "tokenizer.json")
    folder_with("runs/empty")
    with pytest.raises(UserError) as model:
        require_model_folder("runs/gtp", "--model")
    with pytest.raises(UserError) as tokenizer:
        require_model_folder("runs/tokeniser", "--tokenizer", weights=False)
    assert "--model runs/gtp" in str(model.value)
    assert str(model.value).endswith("there are runs/gpt")
    assert str(tokenizer.value).endswith("there are runs/gpt, runs/tokenizer")


@pytest.mark.parametrize("name", ["nobody/gpt", "gpt2"])
def test_a_hub_id_is_refused_while_offline(in_tmp, name):
    with pytest.raises(UserError, match=f"--model {name}: there is no such folder"):
        require_model_folder(name, "--model")


def test_a_hub_id_is_refused_with_the_reason_while_offline(in_tmp):
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        require_model_folder("nobody/gpt", "--model")


# ---------------------------------------------------------------------------------------------- a run starts


def given(**values: object) -> Settings:
    """Options as a command line gives them; the rest is at its default."""
    settings = Settings(
        output_dir=Setting("runs/gpt", "default"),
        data=Setting(None, "default"),
        depth=Setting(None, "default"),
        learning_rate=Setting(5e-5, "default"),
        logging_steps=Setting(500, "default"),
        seed=Setting(42, "default"),
    )
    return Settings(settings | {name: Setting(value, "command line") for name, value in values.items()})


INPUTS = {"data": "fingerprint of the data", "model": None}


def start(inputs: dict = INPUTS, overwrite: bool = False, recipe: str = "pretrain_gpt", **values: object) -> Run:
    return Run.start(recipe, given(**values), inputs, overwrite)


def started(**values: object) -> Run:
    """A run that was killed after it had derived its depth and logged two steps."""
    run = start(**values)
    run.settings.derive("depth", 3, "by budget")
    run.save()
    run.log(step=1, seconds=0.5)
    run.log(step=2, seconds=1.0)
    return run


def everything_below(folder: str | Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_a_fresh_run(in_tmp):
    run = start(data="tales.txt", seed=7)
    assert not run.resumes
    assert not run.finished
    run.save(data={"name": "tales.txt"})
    record = read_json("runs/gpt/llmkit.json")
    assert record["recipe"] == "pretrain_gpt"
    assert record["status"] == "running"
    assert record["finished"] is None
    assert record["inputs"] == INPUTS
    assert record["seed"] == 7
    assert record["data"] == {"name": "tales.txt"}
    assert record["options"]["data"] == {"value": "tales.txt", "source": "command line"}
    assert record["options"]["depth"] == {"value": None, "source": "default"}
    assert {"llmkit", "python", "torch", "transformers"} <= record["versions"].keys()


def test_nothing_is_written_before_a_run_first_saves(in_tmp):
    start()
    assert list(in_tmp.iterdir()) == []


def test_a_process_that_does_not_write_writes_nothing(in_tmp):
    run = start()
    run.writes = False
    run.save()
    run.log(step=1)
    run.save_model(None, None)
    run.finish({})
    assert list(in_tmp.iterdir()) == []


def test_a_run_resumes_with_the_values_that_its_first_start_derived(in_tmp):
    """Derived anew, the depth would follow from today's load of the machine, and would not fit the checkpoint."""
    first = started(data="tales.txt")
    run = start(data="tales.txt")
    assert run.resumes
    assert not run.finished
    assert run.settings.derive("depth", 5, "by today's budget") == 3
    assert run.settings["depth"] == Setting(3, "derived", "by budget")
    run.save()
    assert run.record["started"] == first.record["started"]
    assert read_json("runs/gpt/llmkit.json")["options"] == first.record["options"]
    assert run.seconds_at(2) == 1.0


def test_a_run_resumes_after_folder_and_data_have_moved(in_tmp):
    """The data is known by its content, and the checkpoints of the second start belong in the folder's new place."""
    started(data="tales.txt", output_dir="runs/old")
    Path("runs/old").rename("runs/gpt")
    run = start(data="elsewhere/tales.txt")
    assert run.resumes
    assert run.settings["output_dir"].value == "runs/gpt"
    assert run.settings["data"].value == "elsewhere/tales.txt"


@pytest.mark.parametrize("source", ["command line", "file run.yaml"])
def test_a_run_resumes_with_another_pace_of_logging(in_tmp, source):
    """How often a run tells of itself changes nothing of what it makes."""
    started(logging_steps=10)
    settings = given()
    settings["logging_steps"] = Setting(5, source)
    run = Run.start("pretrain_gpt", settings, INPUTS)
    assert run.resumes
    assert run.settings["logging_steps"].value == 5
    assert Run.start("pretrain_gpt", given(), INPUTS).settings["logging_steps"].value == 10


def test_resuming_cuts_the_half_line_that_a_kill_left(in_tmp):
    started()
    journal = Path("runs/gpt/metrics.jsonl")
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"step": 3, "sec')
    start()
    assert journal.read_bytes() == whole
    journal.write_bytes(b'{"step": 1')
    start().log(step=1)
    assert journal.read_bytes() == b'{"step": 1}\n'


def test_resuming_leaves_whole_lines_alone(in_tmp):
    started()
    before = everything_below("runs")
    start()
    assert everything_below("runs") == before


def test_resuming_deletes_what_was_on_its_way_when_the_run_was_killed(in_tmp):
    started()
    before = everything_below("runs")
    folder_with("runs/gpt/.saving-123", "model.safetensors")
    Path("runs/gpt/.llmkit.json-x1y2").write_text("{")
    Path("runs/gpt/checkpoint-5").mkdir()
    start()
    assert everything_below("runs") == before
    assert Path("runs/gpt/checkpoint-5").is_dir()


def finished(**values: object) -> Run:
    run = started(**values)
    run.finish({"bits_per_byte": 2.5, "bits_per_byte_n": 100})
    return run


def test_a_finished_run_has_nothing_to_do(in_tmp):
    finished()
    before = everything_below("runs")
    run = start()
    assert run.finished
    assert run.resumes
    assert everything_below("runs") == before


def test_finish_writes_figures_card_and_report_and_deletes_checkpoints(in_tmp):
    run = started()
    folder_with("runs/gpt/checkpoint-5", "optimizer.pt")
    run.finish({"bits_per_byte": 2.5, "bits_per_byte_ci": [2.25, 2.75], "bits_per_byte_n": 100})
    assert sorted(path.name for path in Path("runs/gpt").iterdir()) == [
        "README.md",
        "llmkit.json",
        "metrics.json",
        "metrics.jsonl",
        "report.html",
    ]
    assert read_json("runs/gpt/metrics.json") == {
        "bits_per_byte": 2.5,
        "bits_per_byte_ci": [2.25, 2.75],
        "bits_per_byte_n": 100,
    }
    record = read_json("runs/gpt/llmkit.json")
    assert record["status"] == "finished"
    assert record["finished"] >= record["started"]


def test_finish_keeps_checkpoints_if_asked(in_tmp):
    run = started()
    folder_with("runs/gpt/checkpoint-5", "optimizer.pt")
    run.finish({"bits_per_byte": 2.5}, keep_checkpoints=True)
    assert Path("runs/gpt/checkpoint-5/optimizer.pt").exists()


# ---------------------------------------------------------------------------------------------- a run is refused


@pytest.mark.parametrize("state", [started, finished])
@pytest.mark.parametrize(
    ("before", "today", "expected"),
    [
        ({"learning_rate": 0.1}, {"learning_rate": 0.2}, ["--learning_rate was 0.1 and is 0.2"]),
        ({"learning_rate": 0.1}, {}, ["--learning_rate was 0.1 and is not given"]),
        ({}, {"learning_rate": 0.1}, ["--learning_rate was not given and is 0.1"]),
        ({}, {"depth": 3}, ["--depth was not given and is 3"]),  # derived then; given, it could change tomorrow
        ({"depth": 3, "seed": 1}, {"depth": 4, "seed": 2}, ["--depth was 3 and is 4", "--seed was 1 and is 2"]),
    ],
)
def test_other_options_are_refused_with_both_values(in_tmp, state, before, today, expected):
    state(**before)
    files = everything_below("runs")
    with pytest.raises(UserError) as refused:
        start(**today)
    (problem,) = refused.value.problems
    for part in ["--output_dir runs/gpt", "another folder", "--overwrite", *expected]:
        assert part in problem
    assert everything_below("runs") == files


@pytest.mark.parametrize(
    ("today", "expected"),
    [
        ({"data": "tales.txt"}, "the data (tales.txt) has changed"),
        ({"data": "others.txt"}, "--data was tales.txt and is others.txt"),
        ({}, "--data was tales.txt and is not given"),
    ],
)
def test_other_data_is_refused(in_tmp, today, expected):
    started(data="tales.txt")
    with pytest.raises(UserError) as refused:
        start(inputs=INPUTS | {"data": "another fingerprint"}, **today)
    assert expected in str(refused.value)


def test_a_run_of_another_recipe_is_refused(in_tmp):
    started()
    with pytest.raises(UserError, match="it is of pretrain_gpt"):
        start(recipe="train_tokenizer")


def test_foreign_files_are_refused_and_kept(in_tmp):
    folder_with("runs/gpt", "thesis.docx", "README.md")
    files = everything_below("runs")
    with pytest.raises(UserError) as refused:
        start()
    for part in ("--output_dir runs/gpt", "not empty", "another folder", "--overwrite"):
        assert part in str(refused.value)
    assert everything_below("runs") == files


def test_an_empty_folder_is_taken(in_tmp):
    folder_with("runs/gpt")
    start().save()
    assert [path.name for path in Path("runs/gpt").iterdir()] == ["llmkit.json"]


@pytest.mark.parametrize("path", ["runs/gpt", "runs"])
def test_an_output_folder_that_is_a_file_or_below_one_is_refused(in_tmp, path):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("a text")
    with pytest.raises(UserError) as refused:
        start(overwrite=True)
    for part in ("--output_dir runs/gpt", f"{path} is a file", "name a folder"):
        assert part in str(refused.value)
    assert Path(path).read_text() == "a text"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_that_may_not_be_written_to_is_refused(in_tmp):
    Path("runs").mkdir(mode=0o500)
    with pytest.raises(UserError, match="may not be written to"):
        start()


# ---------------------------------------------------------------------------------------------- --overwrite


def test_overwrite_makes_a_new_run_of_other_options(in_tmp):
    finished(learning_rate=0.1)
    folder_with("runs/gpt/checkpoint-5", "optimizer.pt")
    Path("runs/gpt/model.safetensors").write_text("old weights")
    Path("runs/gpt/notes.txt").write_text("a person's own")
    run = start(overwrite=True, learning_rate=0.2)
    assert not run.resumes
    assert not run.finished
    run.save()
    assert sorted(path.name for path in Path("runs/gpt").iterdir()) == ["llmkit.json", "notes.txt"]
    record = read_json("runs/gpt/llmkit.json")
    assert record["status"] == "running"
    assert record["options"]["depth"]["value"] is None


def test_overwrite_keeps_the_earlier_run_until_the_new_one_writes(in_tmp):
    """A new run can still be refused, for its data for instance; the finished model must not be gone by then."""
    finished(learning_rate=0.1)
    files = everything_below("runs")
    start(overwrite=True, learning_rate=0.2)
    assert everything_below("runs") == files


def test_overwrite_makes_a_finished_run_again(in_tmp):
    finished()
    assert not start(overwrite=True).resumes


def test_overwrite_goes_on_with_a_run_of_the_same_options(in_tmp):
    """The same command with --overwrite, killed and started again, must not begin anew every time."""
    started()
    assert start(overwrite=True).resumes


def test_overwrite_takes_a_folder_of_foreign_files_and_keeps_them(in_tmp):
    folder_with("runs/gpt", "thesis.docx")
    start(overwrite=True).save()
    assert sorted(path.name for path in Path("runs/gpt").iterdir()) == ["llmkit.json", "thesis.docx"]


# ---------------------------------------------------------------------------------------------- journal and model


def test_the_journal_has_a_line_per_entry_and_null_for_what_is_not_a_number(in_tmp):
    run = start()
    run.log(step=1, loss=float("nan"), rate=float("inf"), text="né", flag=True)
    run.log(step=2, samples=[{"score": float("nan")}])  # at any depth
    lines = Path("runs/gpt/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 1, "loss": None, "rate": None, "text": "né", "flag": True},
        {"step": 2, "samples": [{"score": None}]},
    ]


def test_seconds_at_a_step_are_those_of_its_last_line(in_tmp):
    run = start()
    assert run.seconds_at(5) == 0.0
    for line in ({"step": 1, "seconds": 0.5}, {"step": 2, "seconds": 1.0}, {"step": 2, "samples": []}):
        run.log(**line)
    run.log(step=3, seconds=1.5)
    assert [run.seconds_at(step) for step in (0, 1, 2, 3, 9)] == [0.0, 0.5, 1.0, 1.5, 1.5]


def tiny_model(seed: int):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1))


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(sentences(50), 300)


@pytest.mark.parametrize("fails", ["model", "tokenizer"])
def test_a_model_that_cannot_be_saved_leaves_the_earlier_one_whole(in_tmp, tokenizer, fails, monkeypatch):
    """A disk that is full when the last file is written."""
    run = start()
    run.save_model(tiny_model(seed=1), tokenizer)
    files = everything_below("runs")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {Path(file).name for file in files}
    model = tiny_model(seed=2)
    written = []

    def save_and_fail(folder, **kwargs):
        type(failing).save_pretrained(failing, folder, **kwargs)
        written.extend(path.name for path in Path(folder).iterdir())
        raise OSError(28, "No space left on device")

    failing = {"model": model, "tokenizer": tokenizer}[fails]
    with monkeypatch.context() as patched:
        patched.setattr(failing, "save_pretrained", save_and_fail)
        with pytest.raises(OSError, match="No space left"):
            run.save_model(model, tokenizer)
    assert "model.safetensors" in written
    assert everything_below("runs") == files
    run.save_model(model, tokenizer)
    after = everything_below("runs")
    assert [name for name in files if after[name] != files[name]] == ["runs/gpt/model.safetensors"]


def test_a_tokenizer_is_saved_without_a_model(in_tmp, tokenizer):
    run = start()
    run.save_model(None, tokenizer)
    names = {path.name for path in Path("runs/gpt").iterdir()}
    assert "tokenizer.json" in names
    assert not {"config.json", "model.safetensors"} & names


def test_a_folder_that_was_copied_is_the_same_run(in_tmp):
    finished(data="tales.txt")
    shutil.copytree("runs/gpt", "runs/copy")
    assert start(data="tales.txt", output_dir="runs/copy").finished
