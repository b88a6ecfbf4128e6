"""The promises that every op makes (see CONTRIBUTING.md), generated over ops, samples, dtypes, layouts and backends."""

from __future__ import annotations

import pytest
import torch

from tests.ops.contract import LAYOUTS, OPS, Op, Sample, cases, channels_last, get
from vidgen.ops.backends import TABLE

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
#: relative rms error against float64 that the docstrings promise at most (Winograd forms for float32)
LIMIT = {"float64": 1e-13, "float32": 5e-6, "bfloat16": 2e-2}

every_case = pytest.mark.parametrize(("op_name", "label"), cases())
every_dtype = pytest.mark.parametrize("dtype_name", DTYPES)
every_op = pytest.mark.parametrize("op_name", OPS)


def prepared(op_name: str, label: str, dtype_name: str, device: str, layout: str = "contiguous") -> tuple[Op, Sample]:
    op, sample = get(op_name, label)
    sample = sample.to(DTYPES[dtype_name], device)
    tensors = dict(sample.tensors)
    tensors.update({name: LAYOUTS[layout](tensors[name]) for name in op.batched(sample)})
    return op, Sample(tensors, sample.options)


def relative_rms(got: torch.Tensor, exact: torch.Tensor) -> float:
    if exact.numel() == 0:
        return 0.0
    scale = exact.pow(2).mean().sqrt().item()
    return (got.double() - exact).pow(2).mean().sqrt().item() / (scale or 1.0)


def skip_what_the_row_refuses(op: Op, sample: Sample, impl: str, dtype_name: str) -> bool:
    """A forced backend that the op has not, or that does not do this call, must say so; there is no more to see."""
    if impl not in {row.name for row in TABLE[op.torch_op]}:
        with pytest.raises(ValueError, match="impl must be one of"):
            op(sample, impl)
        return True
    if not op.unsupported(sample, impl, DTYPES[dtype_name]):
        return False
    with pytest.raises(RuntimeError, match=f"impl='{impl}' cannot run here"):
        op(sample, impl)
    return True


@every_case
@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_float64(op_name, label, dtype_name, layout, device, impl, poisoned):
    """Right for any strides, odd sizes, an empty batch; every output element is written."""
    op, sample = prepared(op_name, label, dtype_name, device, layout)
    if skip_what_the_row_refuses(op, sample, impl, dtype_name):
        return
    exact = op.reference(sample.to(torch.float64, device))
    got = op(sample, impl)
    assert got.dtype == op.result_dtype(DTYPES[dtype_name])
    assert got.shape == exact.shape
    assert relative_rms(got, exact) <= op.limits.get(dtype_name, LIMIT[dtype_name])


@pytest.mark.parametrize(("op_name", "label"), [case for case in cases() if not OPS[case[0]].measures])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_keeps_the_memory_format(op_name, label, layout, device, impl):
    op, sample = prepared(op_name, label, "float32", device, layout)
    if skip_what_the_row_refuses(op, sample, impl, "float32"):
        return
    image = sample.tensors[op.image]
    kept = image.is_contiguous(memory_format=channels_last(image)) and not image.is_contiguous()
    out = op(sample, impl)
    assert out.is_contiguous(memory_format=channels_last(out) if kept else torch.contiguous_format)


@every_case
def test_does_not_write_to_its_inputs(op_name, label, device, impl):
    op, sample = prepared(op_name, label, "float32", device)
    if skip_what_the_row_refuses(op, sample, impl, "float32"):
        return
    before = sample.clone()
    op(sample, impl)
    for name, tensor in sample.tensors.items():
        assert tensor is None or torch.equal(tensor, before.tensors[name]), name


@every_case
@every_dtype
def test_same_bits_on_every_run_and_thread_count(op_name, label, dtype_name, device, impl, threads):
    op, sample = prepared(op_name, label, dtype_name, device)
    if impl == "reference" or skip_what_the_row_refuses(op, sample, impl, dtype_name):
        return  # eager PyTorch makes no such promise
    results = []
    for count in (1, 2, 3):
        threads(count)
        results += [op(sample, impl), op(sample, impl)]
    assert all(torch.equal(results[0], other) for other in results[1:])


@every_case
@every_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_sample_does_not_depend_on_its_batch(op_name, label, dtype_name, layout, device, impl):
    op, sample = prepared(op_name, label, dtype_name, device, layout)
    if impl == "reference" or skip_what_the_row_refuses(op, sample, impl, dtype_name):
        return
    image = sample.tensors[op.image]
    together = op(sample, impl)
    for i in range(image.shape[0]):
        slices = {name: LAYOUTS[layout](sample.tensors[name][i : i + 1]) for name in op.batched(sample)}
        alone = op(Sample({**sample.tensors, **slices}, sample.options), impl)
        assert torch.equal(alone[0], together[i])


