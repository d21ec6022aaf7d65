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
    if activation == "leaky_relu":
        return torch.where(y > 0, y, 0.01 * y)
    if activation == "elu":
        return torch.where(y > 0, y, y.exp() - 1)
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


def group_rms(x, groups, eps):
    """GN's groups and FRN's mean square, a group at a time."""
    size = x.shape[1] // groups
    examples = [
        torch.cat([part / ((part**2).mean() + eps) ** 0.5 for part in example.split(size)])
        for example in x
    ]
    return torch.stack(examples)


def mixture(x, x_hat, p, eps):
    """1908.01259, section 3.2, an example at a time, with the attention of its code over GN."""
    examples = []
    for example, normalized in zip(x, x_hat):  # noqa: B905
        seen = []
        for channel in example:
            mean, var = moments(channel)
            seen.append(mean / (var + 1e-3) ** 0.5)
        logits = torch.stack([(row * torch.stack(seen)).sum() for row in p["attention"]])
        mean, var = moments(logits)
        logits = (logits - mean) / (var + eps) ** 0.5 * p["attention_weight"] + p["attention_bias"]
        shares = ((logits + 3) / 6).clamp(0, 1)
        scale, shift = (sum(a * row for a, row in zip(shares, p[n])) for n in ("weight", "bias"))  # noqa: B905
        examples.append(affine(normalized[None], scale, shift)[0])
    return torch.stack(examples)


def evonorm_s0(x, v, groups, eps):
    """2004.02967, table 2, S0, a group at a time; without `v` there is no activation."""
    size = x.shape[1] // groups
    examples = []
    for example, top in zip(x, x if v is None else x / (1 + (-per_channel(v, x) * x).exp())):  # noqa: B905
        parts = zip(example.split(size), top.split(size), strict=True)
        examples.append(torch.cat([t / (moments(part)[1] + eps) ** 0.5 for part, t in parts]))
    return torch.stack(examples)


def evonorm_b0(x, v, batch_var, eps):
    """2004.02967, table 2, B0, an example's channel at a time."""
    examples = []
    for example in x:
        channels = []
        for c, values in enumerate(example):
            by = (batch_var[c] + eps) ** 0.5
            if v is not None:
                own = (moments(values)[1] + eps) ** 0.5
                by = torch.maximum(by.expand_as(values), v[c] * values + own)
            channels.append(values / by)
        examples.append(torch.stack(channels))
    return torch.stack(examples)


def batch_var(x):
    return torch.stack([moments(x[:, c])[1] for c in range(x.shape[1])])


class MovingAverages:
    """2001.06838 as its authors wrote it down, one channel-last step at a time in float64."""

    def __init__(self, channels, buffer, momentum, warmup, open, eps):
        self.squares, self.pushed = [], []
        self.running = torch.ones(channels, dtype=torch.float64)
        self.buffer, self.momentum, self.warmup, self.open = buffer, momentum, warmup, open
        self.eps, self.steps = eps, 0

    def step(self, x, weight, bias, grad):
        """Output, and the gradients of `x`, weight and bias, of a batch `(M, C)`."""
        moving = self.steps >= max(self.buffer, self.warmup)
        self.squares = [*self.squares, (x**2).mean(0)][-self.buffer :]
        s = torch.stack(self.squares).mean(0) if moving else self.squares[-1]
        self.running += self.momentum * (s * len(x) / (len(x) - 1) - self.running)
        r = torch.ones_like(s)
        if self.steps >= max(self.open, self.warmup):
            r = ((s + self.eps) / (self.running + self.eps)).sqrt().clamp(1 / 5, 5)
        z = x / (s + self.eps).sqrt()
        back = grad * weight * r
        self.pushed = [*self.pushed, (back * z).mean(0)][-self.buffer :]
        along = torch.stack(self.pushed).mean(0) if moving else self.pushed[-1]
        self.steps += 1
        dx = (back - z * along) / (s + self.eps).sqrt()
        return r * z * weight + bias, dx, (grad * r * z).sum(0), grad.sum(0)


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


