"""PixelCNN++ written down from its paper and published code, slowly and without vidgen: the oracle of the tests.

Weights are in the format of the common PyTorch port: a state dict of ``weight_v``, ``weight_g`` and ``bias``.
"""

import itertools
import math

import torch
import torch.nn.functional as F


def random_checkpoint(*, channels=3, resnets=1, filters=8, mixtures=2, seed=0, dtype=torch.float64):
    """A state dict such as the port's ``model.state_dict()`` gives, filled with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def layer(name, shape, outputs):
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator, dtype=dtype)
        state[f"{name}.weight_g"] = 0.5 + torch.rand(
            shape[0], *[1] * (len(shape) - 1), generator=generator, dtype=dtype
        )
        state[f"{name}.weight_v"] = 0.05 * torch.randn(shape, generator=generator, dtype=dtype)

    def conv(name, ins, outs, kernel):
        layer(f"{name}.conv", (outs, ins, *kernel), outs)

    def resnet(name, kernel, skip):
        conv(f"{name}.conv_input", 2 * filters, filters, kernel)
        if skip:
            layer(f"{name}.nin_skip.lin_a", (filters, 2 * skip * filters), filters)
        conv(f"{name}.conv_out", 2 * filters, 2 * filters, kernel)

    for scale in range(3):
        for number in range(resnets + (scale > 0)):
            resnet(f"down_layers.{scale}.u_stream.{number}", (2, 3), 1)
            resnet(f"down_layers.{scale}.ul_stream.{number}", (2, 2), 2)
        for number in range(resnets):
            resnet(f"up_layers.{scale}.u_stream.{number}", (2, 3), 0)
            resnet(f"up_layers.{scale}.ul_stream.{number}", (2, 2), 1)
    for scale in range(2):
        conv(f"downsize_u_stream.{scale}", filters, filters, (2, 3))
        conv(f"downsize_ul_stream.{scale}", filters, filters, (2, 2))
        layer(f"upsize_u_stream.{scale}.deconv", (filters, filters, 2, 3), filters)
        layer(f"upsize_ul_stream.{scale}.deconv", (filters, filters, 2, 2), filters)
    conv("u_init", channels + 1, filters, (2, 3))
    conv("ul_init.0", channels + 1, filters, (1, 3))
    conv("ul_init.1", channels + 1, filters, (2, 1))
    outputs = mixtures * (3 if channels == 1 else 10)
    layer("nin_out.lin_a", (outputs, filters), outputs)
    return state


class Published:
    """The network of a checkpoint. Features are [N, H, W, C], as in the published code."""

    def __init__(self, state):
        self.state = state

    def weight(self, name):
        """v · g / ‖v‖, the norm over all axes but the first."""
        v, g = self.state[f"{name}.weight_v"], self.state[f"{name}.weight_g"]
        return v * g / v.flatten(1).norm(dim=1).reshape(g.shape)

    def conv(self, x, name, pad, stride=1):
        """pad: (top, left, right) rows and columns of zeros."""
        top, left, right = pad
        padded = F.pad(x.permute(0, 3, 1, 2), (left, right, top, 0))
        return F.conv2d(padded, self.weight(f"{name}.conv"), self.state[f"{name}.conv.bias"], stride).permute(
            0, 2, 3, 1
        )

    def down_shifted(self, x, name, stride=1):
        rows, columns = self.state[f"{name}.conv.weight_v"].shape[2:]
        return self.conv(x, name, (rows - 1, (columns - 1) // 2, (columns - 1) // 2), stride)

    def down_right_shifted(self, x, name, stride=1):
        rows, columns = self.state[f"{name}.conv.weight_v"].shape[2:]
        return self.conv(x, name, (rows - 1, columns - 1, 0), stride)

    def deconv(self, x, name, like, *, centred):
        """Every pixel's patch is added to twice its place; of the columns before the first, if centred, one is cut."""
        weight = self.weight(f"{name}.deconv")
        n, height, width, _ = x.shape
        _, outs, rows, columns = weight.shape
        y = x.new_zeros(n, 2 * height + rows - 1, 2 * width + columns - 1, outs)
        for i, j, p, q in itertools.product(range(height), range(width), range(rows), range(columns)):
            y[:, 2 * i + p, 2 * j + q] += x[:, i, j] @ weight[:, :, p, q]
        y = y + self.state[f"{name}.deconv.bias"]
        first = (columns - 1) // 2 if centred else 0
        return y[:, : like.shape[1], first : first + like.shape[2]]

    def nin(self, x, name):
        return x @ self.weight(f"{name}.lin_a").T + self.state[f"{name}.lin_a.bias"]

    def gated_resnet(self, x, name, conv, a=None):
        def concat_elu(t):
            return F.elu(torch.cat([t, -t], dim=3))

        c1 = conv(concat_elu(x), f"{name}.conv_input")
        if a is not None:
            c1 = c1 + self.nin(concat_elu(a), f"{name}.nin_skip")
        c2 = conv(concat_elu(c1), f"{name}.conv_out")
        first, second = c2.chunk(2, dim=3)
        return x + first * torch.sigmoid(second)

    def __call__(self, x):
        """x (N, C, H, W) in [-1, 1] -> (N, 10K or 3K, H, W)."""
        x = x.permute(0, 2, 3, 1)
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=3)

        def down_shift(t):
            return torch.cat([torch.zeros_like(t[:, :1]), t[:, :-1]], dim=1)

        def right_shift(t):
            return torch.cat([torch.zeros_like(t[:, :, :1]), t[:, :, :-1]], dim=2)

        resnets = 1 + max(int(name.split(".")[3]) for name in self.state if name.startswith("up_layers.0.u_stream"))
        u_list = [down_shift(self.down_shifted(x, "u_init"))]
        ul_list = [down_shift(self.down_shifted(x, "ul_init.0")) + right_shift(self.down_right_shifted(x, "ul_init.1"))]
        for scale in range(3):
            for k in range(resnets):
                layer = f"up_layers.{scale}"
                u_list.append(self.gated_resnet(u_list[-1], f"{layer}.u_stream.{k}", self.down_shifted))
                ul_list.append(
                    self.gated_resnet(ul_list[-1], f"{layer}.ul_stream.{k}", self.down_right_shifted, u_list[-1])
                )
            if scale < 2:
                u_list.append(self.down_shifted(u_list[-1], f"downsize_u_stream.{scale}", 2))
                ul_list.append(self.down_right_shifted(ul_list[-1], f"downsize_ul_stream.{scale}", 2))
        u, ul = u_list.pop(), ul_list.pop()
        for scale in range(3):
            for k in range(resnets + (scale > 0)):
                layer = f"down_layers.{scale}"
                u = self.gated_resnet(u, f"{layer}.u_stream.{k}", self.down_shifted, u_list.pop())
                aux = torch.cat([u, ul_list.pop()], dim=3)
                ul = self.gated_resnet(ul, f"{layer}.ul_stream.{k}", self.down_right_shifted, aux)
            if scale < 2:
                u = self.deconv(u, f"upsize_u_stream.{scale}", u_list[-1], centred=True)
                ul = self.deconv(ul, f"upsize_ul_stream.{scale}", ul_list[-1], centred=False)
        assert not u_list
        assert not ul_list
        return self.nin(F.elu(ul), "nin_out").permute(0, 3, 1, 2)


