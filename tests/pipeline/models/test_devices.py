from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import nn

from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.devices import (
    autocast,
    choose_device,
    describe_device,
    memory_errors,
    one_blas_thread,
    one_thread,
    to_device,
)
from edgeline.serve.errors import ConfigError, TrainingError
from edgeline.serve.runtime.cpu import usable_cores

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.usefixtures("many_threads")
def test_the_cpu_is_used_with_every_core_of_this_process() -> None:
    torch.set_num_threads(1)
    device = choose_device("cpu")
    assert describe_device(device) == f"CPU, {usable_cores()} threads"


@pytest.mark.usefixtures("many_threads")
def test_the_number_of_threads_is_restored_after_a_block_on_one_thread_even_after_an_error() -> None:
    torch.set_num_threads(2)
    with suppress(KeyboardInterrupt), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 2


@no_gpu
@pytest.mark.usefixtures("many_threads")
def test_auto_is_the_cpu_without_a_gpu() -> None:
    assert choose_device("auto") == torch.device("cpu")


@no_gpu
def test_cuda_without_a_gpu_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"train\.device is cuda, but PyTorch finds no GPU; use auto or cpu"):
        choose_device("cuda")


def test_a_cpu_computes_in_full_precision_without_copying() -> None:
    cpu, numbers = torch.device("cpu"), torch.rand(4, 4)
    with autocast(cpu):
        assert (numbers @ numbers).dtype == torch.float32
    assert to_device(numbers, cpu) is numbers


@gpu
def test_a_gpu_works_in_mixed_precision() -> None:
    device = choose_device("auto")
    numbers = to_device(torch.rand(4, 4), device)
    with autocast(device):
        assert (numbers @ numbers).dtype == torch.float16
    assert numbers.device.type == "cuda"
    assert describe_device(device).endswith(", mixed precision")


@gpu
def test_a_gpu_gives_the_features_of_the_cpu(small: Network) -> None:
    images_NCHW = torch.randint(0, 256, (4, 3, 32, 32)).float()
    with torch.inference_mode():
        expected_ND = small.features(images_NCHW)
        observed_ND = small.to("cuda").features(to_device(images_NCHW, torch.device("cuda"))).cpu()
    # A GPU's convolutions may round to 10 bits.
    torch.testing.assert_close(observed_ND, expected_ND, rtol=0, atol=0.02 * expected_ND.abs().max().item())


def run_out_on_a_gpu() -> None:
    # A stand-in: no test can fill a GPU that is not there.
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def run_out_in_torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def run_out_in_python() -> None:
    bytearray(2**62)


OUT = {"torch on a GPU": run_out_on_a_gpu, "torch on a CPU": run_out_in_torch, "Python": run_out_in_python}


@pytest.mark.parametrize("run_out", OUT.values(), ids=OUT)
def test_running_out_of_memory_names_the_batch_and_half_of_it(run_out: Callable[[], None]) -> None:
    with (
        pytest.raises(
            TrainingError, match=r"a batch of 64 images .* \(.+\); lower train\.batch_size, for example to 32"
        ) as caught,
        memory_errors(64),
    ):
        run_out()
    assert caught.value.code == "out_of_memory"
    assert " ".join(str(caught.value.__cause__).split())[:100] in str(caught.value)


def test_the_remedy_can_be_given() -> None:
    with (
        pytest.raises(TrainingError, match="a batch of 8 images .*; use a smaller one"),
        memory_errors(8, "use a smaller one"),
    ):
        run_out_on_a_gpu()


def test_other_errors_of_torch_pass_through() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"), memory_errors(64):
        nn.Linear(3, 4)(torch.ones(1, 5))


def test_matrices_are_decomposed_on_one_thread_within_the_block_only() -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    @one_blas_thread()
    def decorated() -> set[int]:
        return threads()

    with threadpool_limits(limits=2, user_api="blas"):
        assert threads() == {2}
        assert decorated() == {1}
        assert threads() == {2}
