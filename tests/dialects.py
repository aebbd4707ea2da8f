# SPDX-License-Identifier: Apache-2.0
"""One recipe in three dialects: MindCV's, the model zoo's and our own; and short files in MindCV's."""

from helpers import ROOT, read_recipe

from model_utils.schema import Config

MINDCV = """\
model: 'vgg16'
pretrained: False
ckpt_path: ''
num_classes: 1000
mode: 0
distribute: True
num_parallel_workers: 8
val_while_train: True
dataset: 'imagenet'
data_dir: 'path/to/imagenet'
shuffle: True
dataset_download: False
image_resize: 224
scale: [0.08, 1.0]
ratio: [0.75, 1.333]
hflip: 0.5
interpolation: 'bilinear'
crop_pct: 0.875
batch_size: 32
drop_remainder: True
epoch_size: 200
ckpt_save_dir: './ckpt'
keep_checkpoint_max: 10
dataset_sink_mode: True
amp_level: 'O2'
loss: 'CE'
label_smoothing: 0.1
opt: 'momentum'
momentum: 0.9
use_nesterov: False
weight_decay: 0.00004
filter_bias_and_bn: True
loss_scale: 1024
scheduler: 'warmup_cosine_decay'
lr: 0.01
min_lr: 0.0001
warmup_epochs: 2
decay_epochs: 198
"""

MODEL_ZOO = """\
enable_modelarts: False
data_url: ""
train_url: ""
checkpoint_url: ""
data_path: "/cache/data"
output_path: "/cache/train"
device_target: "auto"
need_modelarts_dataset_unzip: True
modelarts_dataset_unzip_name: ""

dataset: "imagenet2012"
data_dir: "path/to/imagenet"
mode: "train_and_evaluate"
num_parallel_workers: 8
num_classes: 1000
lr: 0.01
lr_epochs: '30,60,90,120'
lr_scheduler: "cosine_annealing"
eta_min: 1e-4
warmup_epochs: 2
batch_size: 32
max_epoch: 200
momentum: 0.9
weight_decay: 4e-5
loss_scale: 1024
label_smooth: 1
label_smooth_factor: 0.1
image_size: '224,224'
ratio: '0.75,1.333'
pad_mode: 'pad'
padding: 1
has_bias: False
batch_norm: False
keep_checkpoint_max: 10
ckpt_interval: 1
seed: 42
initialize_mode: "KaimingNormal"
has_dropout: True
amp_level: "O2"
dataset_sink_mode: True
is_distributed: 1
pre_trained: ""
ckpt_path: "./ckpt"
file_name: "vgg16"
file_format: "MINDIR"
dataset_name: "cifar10"
result_path: "./preprocess_Result/"
---
max_epoch: "Epoch size"
---
file_format: ["AIR", "MINDIR"]
"""

OWN = f"""\
base: {ROOT / 'imagenet2012_config.yaml'}
data_dir: path/to/imagenet
mode: train_and_evaluate
is_distributed: True
num_parallel_workers: 8
ratio: [0.75, 1.333]
eta_min: 0.0001
warmup_epochs: 2
max_epoch: 200
weight_decay: 4e-5
amp_level: O2
dataset_sink_mode: True
ckpt_path: ./ckpt
dataset_name: cifar10
has_bias: False
seed: 42
ckpt_interval: 1
lr_base_batch: 64
modelarts_dataset_unzip_name: ""
"""

NEEDED = "model: vgg16\nopt: momentum\n"  # what makes a file MindCV's, and keeps it quiet


def mindcv(folder, text: str, *flags: str) -> Config:
    return read_recipe(folder, NEEDED + text, *flags)
