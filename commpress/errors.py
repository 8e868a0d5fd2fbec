"""Every error that commpress raises on purpose. All derive from :class:`CommpressError`."""


class CommpressError(Exception):
    """Base of all commpress errors."""


class SpecError(CommpressError, ValueError):
    """A codec specification, or an option, is malformed or outside what the codec supports."""


class TensorError(CommpressError, TypeError):
    """A tensor's dtype, layout, size or device is not one that the call accepts."""


class WireError(CommpressError, ValueError):
    """Encoded bytes (a payload, a frame or a header) are malformed, truncated or corrupt."""


class MismatchError(CommpressError, RuntimeError):
    """Ranks disagree: another codec, version, parameter order, step or tensor size. The message names the difference."""


class PeerError(CommpressError, RuntimeError):
    """Another rank died, hung past the timeout, or reported a failure. The message names rank and step."""


class TopologyError(CommpressError, ValueError):
    """Which ranks share a node cannot be told, or does not allow what was asked for. The message says what to do."""


class StateError(CommpressError, RuntimeError):
    """An object is used in a way or at a time that its state forbids (closed, already bound, failed earlier)."""


class MissingPackageError(CommpressError, ImportError):
    """A package that this function needs, and the library does not, is not installed. The message names the extra."""


class ClusterError(CommpressError, RuntimeError):
    """An emulated cluster cannot be made or kept on this machine, or cannot run the command. The message says what to do."""
