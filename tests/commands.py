# SPDX-License-Identifier: Apache-2.0
"""Every command that the older projects' READMEs print, and how it is typed here. The README shows this table too.

The second of each pair is run by test_commands.py, in a folder that looks like the project and holds `data` (CIFAR-10),
`imagenet` (class folders), `rank_table.json`, two checkpoints and an exported model. `python tests/commands.py en|zh`
prints the README's section.
"""

import sys
from typing import NamedTuple

MODEL_ZOO, MINDCV, MODEL_ZOO_CN, PYTORCH, TENSORFLOW = range(5)
TITLES = {
    "en": ("the model zoo's VGG16 (English README)", "MindCV", "the model zoo's VGG16 (Chinese README)",
           "VGG for PyTorch on GCU", "VGG for TensorFlow on Ascend"),
    "zh": ("model zoo 的 VGG16（英文 README）", "MindCV", "model zoo 的 VGG16（中文 README）",
           "GCU 上的 PyTorch 版 VGG", "Ascend 上的 TensorFlow 版 VGG"),
}


class Command(NamedTuple):
    """A command of another project; `in_suite` for the one of each that is not marked slow."""

    source: int
    printed: str
    run: str
    expect: str  # what its output or its log says: a pattern
    folder: str = "."
    in_suite: bool = False


LOSS, ACC, TOP1 = r"epoch: 1 step: 2, loss is", r"result: \{'acc': 0\.\d{4}\}", r"after allreduce eval: top1_correct="

PERFORMANCE = ("--batch-size=192 --num_classes=1000 --epochs=1 --model=vgg16 --workers=8 "
               "--training_step_per_epoch=300 --eval_step_per_epoch=300 --dropout_rate=0.0 --lr=0.01 --print-freq=20 "
               "--skip_steps=5")
CONVERGENCE = ("--batch-size=192 --num_classes=1000 --epochs=90 --model=vgg16 --workers=8 "
               "--training_step_per_epoch=-1 --eval_step_per_epoch=-1 --dropout_rate=0.5 --lr=0.01 --print-freq=20 "
               "--skip_steps=5")
TORCH_LAUNCH = ("python -u -m torch.distributed.launch --nproc_per_node=8 --master_addr=127.0.0.1 "
                "--master_port=34568 --use_env train.py")
MSRUN = "msrun --worker_num=2 --local_worker_num=2 --join=True --master_port=34568 --tail_worker_log=0 train.py"
GCU = "--device=gcu --data-path=imagenet_raw"
CPU = "--config_path=imagenet2012_config.yaml --device=CPU --data-path=imagenet"

