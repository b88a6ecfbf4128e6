"""Optional libraries: imported where they are needed, with one clear sentence where they are missing."""

import importlib
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Imports an optional library.

    Args:
        module: name to import, such as ``"sklearn.datasets"``.
        extra: the extra of vidgen's that installs it, such as ``"data"``.

    Raises:
        ModuleNotFoundError: the library is not installed; the message says what to type.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        # a library that is there but lacks something of its own is that library's message to give
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        message = f"{library} is not installed, and this needs it: pip install 'vidgen[{extra}]'"
        raise ModuleNotFoundError(message, name=library) from None
