"""What is wrong with training options by themselves, whatever the recipe."""

from llmkit.options import Settings

_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
_AT_LEAST_ZERO = ("initializer_range", "learning_rate", "muon_learning_rate", "weight_decay", "adamw_weight_decay")


def problems_of_training(settings: Settings, unused: dict[str, tuple[str, ...]]) -> list[str]:
    """Options that cannot work, or would change nothing.

    Args:
        unused: options that the recipe's trainer does not use, by the reason.
    """
    from transformers.integrations import get_available_reporting_integrations

    problems = [
        f"--{name} {settings[name].value}: changes nothing here, since {reason}; leave it out"
        for reason, names in unused.items()
        for name in names
        if name in settings and settings.given(name)
    ]
    if settings["push_to_hub"].value:
        from huggingface_hub import constants

        if constants.is_offline_mode():
            problems.append(
                "--push_to_hub: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it, or leave --push_to_hub out"
            )
    if settings["save_total_limit"].value is not None and settings["save_total_limit"].value < 2:
        problems.append(
            f"--save_total_limit {settings['save_total_limit'].value}: must be 2 or more, since the older one goes before the newer is whole"
        )
    steps, epochs = settings["max_steps"], settings["num_train_epochs"]
    if settings.given("max_steps") and steps.value < 1:
        problems.append(f"--max_steps {steps.value}: must be 1 or more")
    if settings.given("num_train_epochs") and epochs.value <= 0:
        problems.append(f"--num_train_epochs {epochs.value}: must be above 0")
    if settings.given("num_train_epochs") and settings.given("max_steps"):
        problems.append(f"--max_steps {steps.value} and --num_train_epochs {epochs.value}: both say how long; give one")
    for least, names in ((1, _AT_LEAST_ONE), (0, _AT_LEAST_ZERO)):
        for name in names:
            value = settings[name].value if name in settings else None
            if value is not None and value < least:
                problems.append(f"--{name} {value}: must be {least} or more")
    if not 0 <= settings["seed"].value < 2**32:
        problems.append(f"--seed {settings['seed'].value}: must be from 0 to 2^32 - 1")
    known = {"none", "all", *get_available_reporting_integrations()}
    given = settings["report_to"].value
    for tracker in given if isinstance(given, list) else [given]:
        if tracker not in known:
            problems.append(f"--report_to {tracker}: is not installed; at hand are {', '.join(sorted(known))}")
    return problems
