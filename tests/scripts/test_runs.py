# SPDX-License-Identifier: Apache-2.0
"""scripts/runs.py: which folders are runs, and what it says of them."""

import shutil

from helpers import ROOT, must_run, run_main, run_python

CONFIG = "network: vgg16\ndataset: imagenet2012\nmax_epoch: 30\n"
METRICS = "epoch,step,loss,lr,images_per_s,seconds,val_top1,val_top5\n1,9,2,0.1,9,3000,0.5,0.9\n2,18,1,0.1,9,700.4,,\n"


def test_a_table_of_the_runs_below_a_folder(tmp_path):
    for name, config, metrics in (
            ("b/20240301_120000", CONFIG, METRICS), ("a/20240302_120000", CONFIG.replace("16", "11"), None),
            ("20240303_120000_eval", CONFIG, None), ("half", CONFIG, METRICS[:70]), ("list", "[]", METRICS),
            ("noise", "a: [1", METRICS), ("other", "lr: 1\n", None)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(config)
        if metrics:
            (tmp_path / name / "metrics.csv").write_text(metrics)
    shutil.copytree(ROOT / "tests" / "files" / "first_version", tmp_path / "20240229_120000")
    done = run_python("-c", "import sys, scripts.runs; scripts.runs.main(); assert 'mindspore' not in sys.modules",
                      cwd=tmp_path)
    assert done.status == 0 and "outputs: there is no such folder" in done.err, done
    rows = [line.split() for line in must_run("scripts.runs", tmp_path).out.splitlines()]
    assert rows[0] == ["date", "network", "data", "epochs", "accuracy", "time", "path"]
    assert [row[0] for row in rows[1:]] == ["2024-02-29", "2024-03-01", "2024-03-02"]
    assert rows[2][1:] == ["vgg16", "imagenet2012", "2/30", "50.00%", "1:01:40", str(tmp_path / "b/20240301_120000")]
    assert rows[3][1:6] == ["vgg11", "imagenet2012", "0/30", "-", "0:00:00"]
    best_last = [line.split()[0] for line in run_main("scripts.runs", tmp_path, "--sort=accuracy").out.splitlines()[1:]]
    assert best_last[0] == "2024-03-02" and best_last[-1] == "2024-03-01"
