"""An AOTInductor package: the model compiled to machine code, for torch in Python or in C++."""

from __future__ import annotations

from pathlib import Path

import torch

from autoembed.bundle import Bundle
from autoembed.errors import BundleError, first_line
from autoembed.export.lookups import write_lookups
from autoembed.export.program import program_of, quiet

# The compiled code calls into torch, whose inner interface changes with each version.
REQUIREMENTS = (f"torch=={torch.__version__.partition('+')[0]}", "numpy")
LIMITS = (
    "It runs on processors like the one that it was compiled on (the same architecture and vector instructions). It "
    "takes ids: look values up by vocabulary.json, as the NumPy scorer of the format numpy does."
)


def write(bundle: Bundle, folder: Path) -> None:
    """Compiles model.pt2, in half a minute or so, and writes vocabulary.json.

    BundleError if there is no C++ compiler, or if it fails.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    try:
        get_cpp_compiler()
        with quiet():
            aoti_compile_and_package(program_of(bundle), package_path=str(folder / "model.pt2"))
    except InvalidCxxCompiler:
        raise BundleError(
            "the format aoti needs a C++ compiler, but there is none: install g++, name one in CXX, or use torch"
        ) from None
    except (CppCompileError, InductorError) as error:
        said = [line.strip() for line in str(error).splitlines() if "error: " in line] or [first_line(error)]
        raise BundleError(f"the C++ compiler cannot compile the model: {said[0]}") from None
    write_lookups(bundle.vocabulary, folder)