def moments(values):
    mean = values.mean()
    return mean, ((values - mean) ** 2).mean()


def batch_renorm(x, running_mean, running_var, eps, r_max, d_max):
    """1702.03275, algorithm 1, a channel at a time; r and d are constants to the gradient."""
    channels = []
    for c in range(x.shape[1]):
        mean, var = moments(x[:, c])
        sigma, running_sigma = (var + eps) ** 0.5, (running_var[c] + eps) ** 0.5
        r = min(max(float(sigma / running_sigma), 1 / r_max), r_max)
        d = min(max(float((mean - running_mean[c]) / running_sigma), -d_max), d_max)
        channels.append((x[:, c] - mean) / sigma * r + d)
    return torch.stack(channels, dim=1)


def batch_instance_norm(x, rho, eps, batch_part):
    """1805.07925, equation 3."""
    rho = per_channel(rho, x)
    return rho * batch_part + (1 - rho) * group_norm(x, x.shape[1], eps)


def switch_norm(x, mean_weight, var_weight, eps, running=None):
    """1806.10779, equations 3 to 5, an example's channel at a time; two weights leave IN out."""
    w, v = ([share / sum(p.exp()) for share in p.exp()] for p in (mean_weight, var_weight))
    examples = []
    for example in x:
        channels = []
        for c in range(x.shape[1]):
            batch = moments(x[:, c]) if running is None else (running[0][c], running[1][c])
            parts = [moments(example[c]), moments(example), batch][-len(w) :]
            mean = sum(share * part[0] for share, part in zip(w, parts, strict=True))
            var = sum(share * part[1] for share, part in zip(v, parts, strict=True))
            channels.append((example[c] - mean) / (var + eps) ** 0.5)
        examples.append(torch.stack(channels))
    return torch.stack(examples)


def eval_norm(x, blend, running_mean, running_var, eps):
    """1904.06031 at test time: an example's share and the running averages' as one batch."""
    examples = []
    for example in x:
        channels = []
        for c in range(x.shape[1]):
            mean = blend * example[c].mean() + (1 - blend) * running_mean[c]
            mine, rest = (example[c] ** 2).mean(), running_var[c] + running_mean[c] ** 2
            var = blend * mine + (1 - blend) * rest - mean**2
            channels.append((example[c] - mean) / (var + eps) ** 0.5)
        examples.append(torch.stack(channels))
    return torch.stack(examples)


def mean_only_batch_norm(x):
    """1602.07868, equation 13."""
    return torch.stack([x[:, c] - x[:, c].mean() for c in range(x.shape[1])], dim=1)


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


def weight_norm(v, g, out_dim=0):
    """1602.07868, equation 2, an output channel at a time."""
    pairs = zip(v.unbind(out_dim), g.flatten(), strict=True)
    filters = [gain * w / (w**2).sum() ** 0.5 for w, gain in pairs]
    return torch.stack(filters, dim=out_dim)


def adaptive_weight_standardization(weight, gain, shift, eps, out_dim=0):
    """mmcv's ConvAWS (DetectoRS, 2006.02334), an output channel at a time."""
    filters = []
    for w, a, b in zip(weight.unbind(out_dim), gain.flatten(), shift.flatten(), strict=True):
        centred = w - w.mean()
        variance = (centred**2).sum() / (w.numel() - 1)
        filters.append(a * centred / (variance + eps) ** 0.5 + b)
    return torch.stack(filters, dim=out_dim)


def spectral_norm(weight, out_dim=0):
    """1802.05957, equation 8, by the singular values themselves."""
    return weight / torch.linalg.svdvals(weight.movedim(out_dim, 0).flatten(1))[0]


def weight_centralization(weight, out_dim):
    """2001.06838: a filter at a time, less its mean."""
    filters = [w - w.mean() for w in weight.movedim(out_dim, 0)]
    return torch.stack(filters).movedim(0, out_dim)
