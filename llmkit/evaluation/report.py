"""The page on which a person reads one run: its main figure, its curves, its samples and how it was made.

`report.html` repeats nothing but what `llmkit.json`, `metrics.json` and `metrics.jsonl` say, so it can be written again
at any time, and equal files give an equal page, byte for byte. It asks for nothing outside itself: it can be mailed.
"""

import io
import json
import os
import re
from pathlib import Path

# The figure that the first paragraph speaks of is the first of these that the run has; its baseline stands beside it.
BASELINES = {
    "macro_f1": "baseline_macro_f1",
    "accuracy": "baseline_accuracy",
    "exact_match": "baseline_exact_match",
    "reward": "baseline_reward",
    "greedy_reward": "baseline_greedy_reward",
    "preference_accuracy": "baseline_preference_accuracy",
    "bits_per_byte": "xz_bits_per_byte",
    "validation_loss": "baseline_validation_loss",
}
LOWER_IS_BETTER = {"bits_per_byte", "validation_loss"}

MEANINGS = {
    "bits_per_byte": "bits the model needs for one byte of held-out text; lower is better, whatever the tokenizer",
    "xz_bits_per_byte": "what the compressor xz needs for the same text",
    "tokens_per_second": "training speed",
    "model_flops_utilization": "share of the machine's peak arithmetic that training used",
    "train_seconds": "time spent in training",
    "train_tokens": "tokens trained on, repeats counted",
    "train_passes": "times that the training text was read",
    "start_seconds": "until the first step: reading, splitting, tokenizing and planning",
    "total_seconds": "from the start of the program, everything included",
    "parameters": "trained numbers of the model",
    "peak_memory_gb": "most memory that the program held",
    "forecast_memory_gb": "forecast of what training adds to the program's own memory",
    "bytes_per_token": "bytes of held-out text that a token stands for",
    "accuracy": "share of held-out rows with the right label",
    "macro_f1": "F1 averaged over labels, each label weighing the same",
    "roc_auc": "chance that a row with the label scores above a row without it",
    "expected_calibration_error": "mean gap between stated confidence and accuracy; lower is better",
    "baseline_accuracy": "accuracy of the simple model to beat",
    "baseline_macro_f1": "macro F1 of the simple model to beat",
    "exact_match": "share of answers equal to the expected one",
    "reward": "mean reward of sampled answers to held-out questions",
    "baseline_reward": "the same before the first step",
    "greedy_reward": "mean reward of the likeliest answers",
    "baseline_greedy_reward": "the same before the first step",
    "completion_length": "mean tokens of a sampled answer",
    "kl": "divergence from the model at the start, in nats a token, at the last step that was logged",
    "preference_accuracy": "share of held-out pairs whose preferred answer the model finds the more likely one",
    "baseline_preference_accuracy": "the same before training",
    "reward_accuracy": "share of held-out pairs whose preferred answer has gained more probability than the other",
    "reward_margin": "mean difference of the two rewards, beta times what the log-probability of an answer has gained",
    "validation_loss": "loss of a token of the held-out answers, in nats; lower is better",
    "baseline_validation_loss": "the same before the first step",
    "trained_parameters": "of them changed by training",
    "base_megabytes": "memory that the weights of the base take",
}

CHARTS = {
    "loss": "Training loss",
    "bits_per_byte": "Bits per byte of held-out text",
    "validation_loss": "Loss on held-out answers",
    "accuracy": "Accuracy on held-out rows",
    "macro_f1": "Macro F1 on held-out rows",
    "exact_match": "Exact match on held-out questions",
    "reward": "Reward",
    "greedy_reward": "Reward of greedy answers to held-out questions",
    "kl": "KL divergence from the model at the start",
    "completion_length": "Tokens of an answer",
    "preference_accuracy": "Share of held-out pairs ranked right",
    "reward_margin": "Reward margin of the training pairs",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens per second",
}

