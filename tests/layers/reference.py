"""Every method written from its formula, plainly: what the layers are tested against."""

import torch


def per_channel(values, x):
    return values.view(1, -1, *[1] * (x.dim() - 2))


def activated(y, activation, tau):
    if activation == "ReLU":
        return y.clamp(min=0)
    if activation == "TLU":
        tau = per_channel(tau, y).expand_as(y)
        return torch.where(y > tau, y, tau)
    return y


def affine(x_hat, weight, bias):
    return x_hat * per_channel(weight, x_hat) + per_channel(bias, x_hat)


def frn(x, eps):
    """1911.09737, equations 1 and 2, a row at a time."""
    eps = torch.as_tensor(eps).squeeze()
    rows = [[x[n, c] for c in range(x.shape[1])] for n in range(x.shape[0])]
    return torch.stack(
        [torch.stack([row / ((row**2).mean() + eps) ** 0.5 for row in example]) for example in rows]
    )


def group_norm(x, groups, eps):
    """1803.08494, equations 1 to 3, a group at a time."""
    size = x.shape[1] // groups
    examples = []
    for example in x:
        parts = []
        for part in example.split(size):
            mean = part.mean()
            parts.append((part - mean) / (((part - mean) ** 2).mean() + eps) ** 0.5)
        examples.append(torch.cat(parts))
    return torch.stack(examples)


def batch_norm(x, eps):
    """1502.03167, algorithm 1, a channel at a time."""
    channels = []
    for c in range(x.shape[1]):
        values = x[:, c]
        mean = values.mean()
        channels.append((values - mean) / (((values - mean) ** 2).mean() + eps) ** 0.5)
    return torch.stack(channels, dim=1)


def fixed_batch_norm(x, mean, var, eps):
    return (x - per_channel(mean, x)) / (per_channel(var, x) + eps) ** 0.5


def weight_standardization(weight, dialect, out_dim=0):
    """1903.10520, equations 2 to 4, an output channel at a time."""
    filters = []
    for w in weight.unbind(out_dim):
        centred = w - w.mean()
        if dialect == "jhu":
            deviation = ((centred**2).sum() / (w.numel() - 1)) ** 0.5
            filters.append(centred / (deviation + 1e-5))
        else:
            filters.append(centred / ((centred**2).mean() + 1e-6) ** 0.5)
    return torch.stack(filters, dim=out_dim)
