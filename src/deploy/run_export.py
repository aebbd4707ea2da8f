# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint as MINDIR, AIR or ONNX, and show that each file computes what the network computes."""

from pathlib import Path
from typing import Any

from model_utils.device_adapter import Rank, set_up_device
from model_utils.errors import UserError
from model_utils.schema import Config


def run_export(config: Config) -> Any:
    """Write `file_name` in every `file_format`, and NAME.json beside them; returns the ModelCard.

    All files are there at the end, or none. An error that the user can mend carries an `exit_status`.
    """
    if not config.ckpt_file:
        raise UserError("ckpt_file: is not given; name the checkpoint with --ckpt_file=FILE")
    rank = set_up_device(config)
    check_formats(config, rank)
    from src import build
    from src.deploy.build_deploy import model_card
    from src.deploy.export import export_files
    from src.deploy.model_card import sha256
    from src.training import build_run
    from src.utils.logging import set_up_logging

    log, source, target = set_up_logging(), Path(config.ckpt_file), target_path(config)
    model = build.ModelLoader(config, rank, for_export=True).load(source)
    config, network = model.config, model.network
    for line in (*config.notes, *rank.notes, build_run.describe_model(config, network), *model.report):
        log.info(line)
    card = model_card(config, model.class_names, model.trained_on or config.dataset, checkpoint=source.name,
                      checkpoint_sha256=sha256(source))
    sizes = {name: None if name == "ONNX" and config.dynamic_batch else config.export_batch_size
             for name in config.file_format}
    card, forgotten = with_earlier_files(card, target)
    entries = export_files(network, target, config.file_format, card.preset, batch_sizes=sizes,
                           parity_check=config.parity_check,
                           describe=lambda files: card._replace(files={**card.files, **files}).to_json())
    for name in sorted(forgotten - set(entries)):
        log.info("the %s file there is of another checkpoint: %s.json describes it no longer", name, target.name)
    for entry in entries.values():
        log.info("%s: %.1f MB, %s", target.parent / entry.file, entry.size_bytes / 1e6, describe_parity(entry.parity))
    log.info("described in %s", target.with_name(f"{target.name}.json"))
    return card._replace(files={**card.files, **entries})


def check_formats(config: Config, rank: Rank) -> None:
    if config.dynamic_batch and "ONNX" not in config.file_format:
        raise UserError("dynamic_batch: is for ONNX files, and file_format has none")
    if "AIR" in config.file_format and rank.device_target != "Ascend":
        raise UserError(f"file_format: AIR is written on Ascend devices only, and this is {rank.device_target}; "
                          "MINDIR works everywhere, and Ascend 310 runs it: --file_format=MINDIR")


def target_path(config: Config) -> Path:
    """The files without their ending, which may have been given with it."""
    from src.deploy.model_card import SUFFIXES

    path = Path(config.file_name)
    if config.file_name.endswith("/") or path.name in ("", ".."):
        raise UserError(f"file_name: {config.file_name} is a folder; name the files in it, such as {path / 'vgg16'}")
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES.values() else path


def with_earlier_files(card: Any, target: Path) -> tuple[Any, set[str]]:
    """The card with what NAME.json says already of other formats of the same checkpoint, and the formats that it
    described of another one."""
    from model_utils.errors import UserError
    from src.deploy.model_card import find_card, is_anothers

    try:
        earlier = find_card(target.with_name(f"{target.name}.mindir"))
    except UserError:
        if is_anothers(target.with_name(f"{target.name}.json")):
            raise UserError(f"file_name: {target}.json is there, and is no description of an exported model; choose "
                              "another name") from None
        return card, set()  # damaged: it is written anew
    if earlier is None or earlier._replace(files={}) != card:
        return card, set(earlier.files if earlier else ())
    return earlier, set()


def describe_parity(parity: dict[str, Any] | None) -> str:
    from src.deploy.export import Parity

    return f"compared with the network: {Parity(**parity)}" if parity else "not compared with the network"
