# SPDX-License-Identifier: Apache-2.0
"""The command line: every key is a flag, in every spelling people use; what is refused; --help."""

import time

import pytest
from helpers import read_recipe, refusal, run_python, write_recipe

from model_utils.config import ALIASES, NOT_HONOURED, get_config
from model_utils.errors import UserError
from model_utils.schema import Config
from model_utils.values import Choices


def another_value(name: str) -> str:
    """A value of a key, as text, that is allowed and is not its default."""
    special = {"log_name": "other.log", "image_size": "64", "image_mean": "0.1,0.2,0.3", "image_std": "0.1,0.2,0.3",
               "lr_epochs": "1,2", "loss_scale": "8", "padding": "1", "tfrecord_first_label": "0",
               "scale": "0.2,0.9", "ratio": "0.5,2"}
    field = Config.model_fields[name]
    choices = next((item for item in field.metadata if isinstance(item, Choices)), None)
    if name in special:
        return special[name]
    if choices:
        taken = field.default if isinstance(field.default, tuple) else (field.default,)
        return next(item for item in choices if item not in taken)
    if isinstance(field.default, bool):
        return str(not field.default)
    if isinstance(field.default, int):
        return str(field.default + 2)
    return str(field.default / 2 + 0.01) if isinstance(field.default, float) else "7"


@pytest.mark.parametrize("name", Config.model_fields)
def test_every_key_is_a_flag(tmp_path, name):
    empty, default = write_recipe(tmp_path, "seed: 1\n"), getattr(Config(), name)
    arrived = {flag: getattr(get_config(["-c", str(empty), f"--{flag}={another_value(name)}"]), name)
               for flag in (name, name.replace("_", "-"))}
    if name == "data_path":  # on the command line this is another project's name of data_dir
        assert set(arrived.values()) == {default}
    else:
        assert len(set(arrived.values())) == 1 and default not in arrived.values()


@pytest.mark.parametrize("text", ["64,96", "[64,96]", "[64, 96]", "(64, 96)", " 64 , 96 "])
def test_lists_are_read_in_every_spelling(tmp_path, text):
    assert get_config([f"--image_size={text}"]).image_size == (64, 96)
    assert read_recipe(tmp_path, f"image_size: {text}").image_size == (64, 96)
    assert read_recipe(tmp_path, f"image_size: '{text}'").image_size == (64, 96)


def test_one_number_is_a_square(tmp_path):
    assert get_config(["--image_size=96"]).image_size == (96, 96)
    assert read_recipe(tmp_path, "image_size: 96").image_size == (96, 96)


def test_lists_of_other_lengths(tmp_path):
    assert get_config(["--lr_epochs=5"]).lr_epochs == (5,)
    assert get_config(["--lr_epochs="]).lr_epochs == ()
    assert read_recipe(tmp_path, "lr_epochs: [5, 6, 7]").lr_epochs == (5, 6, 7)


@pytest.mark.parametrize(("text", "value"), [
    *((word, True) for word in ("True", "true", "1", "yes", "YES")),
    *((word, False) for word in ("False", "false", "0", "no", "No"))])
def test_booleans_are_read_in_every_spelling(tmp_path, text, value):
    assert get_config([f"--use_nesterov={text}"]).use_nesterov is value
    assert get_config(["--use_nesterov", text]).use_nesterov is value
    assert read_recipe(tmp_path, f"use_nesterov: {text}").use_nesterov is value
    assert read_recipe(tmp_path, f"use_nesterov: '{text}'").use_nesterov is value


def test_a_bare_flag_means_true():
    assert get_config(["--use_nesterov"]).use_nesterov is True
    assert get_config(["--use-nesterov", "--seed=2"]).use_nesterov is True


@pytest.mark.parametrize(("flag", "name", "value"), [
    ("--device_target=cpu", "device_target", "CPU"), ("--network=VGG19", "network", "vgg19"),
    ("--initialize_mode=kaimingnormal", "initialize_mode", "KaimingNormal"), ("--amp_level=o2", "amp_level", "O2"),
    ("--lr_scheduler=STEP", "lr_scheduler", "step"),
    ("--dataset_sink_mode=1", "dataset_sink_mode", "True"), ("--dataset_sink_mode", "dataset_sink_mode", "True"),
    ("--dataset_sink_mode=no", "dataset_sink_mode", "False"), ("--dataset_sink_mode=AUTO", "dataset_sink_mode", "auto"),
    ("--file_format=mindir", "file_format", ("MINDIR",))])
def test_choices_are_matched_without_regard_to_case(flag, name, value):
    assert getattr(get_config([flag]), name) == value