COMMANDS = (
    Command(MODEL_ZOO, "python train.py  --data_path=[DATA_PATH] --device_id=[DEVICE_ID] > output.train.log 2>&1 &",
            "python train.py  --data_path=data --device_id=0 > output.train.log 2>&1 &", LOSS, in_suite=True),
    Command(MODEL_ZOO, "sh run_distribute_train.sh [RANL_TABLE_JSON] [DATA_PATH]",
            "DEVICE_TARGET=CPU sh run_distribute_train.sh ../rank_table.json ../data", LOSS, "scripts"),
    Command(MODEL_ZOO, "python eval.py --data_path=[DATA_PATH]  --pre_trained=[PRE_TRAINED] > output.eval.log 2>&1 &",
            "python eval.py --data_path=data  --pre_trained=0-70_781.ckpt > output.eval.log 2>&1 &", ACC),
    Command(MODEL_ZOO, 'python train.py --device_target="GPU" --device_id=[DEVICE_ID] --dataset=[DATASET_TYPE] '
                       "--data_path=[DATA_PATH] > output.train.log 2>&1 &",
            'python train.py --device_target="CPU" --device_id=0 --dataset=cifar10 --data_path=data '
            "> output.train.log 2>&1 &", LOSS),
    Command(MODEL_ZOO, "sh run_distribute_train_gpu.sh [DATA_PATH]",
            "DEVICE_TARGET=CPU DEVICE_NUM=2 sh run_distribute_train_gpu.sh ../data", LOSS, "scripts"),
    Command(MODEL_ZOO, 'python eval.py --device_target="GPU" --device_id=[DEVICE_ID] --dataset=[DATASET_TYPE] '
                       "--data_path=[DATA_PATH]  --pre_trained=[PRE_TRAINED] > output.eval.log 2>&1 &",
            'python eval.py --device_target="CPU" --device_id=0 --dataset=cifar10 --data_path=data  '
            "--pre_trained=0-70_781.ckpt > output.eval.log 2>&1 &", ACC),
    Command(MODEL_ZOO, "python train.py --data_path=your_data_path --device_id=6 > out.train.log 2>&1 &",
            "python train.py --data_path=data --device_id=6 > out.train.log 2>&1 &", LOSS),
    Command(MODEL_ZOO, "sh run_distribute_train.sh rank_table.json your_data_path",
            "DEVICE_TARGET=CPU sh run_distribute_train.sh ../rank_table.json ../data", LOSS, "scripts"),
    Command(MODEL_ZOO, 'python train.py  --device_target="GPU" --dataset="imagenet2012" --is_distributed=0 '
                       "--data_path=$DATA_PATH  > output.train.log 2>&1 &",
            'python train.py  --device_target="CPU" --dataset="imagenet2012" --is_distributed=0 --data_path=imagenet  '
            "> output.train.log 2>&1 &", LOSS),
    Command(MODEL_ZOO, 'bash scripts/run_distribute_train_gpu.sh /path/ImageNet2012/train"',
            "DEVICE_TARGET=CPU DEVICE_NUM=2 bash scripts/run_distribute_train_gpu.sh imagenet/train",
            LOSS),
    Command(MODEL_ZOO, 'python eval.py --data_path=your_data_path --dataset="cifar10" --device_target="Ascend" '
                       "--pre_trained=./*-70-781.ckpt > output.eval.log 2>&1 &",
            'python eval.py --data_path=data --dataset="cifar10" --device_target="CPU" '
            "--pre_trained=./*-70_781.ckpt > output.eval.log 2>&1 &", ACC),
    Command(MODEL_ZOO, 'python eval.py --data_path=your_data_path --dataset="imagenet2012" --device_target="GPU" '
                       "--pre_trained=./*-150-5004.ckpt > output.eval.log 2>&1 &",
            'python eval.py --data_path=imagenet --dataset="imagenet2012" --device_target="CPU" '
            "--pre_trained=./*-150_5004.ckpt > output.eval.log 2>&1 &", TOP1),

    Command(MINDCV, "msrun --bind_core=True --worker_num 8 python train.py --config configs/vgg/vgg16_ascend.yaml "
                    "--data_dir /path/to/imagenet",
            "msrun --bind_core=True --worker_num 2 --local_worker_num 2 --join True python train.py "
            "--config configs/vgg/vgg16_ascend.yaml --data_dir imagenet", LOSS),
    Command(MINDCV, "python train.py --config configs/vgg/vgg16_ascend.yaml --data_dir /path/to/dataset "
                    "--distribute False",
            "python train.py --config configs/vgg/vgg16_ascend.yaml --data_dir imagenet --distribute False", LOSS),
    Command(MINDCV, "python validate.py -c configs/vgg/vgg16_ascend.yaml --data_dir /path/to/imagenet "
                    "--ckpt_path /path/to/ckpt",
            "python eval.py -c configs/vgg/vgg16_ascend.yaml --data_dir imagenet --ckpt_path 0-150_5004.ckpt", TOP1,
            in_suite=True),

    Command(MODEL_ZOO_CN, "python train.py  --config_path=[YAML_CONFIG_PATH] --data_dir=[DATA_PATH] "
                          "--dataset=[DATASET_TYPE] > output.train.log 2>&1 &",
            "python train.py  --config_path=cifar10_config.yaml --data_dir=data --dataset=cifar10 "
            "> output.train.log 2>&1 &", LOSS),
    Command(MODEL_ZOO_CN, "bash scripts/run_distribute_train.sh [RANL_TABLE_JSON] [DATA_PATH] "
                          "--dataset=[DATASET_TYPE]",
            "DEVICE_TARGET=CPU bash scripts/run_distribute_train.sh rank_table.json data --dataset=cifar10", LOSS),
    Command(MODEL_ZOO_CN, "python eval.py --config_path=[YAML_CONFIG_PATH] --data_dir=[DATA_PATH]  "
                          "--pre_trained=[PRE_TRAINED] --dataset=[DATASET_TYPE] > output.eval.log 2>&1 &",
            "python eval.py --config_path=cifar10_config.yaml --data_dir=data  --pre_trained=0-70_781.ckpt "
            "--dataset=cifar10 > output.eval.log 2>&1 &", ACC),
    Command(MODEL_ZOO_CN, 'python train.py --config_path=[YAML_CONFIG_PATH] --device_target="GPU" '
                          "--dataset=[DATASET_TYPE] --data_dir=[DATA_PATH] > output.train.log 2>&1 &",
            'python train.py --config_path=cifar10_config.yaml --device_target="CPU" --dataset=cifar10 '
            "--data_dir=data > output.train.log 2>&1 &", LOSS),
    Command(MODEL_ZOO_CN, "bash scripts/run_distribute_train_gpu.sh [DATA_PATH] --dataset=[DATASET_TYPE]",
            "DEVICE_TARGET=CPU DEVICE_NUM=2 bash scripts/run_distribute_train_gpu.sh data --dataset=cifar10", LOSS),
    Command(MODEL_ZOO_CN, 'python eval.py --config_path=[YAML_CONFIG_PATH] --device_target="GPU" '
                          "--dataset=[DATASET_TYPE] --data_dir=[DATA_PATH]  --pre_trained=[PRE_TRAINED] "
                          "> output.eval.log 2>&1 &",
            'python eval.py --config_path=cifar10_config.yaml --device_target="CPU" --dataset=cifar10 '
            "--data_dir=data  --pre_trained=0-70_781.ckpt > output.eval.log 2>&1 &", ACC),
    Command(MODEL_ZOO_CN, "python train.py --config_path=/dir_to_code/cifar10_config.yaml --data_dir=your_data_path "
                          "> out.train.log 2>&1 &",
            "python train.py --config_path=cifar10_config.yaml --data_dir=data > out.train.log 2>&1 &", LOSS),
    Command(MODEL_ZOO_CN, "bash scripts/run_distribute_train.sh rank_table.json your_data_path",
            "DEVICE_TARGET=CPU bash scripts/run_distribute_train.sh rank_table.json data", LOSS),
    Command(MODEL_ZOO_CN, 'python train.py --config_path=/dir_to_code/imagenet2012_config.yaml '
                          '--device_target="GPU" --dataset="imagenet2012" --is_distributed=0 --data_dir=$DATA_PATH  '
                          "> output.train.log 2>&1 &",
            'python train.py --config_path=imagenet2012_config.yaml --device_target="CPU" --dataset="imagenet2012" '
            "--is_distributed=0 --data_dir=imagenet  > output.train.log 2>&1 &", LOSS),
    Command(MODEL_ZOO_CN, 'bash scripts/run_distribute_train_gpu.sh /path/ImageNet2012/train"',
            "DEVICE_TARGET=CPU DEVICE_NUM=2 bash scripts/run_distribute_train_gpu.sh imagenet/train",
            LOSS),
    Command(MODEL_ZOO_CN, "python eval.py --config_path=/dir_to_code/cifar10_config.yaml --data_dir=your_data_path "
                          '--dataset="cifar10" --device_target="Ascend" --pre_trained=./*-70-781.ckpt '
                          "> output.eval.log 2>&1 &",
            'python eval.py --config_path=cifar10_config.yaml --data_dir=data --dataset="cifar10" '
            '--device_target="CPU" --pre_trained=./*-70_781.ckpt > output.eval.log 2>&1 &', ACC),
    Command(MODEL_ZOO_CN, "python eval.py --config_path=/dir_to_code/cifar10_config.yaml --data_dir=your_data_path "
                          '--dataset="imagenet2012" --device_target="GPU" --pre_trained=./*-150-5004.ckpt '
                          "> output.eval.log 2>&1 &",
            'python eval.py --config_path=cifar10_config.yaml --data_dir=imagenet --dataset="imagenet2012" '
            '--device_target="CPU" --pre_trained=./*-150_5004.ckpt > output.eval.log 2>&1 &', TOP1),
    Command(MODEL_ZOO_CN, "python export.py --config_path [YMAL_CONFIG_PATH] --ckpt_file [CKPT_PATH] "
                          "--file_name [FILE_NAME] --file_format [FILE_FORMAT]",
            "python export.py --config_path cifar10_config.yaml --ckpt_file 0-70_781.ckpt --file_name vgg16_cifar10 "
            "--file_format MINDIR", r"vgg16_cifar10\.mindir", in_suite=True),
    Command(MODEL_ZOO_CN, "bash run_infer_310.sh [MINDIR_PATH] [DATASET_NAME] [DATASET_PATH] [NEED_PREPROCESS] "
                          "[DEVICE_ID]",
            "bash run_infer_310.sh ../vgg16.mindir cifar10 ../data y 0", r"'acc': 0\.\d{4}", "scripts"),

    Command(PYTORCH, f"python -u ./train.py {GCU} {PERFORMANCE}", f"python -u ./train.py {CPU} {PERFORMANCE}",
            r"throughput: ", in_suite=True),
    Command(PYTORCH, f"{TORCH_LAUNCH} {GCU} {PERFORMANCE}", f"{MSRUN} {CPU} {PERFORMANCE}", r"throughput: "),
    Command(PYTORCH, f"python -u ./train.py {GCU} {CONVERGENCE}", f"python -u ./train.py {CPU} {CONVERGENCE}", LOSS),
    Command(PYTORCH, f"{TORCH_LAUNCH} {GCU} {CONVERGENCE}", f"{MSRUN} {CPU} {CONVERGENCE}", LOSS),

    Command(TENSORFLOW, "bash run_1p.sh   # with --datadir= in scripts/train_1p.sh",
            "bash run_1p.sh --datadir=../imagenet", TOP1, "scripts", in_suite=True),
    Command(TENSORFLOW, "bash run_1p.sh   # with --mode=evaluate --datadir= --eval_dir= in scripts/train_1p.sh",
            "bash run_1p.sh --mode=evaluate --datadir=../imagenet --eval_dir=../checkpoints", TOP1, "scripts"),
)

