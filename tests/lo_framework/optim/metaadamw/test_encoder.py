"""MetaAdamW's encoder: torch's own layer with copied weights, published sizes, its fast form
without derivatives.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lo_framework.learned.attention import Attention, AttentionConfig
from lo_framework.learned.encoder import Block
from lo_framework.optim import MetaAdamW
from lo_framework.optim.metaadamw.factors import FastEncoder
from lo_framework.optim.metaadamw.training import penalty, trained_names
from tests.lo_framework.optim.metaadamw import math_tools as tools
from tests.lo_framework.optim.metaadamw.settings import build

SIZES = {
    (6, 6, 16, 8): 3_276,
    (6, 6, 64, 64): 65_948,
    (6, 6, 64, 128): 131_868,
    (11, 11, 64, 64): 131_568,
}
PENALTIES = {
    (6, 6, 16, 8): 0.014,
    (6, 6, 64, 64): 0.122,
    (6, 6, 64, 128): 0.245,
    (11, 11, 64, 64): 0.156,
}


def torch_layer(block: Block, width: int, hidden: int) -> nn.TransformerEncoderLayer:
    """With the weights of ``block``."""
    layer = nn.TransformerEncoderLayer(
        width, block.heads, hidden, 0.0, batch_first=True, norm_first=True
    )
    weights = {
        "self_attn.in_proj_weight": block.qkv,
        "self_attn.in_proj_bias": block.qkv_bias,
        "linear2.weight": block.down,
        "self_attn.out_proj.weight": block.out,
        "self_attn.out_proj.bias": block.out_bias,
        "linear1.weight": block.up,
        "linear1.bias": block.up_bias,
        "linear2.bias": block.down_bias,
        "norm1.weight": block.gains[0],
        "norm1.bias": block.shifts[0],
        "norm2.weight": block.gains[1],
        "norm2.bias": block.shifts[1],
    }
    layer = layer.to(block.qkv.dtype)
    own = dict(layer.named_parameters())
    assert own.keys() == weights.keys()
    layer.load_state_dict(
        {name: x.detach().reshape(own[name].shape) for name, x in weights.items()}
    )
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("width", "heads", "hidden"), [(8, 2, 12), (6, 6, 16), (4, 1, 3)])
def test_an_affine_block_equals_torchs_layer(
    width: int, heads: int, hidden: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    block = Block(width, heads, generator, hidden, affine=True).to(dtype)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=dtype))
    x = 3 * torch.randn(width, 5, generator=generator, dtype=dtype)
    expected = torch_layer(block, width, hidden)(x.T[None])[0].T
    atol = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(block(x), expected, rtol=0, atol=atol)


def published(width: int, heads: int, hidden: int, layers: int) -> MetaAdamW:
    sizes = {"width": width, "heads": heads, "hidden_units": hidden, "layers": layers}
    features = "basic" if width == 6 else "basic_plus"
    return build(
        [nn.Parameter(torch.ones(2))], reproduce="reference", network=sizes, features=features
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_published_sizes_have_the_published_numbers_of_parameters(
    size: tuple[int, int, int, int],
) -> None:
    """L (4 D^2 + 2 D W + 9 D + W) + 4 D + 4; embeddings and gates come on top, AdamW's settings are
    not trained.
    """
    width, _, hidden, layers = size
    optimizer = published(*size)
    own = dict(optimizer.network.named_parameters())
    count = sum(own[name].numel() for name in trained_names(optimizer.network, optimizer.variant))
    assert (
        count
        == layers * (4 * width**2 + 2 * width * hidden + 9 * width + hidden) + 4 * width + 4
        == SIZES[size]
    )


@pytest.mark.parametrize("size", PENALTIES)
def test_the_released_penalty_has_the_logged_size(size: tuple[int, int, int, int]) -> None:
    """1e-4 times the sum of unsquared norms of torch's tensors: a layer has twelve, a head's bias
    does not count.
    """
    optimizer = published(*size)
    found = float(penalty(optimizer.network, optimizer.variant).detach())
    layers = [torch_layer(b, size[0], size[2]) for b in optimizer.network.blocks]  # type: ignore[arg-type]
    tensors = [p for layer in layers for p in layer.parameters()] + [optimizer.network.head]
    assert found == pytest.approx(1e-4 * sum(float(p.detach().norm()) for p in tensors), rel=1e-5)
    assert found == pytest.approx(PENALTIES[size], abs=2e-3)


def test_a_published_network_starts_as_torchs_does() -> None:
    """Xavier-uniform matrices, output bias 0, the rest torch's defaults; no factor is 1."""
    network = published(6, 6, 16, 8).network
    for block in network.blocks:
        for w in (block.qkv, block.out, block.up, block.down):
            bound = (6 / sum(w.shape)) ** 0.5
            assert 0.8 * bound < w.abs().max() <= bound
        assert not (block.qkv_bias.any() or block.out_bias.any() or block.shifts.any())
        assert bool((block.gains == 1).all())
        for bias, inputs in ((block.up_bias, 6), (block.down_bias, 16)):
            assert 0 < bias.abs().max() <= inputs**-0.5
    assert not network.head_bias.any() and network.head.any()


