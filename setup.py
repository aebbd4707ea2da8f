# SPDX-License-Identifier: Apache-2.0
"""The scripts run from this folder: there is nothing to install but what they need."""

raise SystemExit("this repository is no package to install; run: pip install -r requirements.txt")