# Drawn in these colours, then handed to the style sheet, so that one picture serves the light and the dark page.
COLOURS = {
    "#010101": "currentColor",
    "#020202": "var(--line)",
    "#030303": "var(--baseline)",
    "#040404": "var(--grid)",
}
INK, LINE, BASELINE, GRID = COLOURS


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a model folder, in one move, and return its path.

    `metrics.json` and `metrics.jsonl` may be absent: an unfinished run has a report too.

    Raises:
        FileNotFoundError: the folder has no `llmkit.json`.
        ValueError: one of the files is not valid JSON; names the file, and the line of `metrics.jsonl`.
    """
    import jinja2

    folder = Path(folder)
    made = _read_json(folder / "llmkit.json")
    metrics = _read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    curves, samples = read_training_log(folder / "metrics.jsonl")
    options = made.get("options", {}).items()

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # always: samples are model output, and may hold anything
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=format_figure, option=format_option)
    page = environment.get_template("report.html.jinja").render(
        title=folder.resolve().name,
        made=made,
        summary=summarize(made, metrics),
        figures=figure_rows(metrics),
        charts=[
            draw_chart(name, title, curves[name], metrics.get(BASELINES.get(name)))
            for name, title in CHARTS.items()
            if len(curves.get(name, ())) > 1  # one point is no curve
        ],
        samples=sorted(samples.items(), reverse=True),
        wrong=_read_json(folder / "wrong_answers.json") if (folder / "wrong_answers.json").exists() else {},
        chosen_options=[(name, option) for name, option in options if option["source"] != "default"],
        default_options=[(name, option) for name, option in options if option["source"] == "default"],
    )
    temporary = folder / "report.html.tmp"
    temporary.write_text(page, encoding="utf-8", errors="replace")  # half a character from a model is no reason to fail
    os.replace(temporary, folder / "report.html")
    return folder / "report.html"


def read_training_log(path: Path) -> tuple[dict[str, dict[int, float]], dict[int, list[dict]]]:
    """Read `metrics.jsonl`: the value of each metric by step, and the samples by step.

    A run that is resumed from a checkpoint logs some steps again: the later line counts. A run that was killed may
    leave half a last line, which is passed over; any other unreadable line means a damaged file.

    Raises:
        ValueError: a line other than the last is not JSON.
    """
    curves, samples = {}, {}
    lines = path.read_bytes().rstrip().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line) if line.strip() else {}
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error}): {line[:80]!r}") from error
        if "samples" in record:
            samples[record["step"]] = record["samples"]
        for name in CHARTS.keys() & record.keys():
            if record[name] is not None:
                curves.setdefault(name, {})[record["step"]] = record[name]
    return curves, samples


def summarize(made: dict, metrics: dict) -> str:
    """Say in words what the model is, and how its main figure stands against the baseline."""
    data, parent = made.get("data") or {}, made.get("parent")
    source = data.get("name", "unnamed data")
    words = f"The recipe {made['recipe']} made this model "
    words += f"by training {parent['folder']} further" if parent else "from scratch"
    words += f" on {'the bundled data' if source == 'bundled' else source}"
    if "documents" in data:
        words += f" ({format_figure(data['documents'])} documents)"
    if "train_seconds" in metrics:
        words += f" in {format_figure(metrics['train_seconds'], 'train_seconds')} of training"
    words += "."

    name = next((name for name in BASELINES if name in metrics), None)
    if name is None:
        return words
    value, baseline, interval = metrics[name], metrics.get(BASELINES[name]), metrics.get(f"{name}_ci")
    better = "lower" if name in LOWER_IS_BETTER else "higher"
    evidence = [f"95 % interval {format_interval(interval)}"] if interval else []
    evidence += [f"n = {format_figure(metrics[f'{name}_n'])}"] if f"{name}_n" in metrics else []
    words += f" On held-out data its {name.replace('_', ' ')} is {format_figure(value)}, where {better} is better"
    words += f" ({', '.join(evidence)})." if evidence else "."
    if baseline is None:
        return words
    words += f" The baseline ({MEANINGS.get(BASELINES[name], BASELINES[name])}) is {format_figure(baseline)}: "
    if interval and interval[0] <= baseline <= interval[1]:
        return words + "inside the interval, so no difference is shown."
    ahead = (value < baseline) == (better == "lower") and value != baseline
    difference = format_figure(abs(value - baseline))
    return words + f"the model is {'better' if ahead else 'not better'}, with a difference of {difference}."


def figure_rows(metrics: dict) -> list[dict]:
    """One row per figure; its `_n`, its `_ci` and its `forecast_` stand in the row, not in rows of their own."""
    rows = []
    for name, value in metrics.items():
        owners = name.removesuffix("_n"), name.removesuffix("_ci"), name.removeprefix("forecast_")
        if any(owner != name and owner in metrics for owner in owners):
            continue
        interval = metrics.get(f"{name}_ci")
        rows.append(
            {
                "name": name,
                "value": value,
                "interval": format_interval(interval) if interval else "",
                "rows": metrics.get(f"{name}_n"),
                "forecast": metrics.get(f"forecast_{name}"),
                "meaning": MEANINGS.get(name, ""),
            }
        )
    return rows


def draw_chart(name: str, title: str, curve: dict[int, float], baseline: float | None) -> dict:
    """Draw one metric over steps as SVG, with a dashed line where its baseline is; the text stays text."""
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.figure import Figure

    steps = sorted(curve)
    values = [curve[step] for step in steps]
    alternative = f"{title} from {format_figure(values[0])} at step {steps[0]} to {format_figure(values[-1])} "
    alternative += f"at step {steps[-1]}; lowest {format_figure(min(values))}, highest {format_figure(max(values))}."

    figure = Figure(figsize=(4.4, 2.7), layout="constrained")  # small, so that its text is readable on a phone
    axes = figure.add_subplot()
    axes.plot(steps, values, color=LINE, linewidth=1.5, marker="o" if len(steps) <= 30 else None, markersize=3)
    if baseline is not None:
        label = f"{BASELINES[name].replace('_', ' ')} {format_figure(baseline)}"
        axes.axhline(baseline, color=BASELINE, linestyle="--", linewidth=1.5, label=label)
        axes.legend(frameon=False, labelcolor=INK)
        alternative += f" Dashed line: {label}."
    axes.set_xlabel("step", color=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(color=GRID, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.yaxis.get_offset_text().set_color(INK)  # the 1e-5 above a learning rate
    axes.locator_params(axis="x", nbins=6, integer=True)

    # Salted by the chart's name: the same identifiers in every run, and none used twice in a page of several charts.
    settings = {"svg.hashsalt": f"llmkit {name}", "svg.fonttype": "none"}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # figure_1, axes_1 and so on, equal in every chart
    for drawn, styled in COLOURS.items():
        svg = svg.replace(drawn, styled)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alternative)}" ', 1)
    return {"title": title, "svg": Markup(svg)}


def format_figure(value: object, name: str = "") -> str:
    """Write a value for a reader: four digits, thousands marked, seconds as a duration, a utilization in per cent."""
    if isinstance(value, list):
        return ", ".join(format_figure(item, name) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return format_option(value)
    if name.endswith("seconds") and value >= 60:
        minutes, seconds = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    if name.endswith("seconds"):
        return f"{value:.3g} s"
    if name.endswith("utilization"):
        return f"{100 * value:.3g} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_interval(interval: list[float]) -> str:
    return f"{format_figure(interval[0])} to {format_figure(interval[1])}"


def format_option(value: object) -> str:
    """Write a value as it would be typed: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, ensure_ascii=False)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