def network_of(encoder: str, dtype: torch.dtype = torch.float32) -> Attention:
    head = {"own": "exp", "published": "bounded"}[encoder]
    config = AttentionConfig(
        encoder=encoder, head=head, width=12, heads=3, layers=3, features="basic", head_scale=0.3
    )
    network = Attention(config).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(dtype))
    return network


def inputs_of(network: Attention) -> Tensor:
    columns = 12 if network.config.encoder == "published" else network.spec.columns
    return torch.randn(columns, 5, generator=torch.Generator().manual_seed(2)).to(
        network.head.dtype
    )


def check_inference(network: Attention, inference: FastEncoder, atol: float = 1e-6) -> None:
    tokens = inputs_of(network)
    with torch.no_grad():
        expected, found = network.raw(network.encode(tokens)), inference(tokens)
    scale = expected.abs().max().clamp_min(1.0)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=atol)


def test_a_tensor_of_zeros_has_no_slope_in_the_penalty() -> None:
    """As the norm of torch has it: biases of attention start at 0, and losses move them."""
    optimizer = published(6, 6, 16, 2)
    penalty(optimizer.network, optimizer.variant).backward()
    zeros = 0
    for name, w in optimizer.network.blocks.named_parameters():
        assert w.grad is not None
        two = name.endswith(("gains", "shifts"))
        parts = [x.unbind() if two else [x] for x in (w.detach(), w.grad)]
        for part, slope in zip(*parts):
            norm = part.norm()
            zeros += not norm
            expected = 1e-4 * part / norm if norm else torch.zeros_like(part)
            torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-12)
    assert zeros == 2 * 4  # attention's two biases, and the norms' shifts, of two blocks


@pytest.mark.parametrize("encoder", ["own", "published"])
def test_inference_equals_the_definition_and_follows_the_weights(encoder: str) -> None:
    """After a step of Adam, values loaded, and moves to another dtype and back."""
    network = network_of(encoder)
    inference = FastEncoder(network)
    check_inference(network, inference)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network.raw(network.encode(inputs_of(network))).square().sum().backward()
    optimizer.step()
    check_inference(network, inference)
    network.load_theta(network_of(encoder).theta())
    check_inference(network, inference)
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float64, 1e-12)):
        network.to(dtype)
        with torch.no_grad():
            network.blocks[0].up.add_(0.1)
        check_inference(network, inference, atol)


@pytest.mark.parametrize("encoder", ["own", "published"])
def test_groups_have_no_order(encoder: str) -> None:
    """Tokens in another order give the same, in that order; one token more changes all others."""
    network = network_of(encoder, torch.float64)
    tokens, order = inputs_of(network), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for run in (lambda x: network.raw(network.encode(x)), FastEncoder(network)):
            torch.testing.assert_close(
                run(tokens[:, order]), run(tokens)[:, order], rtol=0, atol=1e-12
            )
            assert (run(tokens[:, :4]) - run(tokens)[:, :4]).abs().min() > 1e-9


def test_factors_lie_in_their_ranges() -> None:
    """1 + range (sigmoid - 1/2): (0.5, 1.5) as published, half of it for a range of 1/2, none for
    0.
    """
    for alpha_range, beta_range in ((1.0, 1.0), (0.5, 1.5), (0.0, 0.0)):
        _, optimizer = tools.ready(alpha_range=alpha_range, beta_range=beta_range)
        raw = torch.tensor([[-1e3, 0.0, 1e3, 0.7]] * 5, dtype=tools.D)
        alpha, beta = optimizer.network.factors(raw)
        for found, width in ((alpha, alpha_range), (beta, beta_range)):
            middle = 1 + width * (1 / (1 + 2.718281828459045**-0.7) - 0.5)
            expected = torch.tensor([1 - width / 2, 1.0, 1 + width / 2, middle], dtype=tools.D)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
