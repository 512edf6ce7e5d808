"""Counter-based masks: their statistics, and the dropout modules built on them."""

import pytest
import torch

from lo_framework.optimizees.dropout import CounterDropout, keep_mask, mix


def test_mix_is_a_bijection_on_words():
    words = mix(torch.arange(2**16) * 65521)
    assert len(words.unique()) == 2**16
    assert words.min() >= 0
    assert words.max() < 2**32


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_look_random(p):
    masks = torch.stack(
        [keep_mask((200, 50), p, torch.tensor(n), layer) for n in range(4) for layer in range(3)]
    )
    rates = masks.float().mean((1, 2))
    assert (rates - (1 - p)).abs().max() < 5 * (p * (1 - p) / 1e4) ** 0.5
    assert (torch.corrcoef(masks.flatten(1).float()) - torch.eye(12)).abs().max() < 0.06
    rows, columns = masks.float().mean(2), masks.float().mean(1)
    assert rows.std() == pytest.approx((p * (1 - p) / 50) ** 0.5, rel=0.1)
    assert columns.std() == pytest.approx((p * (1 - p) / 200) ** 0.5, rel=0.15)


@pytest.mark.parametrize(
    ("channels", "shape", "lead"),
    [
        (None, (5, 6), 2),
        (1, (5, 6, 7), 2),
        (2, (5, 6, 3, 3), 2),
        (2, (6, 3, 3), 1),
        (3, (5, 6, 2, 2, 2), 2),
    ],
)
def test_channels_drop_together(channels, shape, lead):
    layer = CounterDropout(0.5, channels=channels, alpha=False, first=0)
    y = layer(torch.ones(shape)).unsqueeze(-1).flatten(lead)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    if channels is not None:
        assert (y == y[..., :1]).all()
    layer.eval()
    assert torch.equal(layer(torch.ones(shape)), torch.ones(shape))


def test_alpha_dropout_keeps_mean_and_variance():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    y = CounterDropout(0.3, channels=None, alpha=True, first=0)(x)
    assert y.mean() == pytest.approx(0, abs=0.02)
    assert y.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("alpha", [False, True])
def test_dropping_everything(alpha):
    y = CounterDropout(1.0, channels=None, alpha=alpha, first=0)(torch.ones(10))
    assert not y.any()
