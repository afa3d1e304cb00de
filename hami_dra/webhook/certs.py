"""The serving certificate, exchanged while connections live.

A pair of certificate and key that do not match breaks a live context for every new handshake, so
each pair is first loaded into a context that is thrown away. Until the pair on disk is sound the
old one stays, which also makes two separate renames safe.
"""

import asyncio
import ssl
from pathlib import Path
from typing import Final

import structlog

from hami_dra.contract.errors import FatalError
from hami_dra.webhook.metrics import WebhookMetrics

_log = structlog.get_logger(__name__)

CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
"""Names as in a Kubernetes TLS Secret."""
_POLL_SECONDS: Final = 10.0
"""Kubelet needs up to a minute to project a changed Secret; inotify would not see it sooner."""

_Signature = tuple[tuple[int, int, int], ...]


class ServingCertificate:
    """A server context that follows the files.

    Attributes:
        context: TLS 1.2 or newer; give it to the server once.
    """

    def __init__(self, directory: Path, metrics: WebhookMetrics) -> None:
        self._certificate = directory / CERTIFICATE_FILE
        self._key = directory / KEY_FILE
        self._metrics = metrics
        self._loaded: _Signature = ()
        self._refused: _Signature = ()
        try:
            self._loaded = self._sign()
            self.context = _load_context(self._certificate, self._key)
        except OSError as error:
            raise FatalError(
                f"no usable certificate in {directory}: {error}; it needs {CERTIFICATE_FILE} and "
                f"a matching {KEY_FILE}, such as `hami-dra controller bootstrap` writes"
            ) from error

    async def run(self) -> None:
        """Look at the files every ten seconds, until cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            # Two stats and, once a year, 3 KB of tmpfs: not worth a thread.
            self.refresh()

    def refresh(self) -> bool:
        """Take a new pair if there is a sound one; return whether it was taken. Idempotent."""
        try:
            found = self._sign()
            if found in (self._loaded, self._refused):
                return False
            _load_context(self._certificate, self._key)
            self.context.load_cert_chain(self._certificate, self._key)
        except OSError as error:
            try:
                self._refused = self._sign()
            except FileNotFoundError:
                self._refused = ()
            self._metrics.reloads.labels("refused").inc()
            _log.warning("certificate.refused", directory=str(self._key.parent), error=str(error))
            return False
        self._loaded = found
        self._metrics.reloads.labels("loaded").inc()
        _log.info("certificate.loaded", directory=str(self._key.parent))
        return True

    def _sign(self) -> _Signature:
        stats = (self._certificate.stat(), self._key.stat())
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)


def _load_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Load a pair into a new context.

    Raises:
        OSError: Not readable, or not a pair (`ssl.SSLError` is one too).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context