@every_op
@pytest.mark.parametrize("dtype_name", ["float32", "bfloat16"])
def test_offsets_beyond_32_bits(op_name, dtype_name):
    """A batch stride of 2³¹ + 7 elements; the memory between is never touched, so it costs nothing."""
    op, sample = prepared(op_name, OPS[op_name].typical, dtype_name, "cpu")
    image = sample.tensors[op.image]
    far = torch.empty(2**31 + 7 + image[0].numel(), dtype=image.dtype)
    far = far.as_strided(image.shape, (2**31 + 7, *image[0].stride()))
    far.copy_(image)
    assert torch.equal(op(Sample({**sample.tensors, op.image: far}, sample.options), "cpu"), op(sample, "cpu"))


@every_op
def test_inference_mode(op_name, device, impl):
    op, sample = prepared(op_name, OPS[op_name].thin, "float32", device)
    if skip_what_the_row_refuses(op, sample, impl, "float32"):
        return
    expected = op(sample, impl)
    with torch.inference_mode():
        assert torch.equal(op(sample, impl), expected)


@every_op
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("impl", [None, "reference"])
def test_compiles_as_one_graph(op_name, layout, impl):
    op, sample = prepared(op_name, OPS[op_name].typical, "float32", "cpu", layout)
    expected = op(sample, impl)
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: op.public(**t, **sample.options, impl=impl), fullgraph=True, backend="aot_eager")
    got = compiled(sample.tensors)
    assert torch.equal(got, expected)
    assert got.stride() == expected.stride()


@pytest.mark.parametrize("op_name", [name for name, op in OPS.items() if op.image not in op.constant])
def test_compiled_gradients(op_name):
    op, sample = prepared(op_name, OPS[op_name].checked[1], "float32", "cpu")

    def gradients(function):
        leaves = {k: v.clone() for k, v in sample.tensors.items() if v is not None}
        variables = {k: v.requires_grad_() for k, v in leaves.items() if k not in op.constant}
        function(leaves).square().sum().backward()
        return {k: v.grad for k, v in variables.items()}

    def call(tensors):
        return op.public(**tensors, **sample.options)

    torch._dynamo.reset()
    eager, compiled = gradients(call), gradients(torch.compile(call, fullgraph=True, backend="aot_eager"))
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name])


@every_op
def test_exports(op_name):
    op, sample = prepared(op_name, OPS[op_name].typical, "float32", "cpu")

    class Wrapped(torch.nn.Module):
        def forward(self, batch):
            return op.public(**{**sample.tensors, **batch}, **sample.options)

    batch = {name: sample.tensors[name] for name in op.batched(sample)}
    axes = {name: {0: torch.export.Dim("batch")} for name in op.batched(sample)}
    program = torch.export.export(Wrapped(), (batch,), dynamic_shapes=(axes,))
    larger = {name: torch.cat([tensor, tensor, tensor]) for name, tensor in batch.items()}
    assert torch.equal(program.module()(larger), op(Sample({**sample.tensors, **larger}, sample.options), None))


@every_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype(op_name, device, dtype):
    op, sample = prepared(op_name, OPS[op_name].typical, "float32", device)
    with torch.autocast(device, dtype=dtype):
        under_autocast = op(sample, "reference")
        double = op(sample.to(torch.float64, device), "reference")
    # a measurement stays in float32, and so does what autocast leaves alone
    lowered = op.autocasts and not op.measures
    expected = op(sample.to(dtype, device) if lowered else sample, "reference")
    assert under_autocast.dtype == expected.dtype == (dtype if lowered else torch.float32)
    assert torch.equal(under_autocast, expected)
    assert double.dtype == torch.float64, "autocast leaves double alone"


@pytest.mark.parametrize(("op_name", "label"), [(name, label) for name, op in OPS.items() for label in op.checked])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(op_name, label, layout, device):
    op, sample = prepared(op_name, label, "float32", device, layout)
    tensors = {k: None if v is None else v.requires_grad_(k not in op.constant) for k, v in sample.tensors.items()}
    args = op.positional(Sample(tensors, sample.options), "reference" if device == "cuda" else None)
    torch.library.opcheck(getattr(torch.ops.vidgen, op.torch_op).default, args)
