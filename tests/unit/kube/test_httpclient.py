"""What the import of aiohttp reads, in a process of its own."""

import subprocess
import sys

CERTIFICATES = """
import ssl
from hami_dra.kube.httpclient import aiohttp
from aiohttp import connector
own = ssl.create_default_context()
own.load_default_certs()
loaded = connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"]
print(loaded, own.verify_mode is ssl.CERT_REQUIRED, ssl.SSLContext.load_default_certs.__name__)
"""
BUFFER = """
import asyncio, ssl
from asyncio.sslproto import SSLProtocol
import hami_dra.kube.httpclient
async def make():
    loop, context = asyncio.get_running_loop(), ssl.create_default_context()
    return SSLProtocol(loop, asyncio.Protocol(), context, loop.create_future())
print(len(asyncio.run(make())._ssl_buffer))
"""


def run(program: str) -> str:
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_only_the_import_goes_without_the_systems_certificates() -> None:
    assert run(CERTIFICATES) == "0 True load_default_certs"


def test_a_connection_has_a_small_buffer() -> None:
    assert run(BUFFER) == str(32 << 10)
