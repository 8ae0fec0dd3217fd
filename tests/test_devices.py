import pytest
import torch

from brainuad.detector import load_model
from brainuad.devices import compile_networks, device_told_from_scan, resolve_device, resolve_precision, upload
from brainuad.errors import DeviceError, InputError


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("tpu", "cpu:x", ""):
        with pytest.raises(InputError, match="unknown"):
            resolve_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="not available"):
            resolve_device("cuda")
    with pytest.raises(InputError, match="not available"):
        resolve_device("cuda:99")


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for amx, avx in ((False, False), (False, True), (True, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert resolve_precision("auto", cpu) == ("bfloat16" if amx or avx else "float32")
        assert load_model("lite-t1", "cpu").precision == resolve_precision("auto", cpu)
    assert resolve_precision("auto", torch.device("mps")) == "float32"
    assert resolve_precision("float32", cpu) == "float32"
    with pytest.raises(InputError, match="'int8' is unknown"):
        load_model("lite-t1", "cpu", "int8")


def test_what_is_uploaded_is_the_same() -> None:
    values = torch.arange(12.0).reshape(3, 4).T
    assert torch.equal(upload(values, resolve_device("auto")).cpu(), values)
    assert upload(values, "cpu") is values


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncompiled(function: object) -> object:
        def fail(values: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("backend='inductor' raised:\nNo working C++ compiler found\n\nSet ...")

        return fail

    monkeypatch.setattr(torch, "compile", uncompiled)
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"compile: No working C\+\+ compiler found\. Install a C\+\+ compiler"):
        compile_networks(model, torch.device("cpu"))
    assert model[0]._compiled_call_impl is None


def test_a_broken_device_is_told_from_what_a_scan_asks_of_a_working_one() -> None:
    asked = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")
    with pytest.raises(RuntimeError) as raised, device_told_from_scan(torch.device("cpu")):
        raise asked
    assert raised.value is asked
    # the meta device has no numbers, so it cannot add any
    with pytest.raises(DeviceError) as broken, device_told_from_scan(torch.device("meta")):
        raise asked
    fault = "meta: stopped working (CUDA error: an illegal memory access was encountered). Run again"
    assert str(broken.value).startswith(fault)
    with pytest.raises(ValueError, match="shape"), device_told_from_scan(torch.device("meta")):
        raise ValueError("shape")  # a scan's


def test_a_device_without_memory_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    asked = torch.OutOfMemoryError("tried to allocate 3 GiB")
    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(torch.OutOfMemoryError) as raised, device_told_from_scan(torch.device("cpu")):
        raise asked
    assert raised.value is asked
