"""Find TensorRT, its version and its messages. Only this module, `network` and `execution` call the library.

The same code serves TensorRT 10.3 to 11 and TensorRT-RTX: precision is in the graph, and networks are strongly typed.
Every object of the library is annotated with its class, so that a test can look up each attribute in each version.
"""

from __future__ import annotations

import functools
import logging
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pairvpr.errors import EngineError

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

INSTALL = (
    "on a Jetson it comes with JetPack: make the environment with python3 -m venv --system-site-packages; "
    "elsewhere run pip install tensorrt (or tensorrt-rtx, for RTX GPUs)"
)


def load() -> ModuleType:
    """Return the module of TensorRT, or else of TensorRT-RTX. Raises EngineError with a remedy."""
    try:
        import tensorrt
    except ImportError as error:
        try:
            import tensorrt_rtx_bindings as tensorrt  # the module tensorrt_rtx only re-exports it
        except ImportError:
            raise EngineError(f"TensorRT cannot be imported ({error}); {INSTALL}") from error
    if not hasattr(tensorrt, "Builder"):
        raise EngineError(f"the tensorrt package is broken (it has no Builder); {INSTALL}")
    module: ModuleType = tensorrt
    return module


def version() -> str:
    """Return the version. TensorRT-RTX's begins with "rtx-": neither library loads the other's plans."""
    trt = load()
    return f"rtx-{trt.__version__}" if _is_rtx(trt) else str(trt.__version__)


def typing_flags() -> int:
    """Return the flags of a strongly typed network. TensorRT-RTX, and TensorRT from 11 on, know no other networks."""
    trt = load()
    if _is_rtx(trt) or int(str(trt.__version__).partition(".")[0]) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _is_rtx(trt: ModuleType) -> bool:
    return trt.__name__ == "tensorrt_rtx_bindings"


@functools.lru_cache(maxsize=1)
def logger() -> Any:
    """Return the logger that forwards to ours. The library uses one for all its objects, and it must outlive them."""
    trt = load()

    class Log(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message
            log.debug("TensorRT: %s", message)

    return Log()


def fail(what: str, remedy: str) -> EngineError:
    """Return an error that quotes the library's last error message."""
    complaint = " ".join(logger().last_error.split())[:300] or "it gives no reason"
    return EngineError(f"{what} ({complaint}); {remedy}")
