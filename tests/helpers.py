# SPDX-License-Identifier: Apache-2.0
"""What the tests train and run on: small data in the real on-disk formats, and the entry scripts as users call them."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from model_utils.config import get_config
from model_utils.device_adapter import Rank
from model_utils.schema import Config
from src.data.tfrecord import field, frame, varint

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--network=vgg11", "--width=0.125", "--image_size=32", "--device_target=CPU")  # a network that compiles fast
PLAIN = ("--batch_norm=False", "--has_dropout=False", "--width=0.014")  # faster still: the CPU's forms are left out
TRAIN_COUNT, TEST_COUNT = 80, 37  # neither a multiple of the other's batches, and 37 of none


class Split(NamedTuple):
    """Images [N, H, W, 3] and labels [N] in the order of their files."""

    images: np.ndarray
    labels: np.ndarray


class Cifar(NamedTuple):
    """A CIFAR-10 tree and what was written into it."""

    folder: Path
    train: Split
    test: Split


def make_split(count: int, seed: int) -> Split:
    """Images of noise around a brightness that follows from the label, so that there is something to learn."""
    random = np.random.RandomState(seed)
    labels = random.permutation(np.arange(count) % 10).astype(np.uint8)
    noise = random.randint(0, 200, (count, 32, 32, 3))
    return Split((noise + 2 * labels[:, None, None, None]).astype(np.uint8), labels)


def cifar_records(split: Split) -> np.ndarray:
    """One row per image: the label, then the red, the green and the blue plane."""
    planes = split.images.transpose(0, 3, 1, 2).reshape(len(split.labels), -1)
    return np.concatenate([split.labels[:, None], planes], axis=1)


def write_cifar10(root: Path, *, single_folder: bool = False) -> Cifar:
    """A tree as it is published: five training files and a test file, in two folders or in a single one."""
    train_folder = root / "cifar-10-batches-bin"
    test_folder = train_folder if single_folder else root / "cifar-10-verify-bin"
    train, test = make_split(TRAIN_COUNT, seed=1), make_split(TEST_COUNT, seed=2)
    for folder in (train_folder, test_folder):
        folder.mkdir(parents=True, exist_ok=True)
    parts = np.array_split(cifar_records(train), 5)
    for number in (3, 1, 5, 2, 4):  # not in order, because folders are not read in order either
        (train_folder / f"data_batch_{number}.bin").write_bytes(parts[number - 1].tobytes())
    (test_folder / "test_batch.bin").write_bytes(cifar_records(test).tobytes())
    return Cifar(root, train, test)


def write_image(path: Path, image: np.ndarray) -> None:
    """An RGB image as JPEG, PNG and so on, by the ending of the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    path.write_bytes(encoded.tobytes())


def write_class_folders(root: Path, *, classes: Sequence[str] = ("ant", "bee", "cow"), each: int = 5,
                        splits: Sequence[str] = ("train", "val")) -> Path:
    """`<split>/<class>/` with `each` images: JPEG and PNG, portrait and landscape, all of different sizes."""
    random = np.random.RandomState(3)
    endings = (".jpg", ".png", ".JPEG")
    for split in splits:
        for name in classes:
            for number in range(each):
                height, width = random.randint(40, 90, size=2)
                image = random.randint(0, 256, (height, width, 3)).astype(np.uint8)
                write_image(root / split / name / f"{number}{endings[number % len(endings)]}", image)
    return root


