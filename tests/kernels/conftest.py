"""What the tests of the kernels share: a repair of Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def runtime_loop_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter of Triton before 3.9 makes an int of an array [1]: numpy 2.4 refuses that.

    Only loops whose bounds are known at run time need it; on CUDA nothing is patched.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