MEANINGS = [  # what people of other projects type -> what it means here
    ("--data_path=/d", {"data_dir": "/d"}), ("--datadir=/d", {"data_dir": "/d"}),
    ("--distribute", {"is_distributed": True}), ("--device=GPU", {"device_target": "GPU"}),
    ("--model=vgg19", {"network": "vgg19"}), ("--epochs=3", {"max_epoch": 3}), ("--max_epochs=3", {"max_epoch": 3}),
    ("--workers=3", {"num_parallel_workers": 3}), ("--print-freq=3", {"log_interval": 3}),
    ("--display_every=3", {"log_interval": 3}), ("--iterations_per_loop=3", {"sink_size": 3}),
    ("--log_dir=/o", {"ckpt_path": "/o"}), ("--amp", {"amp_level": "O2"}), ("--amp=False", {"amp_level": "O0"}),
    ("--dtype=float16", {"amp_level": "O2"}), ("--dtype=tf.float32", {"amp_level": "O0"}),
    ("--dtype=float32", {"amp_level": "O0"}), ("--dtype=tf.float16", {"amp_level": "O2"}),
    ("--label_smoothing=0.2", {"label_smooth": True, "label_smooth_factor": 0.2}),
    ("--label_smoothing=0", {"label_smooth": False, "label_smooth_factor": 0.0}),
    ("--mode=evaluate --eval_dir=/e", {"mode": "evaluate", "pre_trained": "/e"}),
]


@pytest.mark.parametrize(("flags", "meaning"), MEANINGS, ids=[flags for flags, _ in MEANINGS])
def test_the_names_of_other_projects_are_known(flags, meaning):
    config = get_config(flags.split())
    assert {name: getattr(config, name) for name in meaning} == meaning


def test_no_alias_is_without_a_test():
    tested = {flag.split("=")[0].lstrip("-").replace("-", "_") for flags, _ in MEANINGS for flag in flags.split()}
    assert set(ALIASES) <= tested


def test_an_alias_is_known_in_yaml_too_unless_it_means_something_else_there(tmp_path):
    config = read_recipe(tmp_path, "epochs: 3\ndata_path: /cache/here\n")
    assert (config.max_epoch, config.data_path, config.data_dir) == (3, "/cache/here", None)


def test_eval_dir_belongs_to_mode_evaluate(tmp_path):
    assert "--mode=evaluate" in refusal("--eval_dir=/e")
    (tmp_path / "own.yaml").write_text("mode: evaluate\n")
    assert get_config(["-c", str(tmp_path / "own.yaml"), "--eval_dir=/e"]).pre_trained == "/e"
    assert get_config(["--eval_dir=/e"], "eval.py").pre_trained == "/e"


def test_weights_are_the_model_of_infer():
    assert get_config(["--pre_trained=/a"], "infer.py").model_path == "/a"
    with pytest.raises(UserError, match="give one of them"):
        get_config(["--pre_trained=/a", "--model_path=/b"], "infer.py")


@pytest.mark.parametrize("name", NOT_HONOURED)
def test_a_flag_that_is_not_honoured_is_named(name):
    assert [note for note in get_config([f"--{name}=1"]).notes if f"--{name} has no effect" in note]


def test_an_unknown_flag_is_refused_with_the_nearest_name():
    assert refusal("--max-epohc=3") == "--max_epohc: unknown flag; did you mean `max_epoch`?"
    assert "--help" in refusal("--zzzzzz=3")
    assert "--max_epoc" in refusal("--max_epoc=3")  # the beginning of a flag is not the flag


@pytest.mark.parametrize(("flag", "said"), [
    ("--lr=abc", ("lr", "number", "'abc'", "--lr")), ("--lr=-1", ("lr", "greater than 0", "'-1'", "--lr")),
    ("--lr=nan", ("lr", "finite")), ("--network=vgg12", ("vgg11, vgg13, vgg16, vgg19", "'vgg12'")),
    ("--initialize_mode=Xavier", ("XavierUniform, KaimingNormal, Dirac",)), ("--batch_norm=maybe", ("True or False",)),
    ("--max_epoch=2.5", ("max_epoch", "integer")), ("--image_size=100", ("image_size", "32", "'100'")),
    ("--image_size=64,64,64", ("image_size",)), ("--lr_epochs=1,x", ("lr_epochs", "list")),
    ("--lr_epochs=60,30", ("ascending",)), ("--image_mean=0.5", ("three values",)),
    ("--image_mean=123,117,104", ("image_mean", "0 to 1")), ("--image_std=nan,1,1", ("image_std",)),
    ("--image_std=0,1,1", ("image_std", "positive")), ("--image_std=58,57,57", ("image_std", "0 to 1")),
    ("--loss_scale=0", ("loss_scale", "dynamic")),
    ("--dropout_rate=1", ("dropout_rate", "less than 1")), ("--momentum=nan", ("momentum",)),
    ("--amp=perhaps", ("amp", "True or False")), ("--log_name=a/b", ("log_name",)), ("--log_name=..", ("log_name",)),
    ("--log_name=metrics.csv", ("log_name", "something else in the run folder")),
    ("--log_name=resume", ("log_name", "something else")), ("--ratio=1,inf", ("ratio", "two positive values")),
    ("--label_smoothing=x", ("label_smoothing", "'x'"))])
