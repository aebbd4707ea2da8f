# SPDX-License-Identifier: Apache-2.0
"""These tests run networks op by op; the tests after them get the mode that was set before."""

import mindspore
import pytest


@pytest.fixture(autouse=True, scope="module")
def mode():
    before = mindspore.get_context("mode")
    yield
    mindspore.set_context(mode=before)
