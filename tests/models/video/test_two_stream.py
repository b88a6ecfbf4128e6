"""CNN-M and the two-stream network: the papers' layers to the number, and scores fused as they say."""

import pytest
import torch
import torch.nn.functional as F

import vidgen
from vidgen.data import moving_digits
from vidgen.models import CNNM, TwoStream, displacement_fields, flow_stack, load_checkpoint, save_checkpoint

SMALL_FLOW = {"method": "dis", "preset": None, "parameters": {"patch_size": 4, "finest_scale": 0}}


def small(**arguments):
    torch.manual_seed(0)
    size = {"input_size": (32, 32), "in_channels": 1, "width": 3, "stride": 1, "samples": 3, "length": 4}
    return TwoStream(**{"classes": 5, **size, **SMALL_FLOW, **arguments}).eval()


def local_response_norm(x):
    """The formula of Krizhevsky et al., channel by channel."""
    out = torch.empty_like(x)
    for c in range(x.shape[1]):
        neighbours = x[:, max(c - 2, 0) : c + 3].square().sum(1)
        out[:, c] = x[:, c] / (2 + 1e-4 * neighbours) ** 0.75
    return out


@pytest.mark.parametrize(("size", "stride", "second"), [((79, 96), 2, True), ((32, 36), 1, False)])
def test_every_layer_is_the_papers(size, stride, second):
    torch.manual_seed(0)
    network = CNNM(7, in_channels=4, input_size=size, width=6, stride=stride, second_norm=second).double().eval()
    x = 100 * torch.randn(2, 4, *size, dtype=torch.float64)  # normalisation is felt
    weights = network.state_dict()

    def layer(name, x, **options):
        return F.relu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options))

    def pool(x):
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    y = pool(local_response_norm(layer("conv1", x, stride=stride)))
    y = layer("conv2", y, stride=stride, padding=1)
    y = pool(local_response_norm(y) if second else y)
    for name in ("conv3", "conv4", "conv5"):
        y = layer(name, y, padding=1)
    y = pool(y).flatten(1)
    for name in ("fc6", "fc7"):
        y = F.relu(y @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
    expected = y @ weights["fc8.weight"].T + weights["fc8.bias"]
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 12, 6, 6), (1, 32, 1, 1), (0, 6, 4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_normalisation_is_torchs(shape, memory_format):
    x = 100 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    found = CNNM(2, width=3, stride=1, input_size=(18, 18)).norm1(x)
    expected = F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_full_size_is_the_papers():
    """Figure 1: 7×7×96, 5×5×256, three of 3×3×512, 4096, 2048; 20 channels of flow in the temporal stream."""
    with torch.device("meta"):
        model = TwoStream()
    common = 256 * 96 * 25 + 256 + 512 * 256 * 9 + 512 + 2 * (512 * 512 * 9 + 512)
    common += 4096 * 512 * 6 * 6 + 4096 + 2048 * 4096 + 2048 + 101 * 2048 + 101
    expected = {"spatial": 96 * 3 * 49 + 96 + common, "temporal": 96 * 20 * 49 + 96 + common}
    assert expected == {"spatial": 90_627_813, "temporal": 90_707_781}
    for name, count in expected.items():
        stream = getattr(model, name)
        assert sum(p.numel() for p in stream.parameters()) == count
        sizes = {}
        for layer in ("conv1", "conv2", "conv5", "norm2"):
            getattr(stream, layer).register_forward_hook(
                lambda module, args, out, layer=layer, sizes=sizes: sizes.update({layer: tuple(out.shape[1:])})
            )
        stream(torch.empty(1, stream.in_channels, 224, 224, device="meta"))
        assert (sizes["conv1"], sizes["conv2"], sizes["conv5"]) == ((96, 109, 109), (256, 26, 26), (512, 13, 13))
    # the second normalisation is the spatial stream's alone
    assert isinstance(model.spatial.norm2, torch.nn.LocalResponseNorm)
    assert isinstance(model.temporal.norm2, torch.nn.Identity)
    assert (model.spatial.dropout.p, model.temporal.dropout.p) == (0.5, 0.9)


@pytest.mark.parametrize(("stride", "least"), [(1, 18), (2, 41)])
def test_the_least_size_is_what_the_message_says(stride, least):
    with pytest.raises(ValueError, match=rf"input_size: expected at least {least}×{least} for stride={stride}"):
        CNNM(2, input_size=(least - 1, 224), stride=stride, width=3)
    network = CNNM(2, input_size=(least, least), stride=stride, width=3).eval()
    assert network(torch.randn(1, 3, least, least)).isfinite().all()


@pytest.mark.parametrize("stacking", ["optical_flow", "trajectory"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_clip_is_seen_at_evenly_spaced_frames_and_probabilities_are_averaged(stacking, bidirectional):
    model = small(stacking=stacking, bidirectional=bidirectional)
    clips = moving_digits("test", n=3, frames=12, background="panning texture").video
    assert model.possible_frames(12) == (range(2, 10) if bidirectional else range(8))
    frames = (2, 6, 9) if bidirectional else (0, 4, 7)
    fields = displacement_fields(clips, bidirectional=bidirectional, method="dis", patch_size=4, finest_scale=0)
    with torch.no_grad():
        found = model.stream_probabilities(clips)
        spatial, temporal = torch.zeros(3, 5), torch.zeros(3, 5)
        for frame in frames:
            spatial += model.spatial((clips[:, :, frame] / 255 - 0.45) / 0.225).softmax(1) / 3
            stack = flow_stack(fields, torch.full((3,), frame), 4, stacking=stacking)
            temporal += model.temporal(stack).softmax(1) / 3
        torch.testing.assert_close(found[0], spatial)
        torch.testing.assert_close(found[1], temporal)
        torch.testing.assert_close(model(clips).exp(), (spatial + temporal) / 2)
        # floating-point clips are the same clips, and fields that are there are not computed again
        torch.testing.assert_close(model(clips / 255), model(clips), rtol=1e-3, atol=1e-3)
        assert torch.equal(model(clips, fields), model(clips))
        assert not torch.equal(model(clips, 0 * fields), model(clips))


def test_fields_and_frames_are_what_the_streams_see():
    model = small()
    clips = torch.randint(0, 256, (2, 1, 6, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = model.frames_at(clips, torch.tensor([[5, 0], [1, 2]]))
    assert torch.equal(seen[1, 0], model.frames_at(clips, torch.tensor([0, 1]))[1])
    torch.testing.assert_close(seen[0, 0] * 0.225 + 0.45, clips[0, :, 5] / 255)


def scores_of_two_streams(n):
    """Ten classes, two digits' worth of five and two: the first stream tells the one part, the second the other."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 10, (n,), generator=generator)
    noise = 0.2 * torch.rand(2, n, 10, generator=generator)
    first = F.one_hot(labels // 2, 5).repeat_interleave(2, 1) * 3 + noise[0]
    second = F.one_hot(labels % 2, 2).repeat(1, 5) * 3 + noise[1]
    return first.softmax(1), second.softmax(1), labels


@pytest.mark.parametrize("fusion", ["average", "svm"])
def test_fusion_tells_what_neither_stream_tells(fusion):
    model = small(classes=10)
    spatial, temporal, labels = scores_of_two_streams(400)
    for alone, share in ((spatial, 0.5), (temporal, 0.2)):
        assert float((alone.argmax(1) == labels).float().mean()) < share + 0.1
    if fusion == "svm":
        model.fit_svm(spatial[:200], temporal[:200], labels[:200])
    assert model.fusion == fusion
    right = model.fuse(spatial[200:], temporal[200:]).argmax(1) == labels[200:]
    assert float(right.float().mean()) > 0.98


def test_the_svm_is_scikit_learns_on_scores_of_length_one(tmp_path):
    from sklearn.svm import LinearSVC

    spatial, temporal, labels = scores_of_two_streams(120)
    labels = torch.where(labels == 7, 6, labels)
    model = small(classes=10).fit_svm(spatial, temporal, labels, C=0.5)
    features = torch.cat([p / p.square().sum(1, keepdim=True).sqrt() for p in (spatial, temporal)], 1).double().numpy()
    svm = LinearSVC(multi_class="crammer_singer", C=0.5, random_state=0, max_iter=1000).fit(features, labels.numpy())
    scores = model.fuse(spatial, temporal)
    assert scores.argmax(1).tolist() == svm.predict(features).tolist()
    expected = torch.from_numpy(svm.decision_function(features)).float()
    torch.testing.assert_close(scores[:, svm.classes_], expected, rtol=1e-4, atol=1e-4)
    # what never occurred is never named
    assert (scores[:, 7] == -torch.inf).all()
    # fitted, saved and loaded, a network fuses as before
    again = load_checkpoint(save_checkpoint(model, tmp_path / "model.safetensors"))
    assert again.fusion == "svm"
    assert torch.equal(again.fuse(spatial, temporal), scores)
    assert again.fuse(spatial, temporal, "average").exp().sum(1).tolist() == pytest.approx([1.0] * 120, abs=1e-5)


def test_an_svm_of_two_classes():
    """Of which scikit-learn keeps one line in place of two."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(60) % 2
    spatial = (F.one_hot(labels, 2) + torch.rand(60, 2, generator=generator)).softmax(1)
    model = small(classes=2).fit_svm(spatial, torch.full((60, 2), 0.5), labels)
    assert torch.equal(model.fuse(spatial, torch.full((60, 2), 0.5)).argmax(1), labels)
    with pytest.raises(ValueError, match=r"labels: expected at least two classes, got \[1\]"):
        model.fit_svm(spatial, spatial, torch.ones(60, dtype=torch.int64))


def test_an_svm_must_be_fitted_before_it_speaks():
    with pytest.raises(RuntimeError, match="fusion='svm' needs fit_svm to be called first"):
        small(fusion="svm")(torch.zeros(1, 1, 6, 32, 32, dtype=torch.uint8))


def test_a_checkpoint_says_the_same(tmp_path):
    model = small(stacking="trajectory", bidirectional=True, dropout=(0.1, 0.2))
    clips = moving_digits("test", n=2, frames=8).video
    with torch.no_grad():
        expected = model(clips)
        again = load_checkpoint(save_checkpoint(model, tmp_path / "model.safetensors"))
        assert again.config == model.config
        assert torch.equal(again(clips), expected)


def test_the_streams_are_found_by_fuse():
    """The 3×3 convolutions are vidgen's after it, and say the same."""
    model = small()
    x = torch.randn(2, 1, 32, 32)
    fused = vidgen.fuse(model.spatial, x)
    assert "conv3" in str(vidgen.fusion_report(fused))
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), model.spatial(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 4}, "width: expected a positive multiple of 3, got 4"),
        ({"stride": 3}, "stride: expected 1 or 2, got 3"),
        ({"classes": 0}, "classes: expected at least 1, got 0"),
        ({"in_channels": 2}, "in_channels: expected 1 or 3, got 2"),
        ({"dropout": (0.5,)}, "dropout: expected two shares"),
        ({"dropout": (0.5, 1.0)}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"stacking": "pile"}, "stacking: expected one of optical_flow, trajectory, got 'pile'"),
        ({"fusion": "vote"}, "fusion: expected one of average, svm, got 'vote'"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"method": "guess"}, r"method must be one of \['dis', 'tvl1'\], got 'guess'"),
        ({"preset": "nope"}, r"preset must be one of \['fast', 'medium', 'ultrafast'\] for method 'dis', got 'nope'"),
        ({"preset": "two_stream"}, "preset must be one of .* for method 'dis', got 'two_stream'"),
        ({"method": "tvl1", "preset": "medium"}, "preset must be one of .* for method 'tvl1', got 'medium'"),
        ({"bidirectional": True, "length": 3}, "length: expected a positive even number"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


@pytest.mark.parametrize("parameters", [{"q": 1}, {"tau": 0.25}, {"method": "dis"}, {"init": None}])
def test_parameters_that_the_method_has_not_are_named(parameters):
    (name,) = parameters
    with pytest.raises(TypeError, match=rf"parameters of method 'dis' must be among .*, got \['{name}'\]"):
        small(parameters=parameters)


@pytest.mark.parametrize(
    ("method", "preset", "meant"),
    [("tvl1", None, "two_stream"), ("tvl1", "fast", "fast"), ("dis", None, "medium"), ("dis", "fast", "fast")],
)
def test_the_flow_is_that_of_the_preset_meant(method, preset, meant, tmp_path):
    """Also that of the network which a checkpoint gives back."""
    model = small(method=method, preset=preset, parameters=None)
    again = load_checkpoint(save_checkpoint(model, tmp_path / "model.safetensors"))
    assert again.config == model.config
    clips = moving_digits("test", n=1, frames=5).video
    expected = displacement_fields(clips, method=method, preset=meant)
    for one in (model, again):
        assert torch.equal(one.displacement_fields(clips), expected)


@pytest.mark.parametrize("stacking", ["optical_flow", "trajectory"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_no_clips_have_no_scores(stacking, bidirectional):
    model = small(stacking=stacking, bidirectional=bidirectional)
    clips = torch.zeros(0, 1, 8, 32, 32, dtype=torch.uint8)
    assert model.displacement_fields(clips).shape == (0, 1 + bidirectional, 7, 2, 32, 32)
    assert model(clips).shape == (0, 5)
    assert model(clips, model.displacement_fields(clips)).shape == (0, 5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": torch.tensor([0, 5, 1])}, "labels: expected classes from 0 to 4, got 0 to 5"),
        ({"labels": torch.tensor([-1, 0, 1])}, "labels: expected classes from 0 to 4, got -1 to 1"),
        ({"labels": torch.tensor([0.0, 1, 2])}, r"labels: expected int64 of shape \(N,\), got torch.float32 of \(3,\)"),
        ({"labels": torch.tensor([[0, 1, 2]])}, r"labels: expected int64 of shape \(N,\), got torch.int64 of \(1, 3\)"),
        ({"labels": torch.tensor([0, 1])}, r"spatial: expected shape \(2, 5\), got \(3, 5\)"),
        ({"temporal": torch.full((3, 4), 0.25)}, r"temporal: expected shape \(3, 5\), got \(3, 4\)"),
        ({"labels": torch.tensor([2, 2, 2])}, r"labels: expected at least two classes, got \[2\]"),
    ],
)
def test_a_refused_fit_leaves_the_earlier_svm(wrong, message):
    model = small()
    given = {"spatial": torch.eye(5)[:3], "temporal": torch.eye(5)[:3], "labels": torch.tensor([0, 1, 2])}
    model.fit_svm(**given)
    expected = model.fuse(given["spatial"], given["temporal"], "svm")
    with pytest.raises(ValueError, match=message):
        model.fit_svm(**{**given, **wrong})
    assert torch.equal(model.fuse(given["spatial"], given["temporal"], "svm"), expected)
    assert model.fusion == "svm"


@pytest.mark.parametrize("wrong", ["vote", "", "SVM"])
def test_there_is_no_other_fusion(wrong):
    with pytest.raises(ValueError, match=f"fusion: expected one of average, svm, got '{wrong}'"):
        small().fuse(torch.full((1, 5), 0.2), torch.full((1, 5), 0.2), wrong)


@pytest.mark.parametrize(
    "shape", [(1, 1, 6, 2, 32, 32), (2, 1, 7, 2, 32, 32), (1, 2, 7, 2, 32, 32), (1, 1, 7, 2, 32, 31)]
)
def test_fields_of_other_clips_are_named(shape):
    message = r"fields: expected shape \(1, 1, 7, 2, 32, 32\), those of the clips, got "
    with pytest.raises(ValueError, match=message + ", ".join(map(str, shape)).join([r"\(", r"\)"])):
        small()(torch.zeros(1, 1, 8, 32, 32), torch.zeros(shape))


def test_bad_clips_are_named():
    model = small()
    with pytest.raises(ValueError, match=r"clips: expected shape \(N, 1, T, 32, 32\), got \(1, 1, 8, 32, 31\)"):
        model(torch.zeros(1, 1, 8, 32, 31))
    with pytest.raises(ValueError, match="clips: expected more frames than the stack's length 4, got 4"):
        model(torch.zeros(1, 1, 4, 32, 32))
    with pytest.raises(ValueError, match=r"images: expected shape \(N, 1, 32, 32\), got \(1, 3, 32, 32\)"):
        model.spatial(torch.zeros(1, 3, 32, 32))