def test_a_bad_value_is_refused_with_key_value_and_what_is_allowed(flag, said):
    message = refusal(flag)
    assert flag.split("=")[0] in message
    for words in said:
        assert words in message


# --help


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_lists_every_key_and_answers_at_once(script):
    seconds = []
    for _ in range(5):  # a busy machine may take longer now and then
        start = time.perf_counter()
        outcome = run_python(script, "--help")
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 0.7:
            break
    assert min(seconds) < 0.7, seconds
    assert outcome.status == 0 and not outcome.err
    words = set(outcome.out.split())
    assert [name for name in (*Config.model_fields, *ALIASES) if f"--{name}" not in words] == []
    for text in ("Learning rate:", "[vgg11|vgg13|vgg16|vgg19] (default vgg16)", "default 30,60,90,120"):
        assert text in " ".join(outcome.out.split())


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_does_not_load_mindspore(script):
    code = f"""
import runpy, sys
sys.argv = ["{script}", "--help"]
try:
    runpy.run_path("{script}", run_name="__main__")
finally:
    print("loaded:", sorted({{"mindspore", "numpy", "matplotlib"}} & set(sys.modules)))
"""
    assert run_python("-c", code).out.endswith("loaded: []\n")


@pytest.mark.parametrize(("flags", "said"), [
    (("--label_smooth_factor=0.1",), ["without --label_smooth=1"]),
    (("--label_smooth=1",), ["without --label_smooth_factor"]),
    (("--label_smooth=1", "--label_smooth_factor=0.1"), []), (("--label_smooth=0", "--label_smooth_factor=0.1"), []),
    (("--lr_scheduler=cosine_annealing", "--lr_max=0.3"), ["--lr_max has no effect without --lr_scheduler=step"]),
    (("--lr_scheduler=multi_step", "--lr_gamma=1"), []), (("--lr_gamma=1",), ["without --lr_scheduler=exponential"]),
    (("--T_max=9", "--eta_min=0"), ["--eta_min has", "--T_max has"]), (("--lr=0.2",), []), (("--lr_max=0.2",), []),
    (("--lr=0.2", "--lr_max=0.3"), ["--lr has no effect without --lr_scheduler=exponential or cosine_annealing"]),
    (("--resume_force",), ["--resume_force has no effect without --resume"]), (("--resume_force", "--resume"), []),
    (("--eval_step_per_epoch=3",), ["without --mode=train_and_evaluate"]),
    (("--eval_step_per_epoch=3", "--mode=train_and_evaluate"), []),
    (("--lr_base_batch=32",), ["without --lr_scale=linear"]), (("--lr_base_batch=32", "--lr_scale=linear"), []),
    (("--has_dropout=False", "--dropout_rate=0.3"), ["without --has_dropout=True"]), (("--dropout_rate=0.3",), []),
    (("--augment=False", "--hflip=1"), ["without --augment=True"]), (("--cutout=8",), []),
    (("--save=a.csv", "--file_format=ONNX"), ["--save has", "--file_format has"]),
    (("--scale=0.5,1",), ["without --dataset=imagenet2012"]), (("--dataset=imagenet2012", "--ratio=1,1"), [])])
def test_a_flag_that_counts_for_nothing_is_said_to(flags, said):
    notes = [note for note in get_config(list(flags)).notes if "no effect" in note]
    assert len(notes) == len(said) and all(text in note for text, note in zip(said, notes, strict=True))


def test_a_log_of_another_name_is_for_training():
    assert "warning: --log_name has no effect here: it is for training" in get_config(["--log_name=a"], "eval.py").notes
    assert not [note for note in get_config(["--log_name=a"], "train.py").notes if "log_name" in note]


def test_a_value_without_a_flag_is_refused_as_one():
    assert refusal("--data_dir", "data", "extra") == "extra: belongs to no flag; values are given as --name=value"


def test_a_value_of_two_dashes_is_refused_like_any_other():
    assert "lr: must be a valid number, not '--' (from --lr)" in refusal("--lr=--")
