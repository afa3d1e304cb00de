"""What the import of aiohttp reads, in a process of its own."""

import subprocess
import sys

PROGRAM = """
import ssl
from hami_dra.kube.httpclient import aiohttp
from aiohttp import connector
loaded = connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"]
own = ssl.create_default_context()
own.load_default_certs()
print(loaded, own.verify_mode is ssl.CERT_REQUIRED, ssl.SSLContext.load_default_certs.__name__)
"""


def test_only_the_import_goes_without_the_systems_certificates() -> None:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0 True load_default_certs\n"
