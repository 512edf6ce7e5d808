"""``resnet`` against the same network of torch's layers, its sizes, its images, and what it
refuses.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value

from lo_framework.layout import Layout
from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.datasets.splits import Dataset
from lo_framework.optimizees.models.resnet import ResNet
from lo_framework.optimizees.residual import ResNetConfig, build_resnet, shifted
from lo_framework.spec import UserError
from tests.optimizees.contract import same_bits_twice


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Basic(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        inside = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inside + (self.downsample(x) if hasattr(self, "downsample") else x))


class Reference(nn.Module):
    """As torchvision has it, with the stem of a small image."""

    def __init__(self, channels, classes, width, blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            made = []
            for i in range(count):
                made.append(Basic(inputs, outputs, 2 if stage and not i else 1))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.fc = nn.Linear(inputs, classes)
        self.stages = len(blocks)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked = None  # torch.func.grad refuses its in-place count

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("blocks", [(1, 1), (2, 1, 2)])
def test_it_is_torchs_resnet(blocks):
    """Values, gradients, buffers after a batch, and what they give in evaluation."""
    model = ResNet(channels=3, classes=5, width=4, blocks=blocks, dropout=0.0)
    reference = Reference(3, 5, 4, blocks)
    params, buffers = model.init(seeded())
    named = {name: p.shape for name, p in reference.named_parameters()}
    assert list(named) == list(params)
    assert named == {name: p.shape for name, p in params.items()}
    assert dict.fromkeys(buffers) == {k: None for k, _ in reference.named_buffers()}
    params = {
        k: v + 0.1 * torch.randn(v.shape, generator=seeded(i))
        for i, (k, v) in enumerate(params.items())
    }
    x, y = torch.rand(6, 3, 9, 9, generator=seeded(1)), torch.arange(6) % 5

    def ours(p):
        logits, new = model.apply(p, buffers, x, torch.tensor(3))
        return nn.functional.cross_entropy(logits, y), new

    def theirs(p):
        moved = {k: v.clone() for k, v in buffers.items()}  # they are moved in place
        loss = nn.functional.cross_entropy(functional_call(reference, {**p, **moved}, (x,)), y)
        return loss, moved

    grads, (loss, new) = grad_and_value(ours, has_aux=True)(params)
    want_grads, (want, moved) = grad_and_value(theirs, has_aux=True)(params)
    torch.testing.assert_close(loss, want)
    for name in grads:
        torch.testing.assert_close(grads[name], want_grads[name], atol=2e-5, rtol=1e-4)
    for name in new:
        torch.testing.assert_close(new[name], moved[name])
    assert all((v == (0 if "mean" in k else 1)).all() for k, v in buffers.items())
    reference.eval()
    torch.testing.assert_close(
        model.apply(params, new, x)[0], functional_call(reference, {**params, **new}, (x,))
    )


@pytest.mark.parametrize(
    ("size", "classes", "count", "tensors"),
    [
        # The published one is torchvision's ResNet-18 with a 3x3 stem and ten classes.
        ("paper", 10, 11_173_962, 62),
        ("paper", 100, 11_220_132, 62),
        ("small", 10, 78_042, 29),
        ("tiny", 10, 1_454, 20),
    ],
)
def test_sizes(size, classes, count, tensors):
    config = ResNetConfig(size=size)
    options = {name: config.value(name) for name in ("width", "blocks", "dropout")}
    params, _ = ResNet(channels=3, classes=classes, **options).init(seeded())
    assert sum(p.numel() for p in params.values()) == count
    assert len(params) == tensors


def test_how_it_starts():
    params, _ = ResNet(channels=3, classes=10, width=32, blocks=(1, 1), dropout=0.0).init(seeded())
    # He et al. 2015, fan out
    assert params["layer2.0.conv1.weight"].std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert params["layer2.0.downsample.0.weight"].std() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert params["fc.weight"].abs().max() <= 1 / 8
    assert (params["layer1.0.bn2.weight"] == 1).all() and not params["bn1.bias"].any()


def test_roles():
    (task,) = make_tasks("resnet:size=tiny")
    shapes = {name: p.shape for name, p in task.init(seeded())[0].items()}
    found = {slot.name: slot.role for slot in Layout.of(shapes).slots}
    for name, role in found.items():
        last = "matrix" if name == "fc.weight" else "bias" if name == "fc.bias" else "norm"
        assert role == ("conv" if len(shapes[name]) == 4 else last), name


def test_dropout_is_on_the_logits_and_by_the_noise():
    (task, clean) = make_tasks("resnet:size=tiny,dropout=0.5,resnet:size=tiny")
    params, buffers = task.init(seeded())
    x, _ = batch = task.batch("train", seeded(1))
    plain = clean.model.apply(params, buffers, x, torch.tensor(1))[0]
    one, same, other = (task.model.apply(params, buffers, x, torch.tensor(k))[0] for k in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert set((one / plain).round(decimals=4).unique().tolist()) == {0.0, 2.0}
    assert 0.3 < (one == 0).float().mean() < 0.7
    measured = [t.metrics(params, buffers, batch) for t in (task, clean)]
    assert measured[0] == measured[1]


def test_the_same_bits_twice():
    same_bits_twice(lambda: make_tasks("resnet:size=tiny,dropout=0.2,augment=1")[0])


def pictures(count=200):
    """Each pixel of an image has a value of its own, from 1 on."""
    return 1 + torch.arange(count * 2 * 16 * 8.0).reshape(count, 2, 16, 8)


def test_images_are_shifted_and_mirrored():
    images = pictures()
    found = shifted(images, seeded())
    seen = set()
    for image, new in zip(images, found):
        padded = nn.functional.pad(image, (1, 1, 2, 2))  # an eighth of each side
        crops = {
            (dy, dx, flip): padded[:, dy : dy + 16, dx : dx + 8].flip([-1] if flip else [])
            for dy in range(5)
            for dx in range(3)
            for flip in (0, 1)
        }
        (place,) = [key for key, crop in crops.items() if torch.equal(crop, new)]
        seen.add(place)
    assert len(seen) > 25  # of 30
    assert torch.equal(found, shifted(images, seeded()))
    assert not torch.equal(found, shifted(images, seeded(1)))
    lead = shifted(images.reshape(5, 40, 2, 16, 8), seeded())
    assert torch.equal(lead.flatten(0, 1), found)


def test_only_training_batches_are_augmented():
    splits = {k: (pictures(30), torch.arange(30) % 3) for k in ("train", "valid", "test")}
    data = Dataset(name="drawn", splits=splits, num_classes=3)
    task, plain = (
        build_resnet(ResNetConfig(size="tiny", augment=augment), data) for augment in (True, False)
    )
    for split in splits:
        (x, y), (raw, labels) = (t.batch(split, seeded(2), (2,)) for t in (task, plain))
        assert x.shape == (2, 16, 2, 16, 8)
        assert torch.equal(y, labels)
        assert torch.equal(x, raw) == (split != "train")
        assert all(torch.equal(a, b) for a, b in zip(task.full(split), splits[split]))
    moved = task.to("meta")
    assert moved.batch("train", seeded())[0].device.type == "meta"


def test_the_papers_protocol_validates_on_the_test_split():
    honest, paper = make_tasks("resnet:size=tiny,resnet:size=tiny,protocol=paper")
    assert len(paper.full("train")[0]) == 1197 + 240
    assert all(torch.equal(a, b) for a, b in zip(paper.full("valid"), honest.full("test")))
    assert paper.note == "validated on its test images" and not honest.note


@pytest.mark.parametrize(
    ("spec", "dataset", "words"),
    [
        ("resnet:size=tiny,batch=1", "digits", "batches of at least 2 rows"),
        ("resnet:blocks=1x1x1x1x1x1x1", "digits", "blocks needs 1 to 6 entries"),
        ("resnet:blocks=0", "digits", "at least 1"),
        ("resnet:depth=18", "digits", 'unknown option "depth"'),
        ("resnet:width=65536", "digits", "the model has more than"),
        ("resnet:size=tiny", "digits:project=9", "resnet needs images"),
        ("resnet:size=tiny", "digits:target=regress", "resnet needs classes"),
    ],
)
def test_bad_options(spec, dataset, words):
    with pytest.raises(UserError) as error:
        make_tasks(spec, dataset)
    assert words in str(error.value) and "\n" not in str(error.value)