def write_recipe(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read_recipe(folder: Path, text: str, *flags: str) -> Config:
    """The Config of a recipe with this text and of some flags."""
    return get_config(["-c", str(write_recipe(folder, text)), *flags])


def weights_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, as MindSpore reads them."""
    import mindspore

    values = mindspore.load_checkpoint(str(checkpoint))
    return {name: value.asnumpy() for name, value in values.items() if isinstance(value, mindspore.Parameter)}


class Outcome(NamedTuple):
    """What a user sees of a command."""

    status: int
    out: str
    err: str

    def printed(self) -> str:
        """The output of a command that must have ended well."""
        assert self.status == 0, self
        return self.out

    def refusal(self) -> str:
        """The message of a command that must have ended by a mistake of the user."""
        assert self.status == 2 and "Traceback" not in self.err, self
        return self.err


def run_main(script: str, *args: str) -> Outcome:
    """`python <script>.py args`, in this process: much faster, because MindSpore is loaded already."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = importlib.import_module(script).main([str(arg) for arg in args])
        except SystemExit as end:  # argparse ends this way
            status = end.code
    return Outcome(status, out.getvalue(), err.getvalue())


def must_run(script: str, *args: str) -> Outcome:
    """`run_main` of a command that ends well."""
    done = run_main(script, *args)
    assert done.status == 0, done
    return done


def run_python(*args: str, cwd: Path = ROOT) -> Outcome:
    """`python args` in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
    done = subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True,
                          timeout=300)
    return Outcome(done.returncode, done.stdout, done.stderr)


def program(path: Path, text: str) -> Path:
    """A file that can be run."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def only_folder(root: Path) -> Path:
    """The one run folder under an output root."""
    folders = list(root.iterdir())
    assert len(folders) == 1, folders
    return folders[0]


class Deployed(NamedTuple):
    """An exported model, what it was made from, and what eval.py counts on its test set."""

    data: Path
    checkpoint: Path
    mindir: Path
    onnx: Path
    counts: tuple[int, int, int]  # top-1 right, top-k right, all


def tell_apart(network, images, seed: int = 3) -> None:
    """Give the network a random head whose answers to these images differ: with one answer for all of them, results
    that belong to other images would count as right."""
    from mindspore import Tensor

    head = network.set_train(False).classifier[6]
    head.weight.set_data(Tensor(np.random.RandomState(seed).randn(*head.weight.shape).astype(np.float32)))
    head.bias.set_data(head.bias - network(images).mean(axis=0))


def make_deployed(data: Path, name: Path, *flags: str, export_flags: Sequence[str] = ()) -> Deployed:
    """Export a network with random weights that tells the test images apart."""
    from mindspore import Tensor

    from model_utils.device_adapter import set_up_device
    from src.build import build_network
    from src.deploy.images import dataset_items, prepare
    from src.deploy.model_card import identify_model
    from src.deploy.prepared import open_test_set
    from src.weights.checkpoint import save_checkpoint
    from src.weights.model_info import ModelInfo

    config = get_config([f"--data_dir={data}", "--graph_mode=False", *TINY, *flags])  # op by op: nothing to compile
    network, reader = build_network(config, set_up_device(config)), open_test_set(identify_model(config, None))
    images = Tensor(np.stack([prepare(item.load(), config.preset, photos=reader.photos)
                              for item in dataset_items(reader)]))
    network.set_train()(images)  # BatchNorm gets statistics
    tell_apart(network, images)
    assert len(set(network(images).asnumpy().argmax(axis=1))) > 1 + config.num_classes // 4
    checkpoint = name.with_suffix(".ckpt")
    save_checkpoint(checkpoint, network, ModelInfo.of(config, reader.class_names))
    must_run("export", f"--ckpt_file={checkpoint}", f"--file_name={name}", "--file_format=MINDIR,ONNX",
             "--device_target=CPU", *export_flags)
    must_run("eval", f"--data_dir={data}", f"--dataset={config.dataset}", f"--pre_trained={checkpoint}",
             "--device_target=CPU", f"--ckpt_path={name.parent / 'evaluations'}", "--per_batch_size=16")
    top1, topk, total, *_ = json.loads(next(name.parent.rglob("metrics.json")).read_text()).values()
    return Deployed(data, checkpoint, Path(f"{name}.mindir"), Path(f"{name}.onnx"),
                    (round(top1 * total), round(topk * total), total))


# The same images in every data format, each with a grey of its own


CLASSES = ("ant", "bee", "cow")
COUNTS = {"train": (9, 5, 8), "val": (3, 4, 4)}  # per class; 22 and 11 images, which no batch of the tests divides
PIXELS = ("--image_mean=0,0,0", f"--image_std={1 / 255},{1 / 255},{1 / 255}")  # the input is the pixels, 0 to 255


def write_coloured(root: Path) -> Path:
    """Class folders of PNG images, the n-th of a split in the grey 10 * n."""
    for split, counts in COUNTS.items():
        number = 0
        for name, count in zip(CLASSES, counts, strict=True):
            for _ in range(count):
                grey = np.full(({"train": 40, "val": 80}[split] + number, 50, 3), 10 * number, np.uint8)
                write_image(root / split / name / f"image {number:02}.png", grey)
                number += 1
    return root


def encode_example(features: dict[str, bytes | int]) -> bytes:
    """A tf.train.Example with one value per feature."""
    values = {name: field(3, field(1, varint(value))) if isinstance(value, int) else field(1, field(1, value))
              for name, value in features.items()}
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, value)) for name, value in values.items()))


