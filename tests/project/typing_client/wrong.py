"""Mistakes that type checkers must see, one in each line that says so."""

import torch
from torch import nn

import rnnjit

rnnjit.compile(3)  # wrong
rnnjit.compile(nn.RNN(2, 3), backend=3)  # wrong
rnnjit.tune(nn.RNN(2, 3), torch.zeros(1, 1, 2), rounds="many")  # wrong
rnnjit.Stream(nn.RNN(2, 3)).step("frame")  # wrong
rnnjit.export_artifact(nn.RNN(2, 3), 3)  # wrong
