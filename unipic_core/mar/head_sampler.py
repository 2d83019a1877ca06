"""Ancestral sampling of the diffusion head with all that does not depend on the noisy tokens taken out of its loop."""

import torch
import torch.nn.functional as F

from .diffusion import alphas_cumprod, posterior, respaced_steps
from .head import EPS, DiffusionHead

CHUNK_ELEMENTS = 2**22  # modulations held at once; on a GPU 16 times as many
ROW_BUCKET = 64  # CUDA graphs are captured for multiples of this many rows


class HeadSampler:
    """Denoises rows of tokens with one head; made for one sampling run, while the weights stay where they are.

    A residual block computes x + g·mlp(norm(x)·(1 + scale) + shift). Shift, scale and gate come from the condition and
    the time alone, so those of all blocks and of many steps are one matrix product, with the norm's own weight and bias
    folded in. Of the state only the conditional rows are kept: both halves of the guidance start a step from them.
    """

    @torch.no_grad()
    def __init__(self, head: DiffusionHead):
        net = head.net
        self.net = net
        self.modulation_weight, self.modulation_bias = _stacked_modulations(net)
        self.layers = [
            (block.mlp[0].bias, block.mlp[0].weight.t(), block.mlp[2].bias, block.mlp[2].weight.t())
            for block in net.res_blocks
        ]
        self.input = (net.input_proj.bias, net.input_proj.weight.t())
        self.output = (net.final_layer.linear.bias, net.final_layer.linear.weight.t())
        self.schedules = {}
        self.graphs = {}

    def schedule(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For `count` steps, from noise to data: time embeddings [count, width] and coefficients [count, 4]."""
        if count not in self.schedules:
            steps = respaced_steps(count)
            c = posterior(alphas_cumprod()[steps])
            # x' = x·a + ε·b + noise·exp(offset + slope·v): the update written in x, ε and the head's v in [−1, 1].
            a = c["mean_from_x0"] * c["x0_from_x"] + c["mean_from_x"]
            b = -c["mean_from_x0"] * c["x0_from_eps"]
            offset, slope = (c["log_max"] + c["log_min"]) / 4, (c["log_max"] - c["log_min"]) / 4
            device = self.modulation_bias.device
            table = torch.stack([a, b, offset, slope], dim=1).flip(0).float().to(device)
            self.schedules[count] = self.net.time_embed(torch.tensor(steps[::-1], device=device)), table
        return self.schedules[count]

    @torch.no_grad()
    def sample(
        self, conditions: torch.Tensor, x: torch.Tensor, noise: torch.Tensor | None, steps: int, cfg: float
    ) -> torch.Tensor:
        """Denoise N tokens.

        Args:
            conditions: [1, N, decoder width], or with guidance [2, N, decoder width], the unconditional ones second.
            x: what the head starts from, [N, 16], float32.
            noise: [steps, N, 16], float32, already scaled by the temperature; None for temperature 0.
            steps: reverse steps, at most 1000.
            cfg: guidance scale; the ε of both halves are mixed, the variance is the conditional half's.

        Returns:
            [N, 16], float32.
        """
        rows = x.shape[0]
        if x.is_cuda and (spare := -rows % ROW_BUCKET):
            conditions = F.pad(conditions, (0, 0, 0, spare))
            x = F.pad(x, (0, 0, 0, spare))
            noise = None if noise is None else F.pad(noise, (0, 0, 0, spare))
        embedded = self.net.cond_embed(conditions.flatten(0, 1))
        times, table = self.schedule(steps)
        scale = torch.full((), cfg, device=x.device)

        budget = CHUNK_ELEMENTS * (16 if x.is_cuda else 1)
        chunk = max(1, min(steps, budget // (len(embedded) * self.modulation_bias.numel())))
        run = self._graphed if x.is_cuda else self._steps
        for start in range(0, steps, chunk):
            part = slice(start, start + chunk)
            x = run(x, embedded, scale, times[part], table[part], None if noise is None else noise[part])
        return x[:rows]

    def _steps(self, x, embedded, scale, times, table, noise):
        """As many reverse steps of `x` as there are `times`; `embedded` are the conditions of the one or two halves."""
        modulations, guided = self._modulations(embedded, times), len(embedded) > len(x)
        scalars = table.flatten().unbind()
        noises = None if noise is None else noise.unbind()
        for step in range(len(times)):
            a, b, offset, slope = scalars[4 * step : 4 * step + 4]
            output = self._predict(torch.cat([x, x]) if guided else x, modulations[step :: len(times)])
            if guided:
                output, unconditional = output.chunk(2)
            eps, variance = output.chunk(2, dim=1)
            if guided:
                eps = torch.lerp(unconditional.narrow(1, 0, eps.shape[1]), eps, scale)
            x = (x * a).addcmul_(eps, b)
            if noises is not None:
                x.addcmul_(torch.addcmul(offset, variance, slope).exp_(), noises[step])
        return x

    def _modulations(self, embedded, times) -> tuple[torch.Tensor, ...]:
        """[rows, width] for the first modulation at each of the times, for the second at each, and so on."""
        y = F.silu(times[:, None] + embedded)
        each = y.flatten(0, 1).expand(len(self.modulation_bias), -1, -1)
        product = torch.baddbmm(self.modulation_bias, each, self.modulation_weight)
        return product.unflatten(1, y.shape[:2]).flatten(0, 1).unbind()

    def _predict(self, x, modulations):
        hidden = torch.addmm(self.input[0], x.to(self.input[0].dtype), self.input[1])
        width = hidden.shape[1:]
        for number, (bias1, weight1, bias2, weight2) in enumerate(self.layers):
            shift, scale, gate = modulations[3 * number : 3 * number + 3]
            inner = torch.addcmul(shift, F.layer_norm(hidden, width, eps=EPS), scale)
            inner = F.silu(torch.addmm(bias1, inner, weight1), inplace=True)
            hidden = hidden.addcmul_(gate, torch.addmm(bias2, inner, weight2))
        shift, scale = modulations[-2:]
        last = torch.addcmul(shift, F.layer_norm(hidden, width, eps=EPS), scale)
        return torch.addmm(self.output[0], last, self.output[1]).float()

    def _graphed(self, *inputs):
        """`_steps` as one CUDA graph per shape: its hundreds of small kernels are launched together."""
        key = tuple(None if tensor is None else tensor.shape for tensor in inputs)
        if key not in self.graphs:
            held = [None if tensor is None else tensor.clone() for tensor in inputs]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._steps(*held)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self._steps(*held)
            self.graphs[key] = held, graph, result
        held, graph, result = self.graphs[key]
        for mine, given in zip(held, inputs, strict=True):
            if mine is not None:
                mine.copy_(given)
        graph.replay()
        return result.clone()


def _stacked_modulations(net) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [3·blocks + 2, width, width], inputs first, and biases [3·blocks + 2, 1, width] of all modulations.

    They are shift, scale and gate of each block, and the last layer's shift and scale, such that each layer is
    norm(x)·scale + shift with a norm that has no weight and bias of its own.
    """
    weights, biases = [], []
    for block in net.res_blocks:
        shift, scale, gate = block.adaLN_modulation[1].weight.float().chunk(3)
        shift_bias, scale_bias, gate_bias = block.adaLN_modulation[1].bias.float().chunk(3)
        own_scale, own_shift = block.in_ln.weight.float(), block.in_ln.bias.float()
        weights += [shift + own_shift[:, None] * scale, own_scale[:, None] * scale, gate]
        biases += [shift_bias + own_shift * (1 + scale_bias), own_scale * (1 + scale_bias), gate_bias]
    last = net.final_layer.adaLN_modulation[1]
    shift_bias, scale_bias = last.bias.float().chunk(2)
    weights += last.weight.float().chunk(2)
    biases += [shift_bias, 1 + scale_bias]
    dtype = last.weight.dtype
    return torch.stack(weights).transpose(1, 2).contiguous().to(dtype), torch.stack(biases)[:, None].to(dtype)