def example(**features: bytes | int) -> bytes:
    """A record with `image`, `label` or both."""
    names = {"image": "image/encoded", "label": "image/class/label"}
    return frame(encode_example({names[name]: value for name, value in features.items()}))


def write_tfrecords(folders: Path, output: Path, shards: int = 3) -> Path:
    """The images of class folders in shards, as slim writes them."""
    output.mkdir()
    for split, name in (("train", "train"), ("val", "validation")):
        records = [frame(encode_example({
            "image/height": 40, "image/class/label": label, "image/class/synset": folder.name.encode(),
            "image/encoded": path.read_bytes(), "image/filename": path.name.encode()}))
            for label, folder in enumerate(sorted((folders / split).iterdir()), start=1)
            for path in sorted(folder.iterdir())]
        for shard in range(shards):
            part = records[len(records) * shard // shards:len(records) * (shard + 1) // shards]
            (output / f"{name}-{shard:05d}-of-{shards:05d}").write_bytes(b"".join(part))
    return output


def write_mindrecord(folder: Path, rows: Sequence[dict], shards: int = 1, **types: str) -> None:
    """Training rows in MindRecord files, as MindSpore writes them; `types` of the columns."""
    from mindspore.mindrecord import FileWriter

    folder.mkdir(exist_ok=True)
    writer = FileWriter(str(folder / "train.mindrecord"), shards)
    writer.add_schema({name: {"type": kind} for name, kind in types.items()}, "images")
    writer.write_raw_data(list(rows))
    writer.commit()


def convert(source: Path, output: Path, *flags: str, dataset: str = "imagenet2012", classes: int = 3) -> Outcome:
    """scripts/convert_dataset.py, in this process."""
    return run_main("scripts.convert_dataset", f"--output={output}", f"--dataset={dataset}",
                    f"--num_classes={classes}", f"--data_dir={source}", *flags)


def write_lists(root: Path) -> None:
    """Lists of the images in class folders, beside these."""
    for split in ("train", "val"):
        folders = sorted((root / split).glob("*/"))
        lines = [f"{os.path.relpath(image, root)} {label}\n" for label, folder in enumerate(folders)
                 for image in sorted(folder.iterdir())]
        if lines:
            (root / f"{split}_list.txt").write_text("".join(lines), errors="surrogateescape")


def photo_config(data_dir: Path, *flags: str) -> Config:
    """Three classes of photos as inputs of 32x32 pixels, in batches of 4."""
    return get_config(["--dataset=imagenet2012", "--num_classes=3", f"--data_dir={data_dir}", "--image_size=32",
                       "--batch_size=4", *PIXELS, *flags])


def batches(dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True))


def train_batches(config: Config, reader, rank: Rank = Rank(0, 1, 2), epoch: int = 0):  # noqa: B008
    from src.dataset import create_dataset, steps_per_epoch

    steps = steps_per_epoch(reader, batch_size=config.batch_size, world_size=rank.world_size)
    return batches(create_dataset(config, reader, rank, epoch, steps))


def eval_batches(config: Config, reader, rank: Rank = Rank(0, 1, 2)):  # noqa: B008
    from src.dataset import create_eval_dataset

    dataset = create_eval_dataset(config, reader, rank)
    return batches(dataset) if dataset else []


def same(first, second) -> bool:
    """Batches that are equal bit for bit."""
    return len(first) == len(second) and all(np.array_equal(one, two) for rows in zip(first, second, strict=True)
                                             for one, two in zip(*rows, strict=True))


def train_here(*flags: str) -> Outcome:
    """train.py on the folder `data`, writing to `runs`, both in the current folder."""
    return run_main("train", *TINY, "--dataset=imagenet2012", "--num_classes=3", "--data_dir=data", "--batch_size=4",
                    "--ckpt_path=runs", "--max_epoch=1", *PLAIN, *flags)
