# SPDX-License-Identifier: Apache-2.0
"""Anyone's weights: the logits of the network they come from, a report of what happened, and no silent partial load.

Files that are damaged, of another kind, or hostile are refused by name, and nothing in them runs.
"""

import hashlib
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from foreign_files import (
    FORMATS,
    LEGACY_HEAD,
    load,
    logits,
    make,
    mindcv,
    model_zoo,
    plain_opcodes,
    reference_logits,
    refusal_of,
    to_bfloat16,
    torch_opcodes,
    torchvision,
    without,
    write_archive,
    write_ckpt,
    write_legacy_pth,
    write_pth,
    write_safetensors,
)
from helpers import ROOT, Outcome, must_run, only_folder, run_main, write_class_folders

from model_utils.config import get_config
from src.utils.download import WEIGHTS
from src.weights.load import read_weights, without_file

pytestmark = pytest.mark.usefixtures("graph_mode")  # weights are loaded op by op; other tests get their mode back
CLASSES = 7
SMALL = {"features.0.weight": np.ones((8, 3, 3, 3), np.float32)}


def check_logits(path: Path, model: dict[str, np.ndarray]) -> None:
    expected = reference_logits(model)
    assert np.abs(expected).max() > 0.5  # or an agreement would say little
    np.testing.assert_allclose(logits(path), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize(("network", "batch_norm"), [("vgg11", True), ("vgg16", False)])
def test_foreign_weights_give_their_network_s_logits(tmp_path, network, batch_norm, source):
    names, write, ending = FORMATS[source]
    model = make(network, batch_norm=batch_norm)
    check_logits(write(tmp_path / f"weights{ending}", names(model)), model)


def test_a_file_for_other_channel_counts_brings_its_width(tmp_path):
    model = make("vgg11", batch_norm=True, channels=(8, 8, 13, 26, 26), hidden=205)  # width 0.05
    path = write_pth(tmp_path / "a.pth", torchvision(model))
    check_logits(path, model)
    assert load(path).config.width == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("hidden", [0, 64])
def test_a_file_with_another_classifier_brings_its_size(tmp_path, hidden):
    model = make("vgg11", batch_norm=True, hidden=hidden)
    arrays = torchvision(model)
    if not hidden:  # as networks for CIFAR-10 call their only dense layer
        arrays = {name.replace("classifier.6.", "classifier."): values for name, values in arrays.items()}
    path = write_pth(tmp_path / "a.pth", arrays)
    check_logits(path, model)
    config = load(path).config
    assert (config.width, config.hidden_units) == (0.125, 8 * hidden)
    text = refused_training(tmp_path, path, "--hidden_units=4096")
    assert f"hidden_units: --hidden_units says 4096, but the checkpoint {path} has {8 * hidden}" in text


def folder_flags(tmp_path: Path) -> tuple[str, ...]:
    """Images of three classes, and a tiny recipe for them."""
    write_class_folders(tmp_path / "data", each=4)
    return ("--dataset=imagenet2012", f"--data_dir={tmp_path / 'data'}", "--num_classes=3", "--image_size=64",
            "--batch_size=4", "--max_epoch=1", "--device_target=CPU", "--graph_mode=False",
            f"--ckpt_path={tmp_path / 'runs'}")


def train(tmp_path: Path, path: Path, *flags: str) -> Outcome:
    return run_main("train", *folder_flags(tmp_path), f"--pre_trained={path}", *flags)


def refused_training(tmp_path: Path, path: Path, *flags: str) -> str:
    said = train(tmp_path, path, *flags).refusal()
    assert not (tmp_path / "runs").exists()
    return said


def test_training_from_another_zoo_says_what_is_taken_and_what_is_new(tmp_path):
    arrays = without(torchvision(make("vgg11", batch_norm=True)), "classifier.3.bias")
    path = write_pth(tmp_path / "vgg11_bn.pth", arrays)
    text = refused_training(tmp_path, path)
    assert "classifier.3.bias is missing" in text and "--pre_trained_strict=False" in text
    printed = train(tmp_path, path, "--pre_trained_strict=False").printed()
    for said in (f"{path} (names of torchvision): vgg11, batch_norm=True, has_bias=True, 7 classes, float32",
                 "loaded: 51 of the network's 54 tensors",
                 "classifier.3.bias (is missing)", "(the file's head has 7 classes, this run has 3)"):
        assert said in printed
    settings = next((tmp_path / "runs").glob("*/config.yaml")).read_text()
    assert "network: vgg11\n" in settings and "has_bias: true\n" in settings and "num_classes: 3\n" in settings


def test_published_weights_bring_imagenet_s_normalisation_and_the_model_zoo_s_cifar10_weights_theirs(tmp_path):
    path = write_pth(tmp_path / "a.pth", torchvision(make("vgg11", batch_norm=False)))
    config = load(path).config
    assert config.image_mean == (0.485, 0.456, 0.406) and config.image_std == (0.229, 0.224, 0.225)
    zoo = write_ckpt(tmp_path / "a.ckpt", model_zoo(make("vgg11", batch_norm=False)))
    assert load(zoo).config.image_mean == ()  # it does not say
    assert load(zoo).config.preset.mean == (0.4914, 0.4822, 0.4465)
    assert config.interpolation == "antialias" and load(zoo).config.interpolation == "bilinear"
    path = write_ckpt(tmp_path / "a.ckpt", model_zoo(make("vgg11", batch_norm=True, classes=10)))
    model = load(path)
    assert model.config.image_mean == (0.4465, 0.4822, 0.4914) and model.config.image_std == (0.2010, 0.1994, 0.2023)
    assert sum("B,G,R" in line for line in model.report) == 1
    assert load(path, "--image_mean=0.5,0.5,0.5").config.image_mean == (0.5, 0.5, 0.5)
    assert load(path, "--dataset=imagenet2012").config.image_mean == ()
    own = next((ROOT / "tests" / "files" / "first_version").rglob("*.ckpt"))
    assert read_weights(own).layout.num_classes == 10 and not read_weights(own).of_model_zoo_cifar10


def test_published_weights_are_named_wherever_a_file_is(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    path = write_pth(tmp_path / "mirror/a.pth", torchvision(make("vgg11", batch_norm=True, classes=3)))
    file = path.rename(path.with_name(f"vgg11_bn-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")).name
    monkeypatch.setitem(WEIGHTS, "torchvision:vgg11_bn", f"https://localhost/models/{file}")
    monkeypatch.setenv("VGG_MIRROR", f"file://{tmp_path / 'mirror'}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name, cached = "torchvision:vgg11_bn", tmp_path / "cache/vgg_mindspore" / file
    assert train(tmp_path, name).status == 0 and cached.is_file()
    shutil.rmtree(tmp_path / "mirror")  # one download serves all
    run = only_folder(tmp_path / "runs")
    assert f"pre_trained: {name}\n" in (run / "config.yaml").read_text()
    flags = ("--device_target=CPU", "--graph_mode=False", "--image_size=64")
    assert f"checkpoint: {cached}" in run_main("eval", *folder_flags(tmp_path), f"--pre_trained={name}").out
    monkeypatch.chdir(tmp_path)
    must_run("export", f"--ckpt_file={name}", "--file_format=ONNX", "--parity_check=False", *flags)
    assert (tmp_path / "vgg11.onnx").is_file() and [*cached.parent.iterdir()] == [cached]
    photos = tmp_path / "data/val/ant"
    assert "0.jpg" in must_run("infer", f"--model_path={name}", f"--input={photos}", "--engine=mindspore", *flags).out
    assert run_main("scripts.convert_weights", name, tmp_path / "a.ckpt").status == 0
    cached.unlink()
    assert run_main("train", f"--resume={run}", "--max_epoch=2").status == 0  # the state has all weights


def test_flags_that_the_file_contradicts(tmp_path):
    path = write_pth(tmp_path / "a.pth", torchvision(make("vgg11", batch_norm=True)))
    assert load(path).config.num_classes == CLASSES
    assert "num_classes: --num_classes says 3" in refusal_of(path, "--num_classes=3")
    flags = [flag for flag in folder_flags(tmp_path) if "classes" not in flag]
    said = run_main("eval", *flags, f"--pre_trained={path}").refusal()
    assert f"num_classes: is 7 (from the checkpoint {path})" in said
    for flag, conflict, remedy in (
            ("--network=vgg16", "network: --network says vgg16, but", "give --network=vgg11, or leave the flag"),
            ("--batch_norm=False", "batch_norm: --batch_norm says False", "has True"),
            ("--has_bias=False", "has_bias: --has_bias says False", "give --has_bias=True"),
            ("--width=0.5", "width: --width says 0.5", "give --width=0.125")):
        for text in (refusal_of(path, flag), refused_training(tmp_path, path, flag)):
            assert conflict in text and remedy in text and str(path) in text


def test_tensors_that_are_missing_or_do_not_fit_and_other_networks_are_errors(tmp_path):
    for name, ours in (("features.11.weight", "layers.11.weight"), (
            "features.12.running_var", "layers.12.moving_variance")):
        arrays = without(torchvision(make("vgg11", batch_norm=True)), name) | {"stray": np.ones(2, np.float32)}
        path = write_pth(tmp_path / "a.pth", arrays)
        assert f"does not fit vgg11: {ours} is missing\n  not used: stray" in refusal_of(path)
    arrays = torchvision(make("vgg11", batch_norm=False))
    name, hidden = "classifier.3.weight", arrays["classifier.3.weight"]
    resnet = {"conv1.weight": np.ones((64, 3, 7, 7), np.float32), "fc.weight": np.ones((10, 64), np.float32)}
    alexnet = {f"features.{index}.weight": np.ones((8, 8, side, side), np.float32)
               for index, side in ((0, 11), (3, 5), (6, 3), (8, 3), (10, 3))}
    odd = torchvision(make("vgg11", batch_norm=False, channels=(8, 16, 32, 64, 100)))
    for wrong, said in ((arrays | {name: hidden[:, :100].copy()}, f"{name} is (512, 100), not (512, 512)"),
                        (arrays | {name: hidden.astype(np.int8)}, f"{name} is missing"),
                        (resnet, "holds no VGG11, 13, 16 or 19"), (alexnet, "holds no VGG"),
                        (odd, "8, 16, 32, 32, 64, 64, 100, 100 channels")):
        assert said in refusal_of(write_pth(tmp_path / "a.pth", wrong))


@pytest.mark.parametrize("write", [write_pth, write_legacy_pth, write_safetensors, write_ckpt])
def test_a_file_that_was_cut_off_is_refused(tmp_path, write):
    whole = write(tmp_path / "whole", mindcv(make("vgg11", batch_norm=True))).read_bytes()
    path = tmp_path / "cut.pth"
    for length in (0, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal_of(path)
    if write is write_pth:  # the only one of them with checksums: a number that was altered is found too
        path.write_bytes(whole[:len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 64]) + whole[len(whole) // 2 + 1:])
        assert "damaged" in refusal_of(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of escapes in texts that were altered
@pytest.mark.parametrize("write", [write_pth, write_legacy_pth, write_safetensors])
def test_altered_headers_are_one_error(tmp_path, write):
    """No traceback, no endless loop, no memory that the file only claims."""
    content = write(tmp_path / "whole", SMALL).read_bytes()
    random, path = np.random.RandomState(0), tmp_path / "altered"
    for _ in range(25):
        altered = bytearray(content)
        altered[random.randint(len(altered) if write is write_pth else 250)] = random.randint(256)
        path.write_bytes(altered)
        refusal_of(path)


def test_views_of_storages_and_other_byte_orders(tmp_path):
    tensors = torchvision(make("vgg11", batch_norm=True))
    tensors["classifier.3.weight"] = np.asfortranarray(tensors["classifier.3.weight"])  # strides of its own
    for lead, byteorder in ((5, "little"), (5, "big")):
        found = read_weights(write_pth(tmp_path / "a.pth", tensors, lead=lead, byteorder=byteorder))
        assert len(found.arrays) == 54
        for ours, array in found.arrays.items():
            assert np.array_equal(array, tensors[found.names[ours]])


def test_tensors_are_found_in_what_training_scripts_save(tmp_path):
    arrays = torchvision(make("vgg11", batch_norm=False))
    tensors = {f"module.{name}": values for name, values in arrays.items()}
    for key in ("state_dict", "anything"):
        path = write_pth(tmp_path / "a.pth", {"epoch": 3, key: tensors, "optimizer": {"state": {}}})
        found = read_weights(path)
        assert np.array_equal(found.arrays["classifier.6.bias"], arrays["classifier.6.bias"])
        assert found.left_out == {"epoch": "no tensors", "optimizer": "no tensors"}


@pytest.mark.parametrize("write", [write_pth, write_legacy_pth, write_safetensors])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32(tmp_path, write, kind):
    arrays = torchvision(make("vgg11", batch_norm=True))
    floats = {name for name, values in arrays.items() if values.dtype.kind == "f"}
    stored = {name: to_bfloat16(arrays[name]) if kind == "bfloat16" else arrays[name].astype(kind) for name in floats}
    path = write(tmp_path / "a", arrays | stored)
    model = load(path)
    network = model.network
    for name, ours in (("features.0.weight", network.layers[0].weight), ("features.1.running_var",
                       network.layers[1].moving_variance), ("classifier.6.bias", network.classifier[6].bias)):
        halves = stored[name]
        wanted = (halves.astype(np.uint32) << 16).view(np.float32) if kind == "bfloat16" else halves.astype(np.float32)
        assert ours.asnumpy().tobytes() == wanted.tobytes()
    assert f", {kind}" in "\n".join(model.report)


TOUCH = b"X\x0c\x00\x00\x00touch canary"
HOSTILE = {  # opcodes that would call something, and what the refusal must name
    "global": (b"cos\nsystem\n" + TOUCH + b"\x85R", "os.system"),
    "stack global": (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93" + TOUCH + b"\x85R", "os.system"),
    "built-in": (b"c__builtin__\neval\n" + TOUCH + b"\x85R", "__builtin__.eval"),
    "extension": (b"\x82\x01", "extension"),
    "state of a tensor type": (b"ctorch\nFloatStorage\n}X\x01\x00\x00\x00aNsb", "damaged"),
    "numpy": (b"cnumpy.core.multiarray\n_reconstruct\n)R", "numpy.core.multiarray._reconstruct"),
    "torch itself": (b"ctorch.serialization\nload\n" + TOUCH + b"\x85R", "torch.serialization.load"),
    "dotted": (b"ccollections\nOrderedDict.fromkeys\n" + TOUCH + b"\x85R", "OrderedDict.fromkeys"),
    "a module": (b"ctorchvision.models.vgg\nVGG\n)\x81", "torchvision.models.vgg.VGG"),
}


@pytest.mark.parametrize("way", HOSTILE)
def test_nothing_that_is_pickled_runs(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    (opcodes, named), storages = HOSTILE[way], {}
    evil = b"\x80\x02" + torch_opcodes(SMALL, storages) + plain_opcodes("extra") + opcodes + b"s."
    archive, legacy = write_archive(tmp_path / "archive.pth", evil, storages), tmp_path / "legacy.pth"
    legacy.write_bytes(LEGACY_HEAD + evil + pickle.dumps([], 2))
    for path in (archive, legacy):
        assert named in refusal_of(path) and not (tmp_path / "canary").exists()
    if way == "global":  # Python itself would have run it
        pickle.loads(b"\x80\x02" + opcodes + b".")
        assert (tmp_path / "canary").exists()


TENSOR = (b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
          b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ")
LARGE = b"\x8a\x0a" + (2**70).to_bytes(10, "little")
SENSELESS = (
    b"})" + b"\x85" * 200_000 + b"Ns",  # a key that is a tuple in a tuple in a tuple: hashing it exhausts the stack
    b"Nr\xff\xff\xff\x7f",  # place 2**31 of the table of objects
    b"\x8e" + (2**40).to_bytes(8, "little"),  # 2**40 bytes
    b"0" * 50, b"R", b"(NNNNNtQ",
    TENSOR + b"K\x00(K\x05t(K\x01t\x89NtR",  # more numbers than there are
    TENSOR + b"J\xff\xff\xff\xff(K\x01t(K\x01t\x89NtR",  # an offset below 0
    TENSOR + b"K\x00(K\x02t(J\xff\xff\xff\xfft\x89NtR",  # a stride below 0
    TENSOR + b"K\x00(K\x02K\x02t(K\x01t\x89NtR",  # fewer strides than sides
    TENSOR + b"K\x00(K\x00" + LARGE + b"t(K\x01K\x01t\x89NtR",  # a side that no memory has
    TENSOR + b"K\x00(X\x01\x00\x00\x00a" + LARGE + b"t(K\x01K\x01t\x89NtR")  # a text 2**70 times


def test_pickles_that_make_no_sense_are_refused(tmp_path):
    for opcodes in SENSELESS:
        pickled = b"\x80\x02}" + plain_opcodes("features.0.weight") + opcodes + b"s."
        path = write_archive(tmp_path / "a.pth", pickled, {"0": np.ones(4, np.float32)})
        assert "cannot be read as a PyTorch file" in refusal_of(path), opcodes[-12:]


def test_archives_that_claim_more_than_they_hold_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10 << 20))
    assert "more bytes than the file has" in refusal_of(path)
    header = b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refusal_of(path)


def test_a_state_of_the_first_version_lacks_newer_keys():
    config = get_config(["--pre_trained=gone.pth"])
    settings = config.model_dump(mode="json") | {"network": "vgg11"}
    del settings["hidden_units"]
    found = without_file(config, settings)
    assert (found.network, found.hidden_units) == ("vgg11", config.hidden_units)