def published_loss(params, x):
    """The log-likelihood that the published loss is made of: RGB, 8 bits; layout (N, H, W, channels) as there."""
    x, params = x.permute(0, 2, 3, 1), params.permute(0, 2, 3, 1)
    n, h, w, _ = x.shape
    k = params.shape[3] // 10
    logits, rest = params[..., :k], params[..., k:].reshape(n, h, w, 3, 3 * k)
    means, log_scales = rest[..., :k], torch.maximum(rest[..., k : 2 * k], torch.tensor(-7.0, dtype=x.dtype))
    coeffs = torch.tanh(rest[..., 2 * k :])
    x = x[..., None].expand(n, h, w, 3, k)
    m2 = means[..., 1, :] + coeffs[..., 0, :] * x[..., 0, :]
    m3 = means[..., 2, :] + coeffs[..., 1, :] * x[..., 0, :] + coeffs[..., 2, :] * x[..., 1, :]
    centered = x - torch.stack([means[..., 0, :], m2, m3], dim=3)
    inv_stdv = torch.exp(-log_scales)
    plus_in, min_in, mid_in = (inv_stdv * (centered + shift) for shift in (1 / 255, -1 / 255, 0.0))

    def softplus(t):
        return torch.logaddexp(t, torch.zeros_like(t))

    cdf_delta = torch.sigmoid(plus_in) - torch.sigmoid(min_in)
    log_pdf_mid = mid_in - log_scales - 2 * softplus(mid_in)
    log_probs = torch.where(
        x < -0.999,
        plus_in - softplus(plus_in),
        torch.where(
            x > 0.999,
            -softplus(min_in),
            torch.where(cdf_delta > 1e-5, torch.log(cdf_delta.clamp(min=1e-12)), log_pdf_mid - math.log(127.5)),
        ),
    )
    log_probs = log_probs.sum(dim=3) + torch.log_softmax(logits, dim=-1)
    return torch.logsumexp(log_probs, dim=-1).sum(dim=(1, 2))
