"""The service that runs vLLM beside sigd: its unit and its environment, from the plan's numbers."""

from __future__ import annotations

from dataclasses import dataclass

from sigd.bench.plan import memory, serving
from sigd.bench.plan.catalogue import language_models, parts
from sigd.bench.plan.errors import BadMachine
from sigd.bench.plan.links import exchange_way
from sigd.bench.plan.machine import Machine, Work
from sigd.bench.plan.memory import MIB
from sigd.bench.plan.placement import served
from sigd.bench.plan.serving import Fit

BINARY = "/opt/vllm/bin/vllm"
ENVIRONMENT_FILE = "/etc/vllm/vllm.env"
CHECKPOINTS = {
    ("llama-3.1-8b", "fp16"): "meta-llama/Llama-3.1-8B-Instruct",
    ("llama-3.1-70b", "awq"): "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4",
    ("qwen2.5-32b", "awq"): "Qwen/Qwen2.5-32B-Instruct-AWQ",
}
"""A checkpoint that is already in the format: vLLM reads the format from it and does not quantise."""


@dataclass(frozen=True, slots=True)
class Service:
    """What `sigd plan --vllm` writes.

    Attributes:
        cache_bytes: the cache on each card.
        unit, environment: the text of vllm.service and of vllm.env.
    """

    cache_bytes: int
    unit: str
    environment: str


def service(machine: Machine, binary: str = BINARY) -> Service:
    """The service for the model that the machine's file marks as served, or for the recommended one.

    Raises:
        BadMachine: there is none, it does not fit for certain, or its checkpoint is not known.
    """
    work = served(machine)
    if work is None:
        raise BadMachine(
            "no language model fits on the cards that sigd leaves free; add [[work]] with served = true"
        )
    fit = serving.fit(machine, work)
    if fit.level != "fits":
        raise BadMachine(
            f"{work.name!r} is to be served, and does not fit for certain: it needs up to"
            f" {fit.need.high / 2**30:.1f} GiB of"
            f" {fit.limit.low / 2**30:.1f} a card; lower context_tokens or sequences, or take a smaller model"
        )
    checkpoint = work.checkpoint or CHECKPOINTS.get((work.model, work.weights), "")
    if not checkpoint:
        raise BadMachine(
            f"{work.name!r}: set checkpoint to one that is already in {work.weights}: vLLM does not quantise"
        )
    cache = cache_bytes(machine, work, fit)
    return Service(cache, _unit(machine, work, fit, checkpoint, cache, binary), _environment(machine, work))


def cache_bytes(machine: Machine, work: Work, fit: Fit) -> int:
    """Bytes of cache on each card that are there even where everything else takes its most, in whole MiB."""
    others = sum(need.high for name, need in fit.items if name != "cache")
    whole = int((fit.limit.low - others) // MIB) * MIB
    wanted = (
        work.context_tokens
        * work.sequences
        * memory.cache_bytes(language_models().models[work.model], work.cache_bytes)
    )
    assert (
        whole
        >= int(wanted / memory.cache_split(language_models().models[work.model], fit.layout)) // MIB * MIB
    )
    return whole


def cpus(machine: Machine) -> str:
    """The CPUs of the service as ranges: all but sigd's core and its sibling; empty where they are not
    known."""
    if machine.processor is None or machine.sigd is None or machine.sigd.core is None:
        return ""
    processor = parts().processors[machine.processor]
    cores, threads = int(processor.cores.value), int(processor.threads.value)
    taken = {number for number in range(threads) if number % cores == machine.sigd.core % cores}
    return _ranges([number for number in range(threads) if number not in taken])


def _ranges(numbers: list[int]) -> str:
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return " ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in found)


def _unit(machine: Machine, work: Work, fit: Fit, checkpoint: str, cache: int, binary: str) -> str:
    arguments = [
        f"serve {checkpoint}",
        "--host 127.0.0.1 --port 8000",
        "--dtype float16",
        f"--kv-cache-memory-bytes {cache}",
        f"--max-model-len {work.context_tokens} --max-num-seqs {work.sequences}",
    ]
    if fit.layout.tensor > 1:
        arguments.append(f"--tensor-parallel-size {fit.layout.tensor}")
    if fit.layout.pipeline > 1:
        arguments.append(f"--pipeline-parallel-size {fit.layout.pipeline}")
    if not machine.nvlink:
        arguments.append("--disable-custom-all-reduce")
    affinity = cpus(machine)
    lines = [
        (
            f"# {work.model} in {work.weights} on card {', '.join(map(str, work.cards))}. `sigd plan --vllm`"
            " wrote this file."
        ),
        "[Unit]",
        "Description=vLLM, a language model beside sigd",
        "# sigd takes its memory first.",
        "After=sigd.service network-online.target",
        "Wants=network-online.target",
        "",
        "[Service]",
        "Type=exec",
        "User=vllm",
        "Group=vllm",
        "StateDirectory=vllm",
        f"EnvironmentFile={ENVIRONMENT_FILE}",
        f"ExecStart={binary} " + " \\\n    ".join(arguments),
        "# It compiles and captures graphs before it answers.",
        "TimeoutStartSec=600",
        "Restart=on-failure",
        "RestartSec=10",
        "# It gives way to sigd: in memory, on every core, and on sigd's core it never runs.",
        "OOMScoreAdjust=500",
        "Nice=10",
        *([f"CPUAffinity={affinity}"] if affinity else []),
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _environment(machine: Machine, work: Work) -> str:
    lines = [
        f"# {ENVIRONMENT_FILE}, for vllm.service. `sigd plan --vllm` wrote this file.",
        "# The numbers of nvidia-smi; without the order CUDA may number the cards by speed.",
        "CUDA_DEVICE_ORDER=PCI_BUS_ID",
        f"CUDA_VISIBLE_DEVICES={','.join(map(str, work.cards))}",
        "HF_HOME=/var/lib/vllm",
        "HF_HUB_OFFLINE=1",
    ]
    if exchange_way(machine) == "host":
        lines.append("NCCL_P2P_DISABLE=1")
    return "\n".join(lines) + "\n"
