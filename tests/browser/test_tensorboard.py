"""TensorBoard on a sweep: the HParams scatter and the Pareto images, as a user sees them."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from nas.report import report

RUNS = 6