INTRODUCTION = {
    "en": "Below are the commands of the older projects, as their READMEs print them (behind `#`), each followed by\n"
          "what is typed here. The tests run the latter on a CPU. On your card, keep the original `--device_target`,\n"
          "give `--device=Ascend` or `GPU` where `--device=gcu` stands, and leave out `DEVICE_TARGET=CPU`.\n"
          "`data` and `imagenet` stand for your data, `rank_table.json`, `0-70_781.ckpt`, `0-150_5004.ckpt`,\n"
          "`checkpoints` and `vgg16.mindir` for files of yours, and `--num_classes` says how many classes they have.\n"
          "Each line is for itself; `&` leaves it running.\n",
    "zh": "下面是各个旧项目 README 中的命令（`#` 之后）以及在本项目中的写法。测试在 CPU 上运行后者；在您的设备上\n"
          "请保留原来的 `--device_target`（原为 `--device=gcu` 的改为 `Ascend` 或 `GPU`），并去掉 `DEVICE_TARGET`。\n"
          "`data` 和 `imagenet` 代表您的数据，`rank_table.json`、`0-70_781.ckpt`、`0-150_5004.ckpt`、`checkpoints` 和\n"
          "`vgg16.mindir` 代表您的文件，`--num_classes` 是它们的类别数。每行单独执行；`&` 使其在后台运行。\n",
}


def markdown(language: str) -> str:
    """The README's section: for each project, the commands in two lines each, those that come twice once."""
    parts = [INTRODUCTION[language]]
    for source, title in enumerate(TITLES[language]):
        pairs = dict.fromkeys((item.printed, item.folder, item.run) for item in COMMANDS if item.source == source)
        lines = [f"# {printed}\n{run if folder == '.' else f'(cd {folder} && {run})'}\n"
                 for printed, folder, run in pairs]
        parts.append(f"**{title[:1].upper()}{title[1:]}**\n\n```bash\n" + "\n".join(lines) + "```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(markdown(sys.argv[1]), end="")
