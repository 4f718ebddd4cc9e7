"""Which experts computation runs here by default, whether the fast kernels can be had, and whether they are right."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field

import torch

from ..configuration import MoebaConfig
from ..kernels import NAME
from ..kernels.cpu.build import NoLibraryError, compiler, library
from ..kernels.gpu.availability import WHY_NOT
from ..kernels.implementation import PATHS
from ..kernels.layer import layer_of
from ..library.upstream import is_experts
from ..modeling import MoebaForCausalLM
from .self_check import one_line

CLOSE = 1e-4  # of the logits' spread, in float32
_WORDS = {"cpu": "C++ kernels", "composed": "grouped products of PyTorch", "gpu": "Triton kernels"}
_SETTING = "MOEBA_CPU_KERNELS"
REPORT_IT = "report it with the output of `moeba doctor --json`"


@dataclass
class ExpertsReport:
    """
    Attributes:
        default: the name in transformers' experts interface that a Moeba model takes on this machine.
        runs: what stands behind moeba's own name here, or None if transformers' computation does.
        obstacles: of each faster way, why it does not run.
        library: the compiled C++ kernels, and how long it took to have them; None if there are none.
        differences: by name in the interface, from the plain computation, in parts of the logits' spread.
        failed: what went wrong when they ran.
        to_do: what a user can do about a library that would run by default and cannot be had.
    """

    default: str = ""
    runs: str | None = None
    obstacles: dict[str, str] = field(default_factory=dict)
    library: str | None = None
    seconds: float = 0.0
    triton: str | None = WHY_NOT or (None if torch.cuda.is_available() else "there is no CUDA device")
    differences: dict[str, float] = field(default_factory=dict)
    failed: str | None = None
    to_do: str | None = None

    def lines(self) -> list[str]:
        made = f"{self.library} (ready in {self.seconds:.1f} s)" if self.library else "none"
        off = ", ".join(f"{name}: {value:.1g}" for name, value in self.differences.items())
        rows = {
            "default": self.default,
            f"behind {NAME!r}": self.runs or "transformers' grouped_mm",
            "compiled library": made,
            "triton": self.triton or "can be used (experimental)",
            "off plain experts": f"{off or '-'} (of the logits' spread)",
            **{f"not {name}": reason for name, reason in self.obstacles.items()},
            **({"FAILED": self.failed} if self.failed else {}),
        }
        return [f"{name:<16} {value}" for name, value in rows.items()]


def examine_experts() -> ExpertsReport:
    """Compile the kernels if that has not been done, and compare what runs here with the plain computation."""
    report = ExpertsReport()
    try:
        _compile(report)
        _run(report)
    except Exception as error:  # whatever a compiler, a driver or a library raises is a finding
        report.failed = one_line(error)
    return report


def _compile(report: ExpertsReport) -> None:
    start = time.perf_counter()
    made = library()
    report.seconds = time.perf_counter() - start
    if isinstance(made, ctypes.CDLL):
        report.library = made._name
        return
    if made == f"{_SETTING}=0" or torch.cuda.is_available():
        return  # as its user wants it, or nothing runs on them by default
    try:
        compiler()
        step = f"the C++ kernels of experts do not compile ({' '.join(made.split())}): {REPORT_IT}"
    except NoLibraryError:
        step = "install a C++ compiler for fast experts (such as `apt install g++`)"
    report.to_do = f"{step}, or set {_SETTING}=0 to do without"


def _run(report: ExpertsReport) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model().to(device).eval()  # type: ignore[arg-type]  # transformers hides the signature of `to`
    report.default = model.get_correct_experts_implementation(None)
    _choose(report, model, device)
    _compare(report, model, torch.arange(1, 33, device=device)[None])


def _choose(report: ExpertsReport, model: MoebaForCausalLM, device: str) -> None:
    """Ask each way in turn, as the experts do."""
    layer = layer_of(next(module for module in model.modules() if is_experts(module)))
    hidden = torch.zeros(4, model.config.hidden_size, device=device)
    for path in PATHS[device]:
        name = _WORDS[path.__name__.rpartition(".")[2]]
        reason = path.obstacle(layer, hidden)
        if reason is None:
            report.runs = name
            return
        report.obstacles[name] = reason


def _compare(report: ExpertsReport, model: MoebaForCausalLM, ids: torch.Tensor) -> None:
    plain = _logits(model, "eager", ids)
    for implementation in dict.fromkeys((report.default, NAME)):
        difference = (_logits(model, implementation, ids) - plain).abs().max() / plain.std()
        report.differences[implementation] = difference.item()
    wrong = [name for name, value in report.differences.items() if not value <= CLOSE]
    if wrong:
        report.failed = f"{', '.join(wrong)}: not what the plain experts compute"


def _model() -> MoebaForCausalLM:
    """A small mixture of experts; sizes of 64 suit every implementation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MoebaForCausalLM(
            MoebaConfig(
                vocab_size=64,
                hidden_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=64,
                mlp_layer_types=["sparse"],
                num_experts=8,
                num_experts_per_tok=2,
                moe_intermediate_size=64,
                initializer_range=0.2,
            )
        )


@torch.no_grad()
def _logits(model: MoebaForCausalLM, implementation: str, ids: torch.Tensor) -> torch.Tensor:
    model.set_experts_implementation(implementation)
    return model(ids).logits
