"""How a Postgres connection is encrypted: libpq's sslmode and certificates, as Python's contexts."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from langgraph_harness_saver.errors import InvalidConfigError
from langgraph_harness_saver.stores.postgres_servers import Server
from langgraph_harness_saver.stores.postgres_strings import named

_TLS_VERSIONS = ("ssl_min_protocol_version", "ssl_max_protocol_version")
_TLS = (
    *("sslmode", "sslnegotiation", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl"),
    *_TLS_VERSIONS,
)
_VERIFYING = ("verify-ca", "verify-full")
STRONG = ("require", *_VERIFYING)


def tls_of(values: Mapping[str, str], servers: Iterable[Server]) -> dict[str, str]:
    """Choose what applies, and refuse what would fail on every connection."""
    tls = {name: values[name] for name in _TLS if values.get(name)}
    if tls.get("sslrootcert") == "system":
        tls.setdefault("sslmode", "verify-full")
    mode = tls.get("sslmode", "prefer")
    _check_strength(tls, mode)
    # libpq leaves TLS away on Unix sockets, whatever the mode.
    if mode == "disable" or all(server.is_socket for server in servers):
        return {"sslmode": "disable"}
    if mode == "verify-full" and any(
        server.target != server.name for server in servers if not server.is_socket
    ):
        raise InvalidConfigError(
            "with a hostaddr asyncpg can't verify the name in host; leave hostaddr out, or use "
            "sslmode=verify-ca"
        )
    versions = {name: _tls_version(name, tls[name]) for name in _TLS_VERSIONS if name in tls}
    lowest, highest = (versions.get(name, "") for name in _TLS_VERSIONS)
    if highest and highest < (lowest or "TLSv1.2"):
        raise InvalidConfigError(
            "ssl_max_protocol_version is below ssl_min_protocol_version, which is TLSv1.2 unless you lower it"
        )
    return {**tls, **versions}


def _check_strength(tls: Mapping[str, str], mode: str) -> None:
    if tls.get("sslrootcert") == "system" and mode != "verify-full":
        raise InvalidConfigError(
            "sslrootcert=system goes with sslmode=verify-full only: anybody can get such a one"
        )
    if tls.get("sslnegotiation") == "direct" and mode not in STRONG:
        raise InvalidConfigError("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full")


def _own_file(name: str) -> str | None:
    # Where asyncpg looks, on Windows too.
    file = os.path.join(os.path.expanduser("~"), ".postgresql", name)
    return file if os.path.exists(file) else None


def _tls_version(name: str, value: str) -> str:
    known = {version.lower(): version for version in ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")}
    if value.lower() not in known:
        raise InvalidConfigError(f"{named(name)} is one of {', '.join(known.values())}, not {value!r}")
    return known[value.lower()]


def contexts(tls: Mapping[str, str]) -> list[ssl.SSLContext | Literal[False]]:
    """Return how to connect, in the order that libpq tries it."""
    mode = tls.get("sslmode", "prefer")
    if mode == "disable":
        return [False]
    context = _context(tls, mode)
    if mode == "allow":
        return [False, context]
    return [context, False] if mode == "prefer" else [context]


def _context(tls: Mapping[str, str], mode: str) -> ssl.SSLContext:
    """Make what asyncpg makes, and for sslrootcert=system as well."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.minimum_version = _version(tls.get("ssl_min_protocol_version", "TLSv1.2"))
    if "ssl_max_protocol_version" in tls:
        context.maximum_version = _version(tls["ssl_max_protocol_version"])
    context.set_alpn_protocols(["postgresql"])
    # With a weaker mode nothing is verified.
    if mode not in STRONG:
        context.verify_mode = ssl.CERT_NONE
    else:
        _load_roots(context, tls, mode)
        _load_revoked(context, tls)
    _load_own_certificate(context, tls)
    keys = os.environ.get("SSLKEYLOGFILE")
    if keys and not sys.flags.ignore_environment:
        with _naming("SSLKEYLOGFILE", keys):
            context.keylog_filename = keys
    return context


def _version(name: str) -> ssl.TLSVersion:
    return ssl.TLSVersion[name.replace(".", "_")]


def _load_roots(context: ssl.SSLContext, tls: Mapping[str, str], mode: str) -> None:
    roots = tls.get("sslrootcert") or _own_file("root.crt")
    if roots == "system":
        context.load_default_certs()
    elif roots:
        with _naming(named("sslrootcert"), roots):
            context.load_verify_locations(cafile=roots)
    elif mode in _VERIFYING:
        raise InvalidConfigError(
            f"sslmode={mode} needs to know whom to trust: add sslrootcert=/path/to/ca.pem, or "
            "sslrootcert=system for the authorities that this machine trusts"
        )
    else:
        context.verify_mode = ssl.CERT_NONE


def _load_revoked(context: ssl.SSLContext, tls: Mapping[str, str]) -> None:
    revoked = tls.get("sslcrl") or _own_file("root.crl")
    if revoked:
        with _naming(named("sslcrl"), revoked):
            context.load_verify_locations(cafile=revoked)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN


def _load_own_certificate(context: ssl.SSLContext, tls: Mapping[str, str]) -> None:
    certificate = tls.get("sslcert") or _own_file("postgresql.crt")
    if certificate:
        key = tls.get("sslkey") or _own_file("postgresql.key")
        with _naming(f"{named('sslcert')}, or its sslkey,", f"{certificate}, {key}" if key else certificate):
            # Without a password OpenSSL would ask whoever sits at the terminal.
            context.load_cert_chain(certificate, key, lambda: tls.get("sslpassword", ""))


@contextmanager
def _naming(what: str, file: str) -> Iterator[None]:
    """Say which file it was."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InvalidConfigError(f"{what} can't be used: {file}: {error}") from error
