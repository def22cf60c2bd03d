"""What a person sees in the terminal: our lines, one progress bar, no library's chatter."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings

OUR_LOGGERS = ("modules", "networks", "preprocess", "tools")


class _TqdmHandler(logging.Handler):
    """Writes log lines above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # here: scripts that only print help don't need it

        tqdm.write(self.format(record))


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"warning: {message}"


def set_up_logging() -> None:
    """Show our own messages as plain lines; a second call changes nothing."""
    survive_narrow_encodings()
    handler = _TqdmHandler()
    handler.setFormatter(_PlainFormatter("%(message)s"))
    for name in OUR_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _TqdmHandler) for known in logger.handlers):
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def survive_narrow_encodings() -> None:
    """Write what the terminal's encoding lacks (Windows, redirected) as escapes, not as errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def quiet_libraries() -> None:
    """Silence what a person can't act on; call it before the libraries are imported."""
    defaults = {
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "XFORMERS_MORE_DETAILS": "0",
        "WANDB_SILENT": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    # xformers without CUDA and bitsandbytes without kernels that nobody asked for warn at import.
    for name in ("xformers", "bitsandbytes.backends", "torch.distributed.elastic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
    warnings.filterwarnings("ignore", message=".*pin_memory.*no accelerator.*")
