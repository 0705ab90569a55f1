"""Tensors of the kinds that torch warns of when they are made."""

import warnings

import torch


def quietly(make):
    """`make` without torch's warnings that what it makes is young, or to go."""

    def made(*args):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return make(*args)

    return made


sparse = quietly(torch.Tensor.to_sparse)
sparse_rows = quietly(torch.Tensor.to_sparse_csr)
mkldnn = quietly(torch.Tensor.to_mkldnn)


@quietly
def quantized(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8)


@quietly
def nested(*shape):
    """Of the layout that claims to be strided; its first part is longer by one."""
    parts = [torch.zeros(shape[1] + (not i), *shape[2:]) for i in range(shape[0])]
    return torch.nested.nested_tensor(parts)


@quietly
def jagged(*shape):
    parts = [torch.zeros(shape[1:]) for _ in range(shape[0])]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)
